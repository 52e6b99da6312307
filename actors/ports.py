"""The async ports the loops are written against, and the small values that cross them.

A loop never knows what is behind a port: an object in the same process (LocalRun, tests) or a Ray actor. Every
mutating call carries a key (ticket_id, group_id, lease_id, step) and repeating it is a no-op.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.engines.protocol import WeightUpdate
from actors.ledger import LedgerRow
from rewards.task import Task
from rewards.trajectory import Context, Group, PolicyVersion, Trajectory
from rewards.verdict import Verdict

DONORS_OF = "donors_of"
"""Key of a forked task's metadata: the prompt whose tables of donors it reads, in place of its own."""


class StalledError(RuntimeError):
    """A wait passed its deadline; the message states what was missing."""


class StaleEpochError(RuntimeError):
    """A call came from an incarnation that has been replaced."""


class RunFinished(Exception):  # noqa: N818 - a signal that ends a loop, not a fault
    """There is nothing more to do: the run reached its last step or was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The right to generate one group.

    Attributes:
        min_step: the engine must run weights with at least this many committed steps before it samples, or the
            group could already be too old when it is put.
    """

    ticket_id: str
    worker_id: str
    group_size: int
    min_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedTask:
    """One task to work on. `context` says what else stands in the prompt; `attempt` counts leases of this item."""

    lease_id: str
    task: Task
    context: Context = Context()
    attempt: int = 0
    index: int = 0
    """Position in the deterministic stream of (epoch, order); with the run's seed it fixes the sampling seed."""
    row: LedgerRow | None = None
    """What was known of the prompt when the task was leased; None where no ledger is kept."""
    donors: Mapping[str, tuple[Trajectory, ...]] = field(default_factory=dict)
    """Answers of others to this very task, by table; `expert` holds the task's own, once they are judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a leased task: updates the prompt ledger once per group.

    Attributes:
        num_scored, num_correct: answers of the policy without help; of them right ones, as the success component says.
        mean_score: reward units, over all scored answers of the policy.
        helped_scored, helped_correct: the same of answers with help in their prompt.
        context: what the group was sampled in.
        history: counts of superseded samplings.
        is_retired: the prompt is not drawn any more.
        stashed: by table, members that become donors of later groups of the prompt.
        forks: new tasks made from this one.
        stage_change: set by the feed.
    """

    lease_id: str
    group_id: str
    prompt_id: str
    num_scored: int
    num_correct: int
    mean_score: float | None
    version: PolicyVersion | None
    fate: str
    """stored, dropped:<reason> or refused:<reason>."""
    helped_scored: int = 0
    helped_correct: int = 0
    context: Context = Context()
    history: Mapping[str, int] = field(default_factory=dict)
    is_retired: bool = False
    stashed: Mapping[str, tuple[Trajectory, ...]] = field(default_factory=dict)
    forks: tuple[Task, ...] = ()
    stage_change: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLease:
    """The groups of one optimizer step, handed out together.

    Attributes:
        epoch: incarnation of the replay cache's leases; a commit from an older epoch is refused.
        shortfall: groups a source could not supply and another one filled, by source.
    """

    lease_id: str
    step: int
    epoch: int
    groups: tuple[Group, ...]
    ages: Mapping[str, int] = field(default_factory=dict)
    """Age in committed steps at hand-out, by group id; frozen sources are absent."""
    shortfall: Mapping[str, int] = field(default_factory=dict)
    waited_s: float = 0.0


class TaskPort(Protocol):
    async def lease_task(self, worker_id: str, key: str = "") -> LeasedTask:
        """A task to work on; repeating a key gives the same lease."""
        ...

    async def finish_task(self, outcome: Outcome) -> None: ...

    async def release_worker(self, worker_id: str) -> None:
        """Gives back what this worker held; a worker calls it when it starts, for whoever had its name before."""


class ScorePort(Protocol):
    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        """One verdict per answer, in order; never raises for a bad answer or a failed verifier."""
        ...


class RolloutReplayPort(Protocol):
    async def take_ticket(self, worker_id: str, group_size: int, key: str = "") -> Ticket:
        """Waits for admission; repeating a key gives the same ticket. Raises StalledError at the deadline, RunFinished
        at the end."""
        ...

    async def return_ticket(self, ticket_id: str, reason: str) -> None:
        """Gives the right back without a group: dropped, failed, cancelled."""

    async def put(self, group: Group) -> str | None:
        """Stores a scored group on its ticket; why it was refused, or None. Same id and payload: same answer again;
        other payload: ValueError."""
        ...


class LearnerReplayPort(Protocol):
    async def lease(self, step: int) -> BatchLease:
        """Waits for a full batch for this step; repeating the call returns the same lease."""
        ...

    async def commit(
        self,
        step: int,
        lease_id: str,
        *,
        dropped: Mapping[str, str] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """The optimizer step is done. `dropped` names groups that were not trained, with the reason (e.g. nan);
        `measured` says by group what the learner saw of it (ratio, clipped)."""

    async def announce_version(self, version: PolicyVersion, step: int) -> None:
        """Weights `version` contain `step` committed steps; told before anyone can sample with them."""

    async def seal(self, step: int) -> None:
        """The checkpoint that covers this step is durable."""


class WeightPort(Protocol):
    async def newest(self) -> WeightUpdate | None: ...

    async def wait_newer(self, version: PolicyVersion, timeout_s: float) -> WeightUpdate | None:
        """The newest update above `version`, or None after the timeout."""
        ...


class PublishPort(Protocol):
    async def issue_version(self, step: int) -> PolicyVersion: ...

    async def publish(self, update: WeightUpdate) -> None: ...


class ReportPort(Protocol):
    async def report(self, role: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Numbers by metric name (see rewards.telemetry.METRICS)."""

    async def event(self, kind: str, details: Mapping[str, Any]) -> None:
        """One thing that happened to one group or actor; goes to the run's event log."""
