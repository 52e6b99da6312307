"""The rows of the replay cache's books: groups, tickets, leases, steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Event = Mapping[str, Any]
"""One thing that happened, in JSON types; `kind` names it.

    opened          boot, epoch, incarnation (start of the run), in_place, max_age, groups_per_update: a process began;
                    unless it is in place of one of the same start, that one's lease and tickets are void
    version         version, step: weights with `step` committed steps have this policy version
    issued          ticket, worker, size, due, min_step, key (of the request)
    returned        ticket, reason
    put             group, source, digest, ticket (null: preloaded), oldest (policy version; null: ageless), tokens,
                    budget (trainings; null: unlimited), blob (place of the packed block; null: memory only), bytes,
                    prompt, priority (null: unknown); of collected groups origin and sampled_at (policy version)
    refused         group, source, digest, ticket, reason, tokens: a group that was not accepted
    leased          lease, step, epoch, groups, ages (by live group), shortfall (by source)
    lease_returned  reason
    committed       lease, dropped (group to reason): the other groups of the lease were trained on; priorities (by
                    group): what the learner measured
    evicted         groups, reason
    rule            source, rule, inserted, sampled: the counts a table's rule for reuse begins with
    moved           blobs (by group): packed blocks lie elsewhere now
    base            state, max_age, groups_per_update, generation: a journal begins anew with what the old one led to
    lost            groups: their blocks could not be read back
    sealed          step: a durable checkpoint covers this step and all before it
    rolled_back     step, epoch, batches (step to groups): history continues from the checkpoint of this manifest
"""


class Status(StrEnum):
    """The life of a group. TICKET and REFUSED lie before acceptance; SEALED, EVICTED and REFUSED are terminal."""

    TICKET = "ticket"
    READY = "ready"
    LEASED = "leased"
    COMMITTED = "committed"
    SEALED = "sealed"
    EVICTED = "evicted"
    REFUSED = "refused"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.TICKET: frozenset({Status.READY, Status.REFUSED, Status.SEALED}),  # sealed: known from a manifest only
    Status.READY: frozenset({Status.LEASED, Status.EVICTED, Status.COMMITTED, Status.READY}),
    Status.LEASED: frozenset({Status.READY, Status.COMMITTED, Status.EVICTED}),
    Status.COMMITTED: frozenset({Status.READY, Status.SEALED, Status.COMMITTED}),
    Status.SEALED: frozenset({Status.EVICTED, Status.SEALED}),  # evicted: a rollback reached behind the seal
    Status.EVICTED: frozenset({Status.SEALED, Status.EVICTED}),  # sealed: the manifest says it was trained
    Status.REFUSED: frozenset(),
}

OPEN = frozenset({Status.READY, Status.LEASED})
HELD = frozenset({Status.READY, Status.LEASED, Status.COMMITTED})
ACCEPTED = (Status.READY, Status.LEASED, Status.COMMITTED, Status.SEALED, Status.EVICTED)


class InvariantError(AssertionError):
    """The books contradict themselves; going on would train on wrong data."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One accepted group.

    Attributes:
        seq: place in the order of arrival, kept for ever.
        digest: of the packed block; tells a repeated put from a different group under the same id.
        oldest: oldest policy version among its trained tokens; None for frozen sources, which have no age.
        first_turn: the pass of its source in which it arrived.
        budget: how often it may be trained on; None is unlimited.
        uses: steps of the surviving history it was trained at.
        blob: where its packed block lies in the log's files.
        prompt_id: task it answers; None for groups known from a manifest alone.
        num_bytes: packed size.
        priority: of prioritised tables.
        origin: the live group it was collected from; None for all others.
        sampled_at: of a collected group, the oldest policy version of that live group.
        closed_at: number of the seal it was terminal at; it is forgotten one seal later.
    """

    group_id: str
    source: str
    seq: int
    digest: str = ""
    ticket_id: str | None = None
    oldest: int | None = None
    num_tokens: int = 0
    first_turn: int = 0
    budget: int | None = None
    status: Status = Status.TICKET
    uses: list[int] = field(default_factory=list)
    reason: str | None = None
    blob: list[Any] | None = None
    prompt_id: str | None = None
    num_bytes: int = 0
    priority: float = 1.0
    origin: str | None = None
    sampled_at: int | None = None
    closed_at: int | None = None

    @property
    def is_fresh(self) -> bool:
        """Made in this run, so nobody will ever preload it again."""
        return self.ticket_id is not None or self.origin is not None

    @property
    def version(self) -> int | None:
        """The policy version age rules of its source go by."""
        return self.oldest if self.oldest is not None else self.sampled_at

    @property
    def turn(self) -> int:
        return self.first_turn + len(self.uses)

    @property
    def is_spent(self) -> bool:
        return self.budget is not None and len(self.uses) >= self.budget

    @property
    def uses_left(self) -> int:
        """Further times a limited open group may be trained on."""
        return 0 if self.budget is None or self.status not in OPEN else self.budget - len(self.uses)

    def move(self, status: Status) -> None:
        """Raises InvariantError when no group may go that way."""
        if status not in TRANSITIONS[self.status]:
            raise InvariantError(f"group {self.group_id} cannot go from {self.status.value} to {status.value}")
        self.status = status


@dataclass(slots=True, kw_only=True)
class TicketRow:
    """An outstanding right to generate one group, which is due at step `due`; `key` names the request it answers."""

    worker_id: str
    group_size: int
    due: int
    min_step: int
    key: str = ""


@dataclass(slots=True, kw_only=True)
class LeaseRow:
    """The batch that is being trained on."""

    lease_id: str
    step: int
    epoch: int
    group_ids: list[str]
    ages: dict[str, int]
    shortfall: dict[str, int]


@dataclass(slots=True, kw_only=True)
class StepRow:
    """One committed step of the surviving history; `num_live` counts the live groups it consumed, dropped or not."""

    lease_id: str = ""
    trained: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    num_live: int = 0


def length_bucket(num_tokens: int) -> str:
    """Groups are counted by the next power of two of their tokens."""
    return f"<={1 << max(0, num_tokens - 1).bit_length()} tokens"
