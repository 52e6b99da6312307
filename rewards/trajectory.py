"""The record every stage reads: trajectories in tokens, grouped by the task instance they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from rewards.verdict import Verdict

Int32Array = npt.NDArray[np.int32]
Int8Array = npt.NDArray[np.int8]
Float32Array = npt.NDArray[np.float32]

PolicyVersion = NewType("PolicyVersion", int)
"""Issued once per published set of weights, grows for ever, never reused, also across restarts; 0 is initial."""

LOGPROB_SLACK = 1e-4
"""Nats a log-prob may lie above 0 through rounding of a probability of one."""


class Role(IntEnum):
    """Who put a token into the sequence."""

    CONTEXT = 0
    """The prompt."""
    FORCED = 1
    """Answer tokens the policy was made to continue (oracle prefixes, hints)."""
    SAMPLED = 2
    """Answer tokens chosen by the sampling policy of this source; the only tokens losses use by default."""
    ENVIRONMENT = 3
    """Tool results and other tokens no policy chose."""


class Source(StrEnum):
    """Whose experience this is. Prefix-continued is a property of roles, replayed is an age; neither is a source."""

    LIVE = "live"
    OWN_PAST = "own_past"
    EXPERT = "expert"
    TEACHER = "teacher"
    OTHER_RUN = "other_run"


class FinishReason(StrEnum):
    """Why sampling stopped."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens [start, end) of the sequence were sampled under one policy version."""

    start: int
    end: int
    version: PolicyVersion


VersionSpans = tuple[VersionSpan, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """What stood in the prompt beside the task itself.

    Attributes:
        kind: none, prefix, hint, plan, demo, feedback, role (see `actors.contexts.render`).
        amount: how much of it, in `unit`; None is all of it.
        unit: tokens, share or steps.
        reference: identifies the text that was shown.
        removed: the learner conditions on the prompt without it (`Trajectory.train_prompt_ids`).
    """

    kind: str = "none"
    amount: float | None = None
    unit: str | None = None
    reference: str | None = None
    removed: bool = False

    @property
    def is_help(self) -> bool:
        """Whether right answers in it say less about the policy than plain ones; a role is an instruction only."""
        return self.kind not in ("none", "role")


@dataclass(frozen=True, slots=True)
class Turn:
    """One model action: tokens [start, end) and how its sampling ended."""

    start: int
    end: int
    finish_reason: FinishReason = FinishReason.STOP


@dataclass(frozen=True, slots=True)
class Reward:
    """One named reward component and the token it lands on (the last sampled token of its turn)."""

    name: str
    value: float
    position: int


@dataclass(frozen=True, slots=True)
class SamplingRecord:
    """How the tokens were drawn; log-probs of the learner must use the same temperature."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One answer to one task, in tokens, exactly as sampled. Stages return a copy with one more field.

    All per-token arrays have the same length T: context, then answer, turns in order.

    Attributes:
        token_ids: [T] int32.
        roles: [T] int8, values of Role.
        behavior_logprobs: [T] float32 nats under the sampling policy; NaN where unknown.
        versions: spans over sampled tokens, as the engine reported them; None for frozen sources.
        sample_context: what was in the prompt when it was sampled.
        train_prompt_ids: prompt the learner conditions on instead of the sampled one; None when they are the same.
        verdict: filled by the reward pool.
        rewards: named components on the token axis; empty means the verdict's score lands on the last sampled token.
        terminated: the episode ended by itself; `truncated`: a limit cut it. Both may be false for unfinished ones.
    """

    trajectory_id: str
    group_id: str
    source: Source
    token_ids: Int32Array
    roles: Int8Array
    behavior_logprobs: Float32Array
    versions: VersionSpans | None = None
    sample_context: Context = Context()
    train_prompt_ids: Int32Array | None = None
    verdict: Verdict | None = None
    rewards: tuple[Reward, ...] = ()
    turns: tuple[Turn, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    terminated: bool = True
    truncated: bool = False
    sampling: SamplingRecord = SamplingRecord()
    images: tuple[str, ...] = ()
    """References (paths or content hashes) of images the placeholder tokens of the context stand for."""

    def __post_init__(self) -> None:
        length = len(self.token_ids)
        for name, dtype in (("token_ids", np.int32), ("roles", np.int8), ("behavior_logprobs", np.float32)):
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1 or len(array) != length:
                raise ValueError(
                    f"trajectory {self.trajectory_id}: {name} must be {np.dtype(dtype).name}[{length}], "
                    f"got {array.dtype}{list(array.shape)}"
                )
        for span in self.versions or ():
            if not 0 <= span.start < span.end <= length:
                raise ValueError(f"trajectory {self.trajectory_id}: version span {span} outside [0, {length})")
        for turn in self.turns:
            if not 0 <= turn.start <= turn.end <= length:
                raise ValueError(f"trajectory {self.trajectory_id}: turn {turn} outside [0, {length})")
        for reward in self.rewards:
            if not 0 <= reward.position < length:
                raise ValueError(
                    f"trajectory {self.trajectory_id}: reward {reward.name!r} lands on token {reward.position}, "
                    f"outside [0, {length})"
                )

    @property
    def num_context_tokens(self) -> int:
        """Leading CONTEXT tokens: the part shared by all members of a group."""
        other = np.flatnonzero(self.roles != Role.CONTEXT)
        return int(other[0]) if len(other) else len(self.roles)

    @property
    def sampled_mask(self) -> npt.NDArray[np.bool_]:
        """[T] True on tokens the source's policy chose."""
        return self.roles == Role.SAMPLED

    @property
    def num_sampled_tokens(self) -> int:
        return int(np.count_nonzero(self.roles == Role.SAMPLED))

    @property
    def oldest_version(self) -> PolicyVersion | None:
        """Oldest version among sampled tokens; None for frozen sources."""
        if not self.versions:
            return None
        return min(span.version for span in self.versions)

    @property
    def score(self) -> float | None:
        return self.verdict.score if self.verdict is not None else None

    @property
    def is_right(self) -> bool:
        return self.verdict is not None and self.verdict.is_right

    def with_verdict(self, verdict: Verdict) -> Trajectory:
        return replace(self, verdict=verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one task instance: the unit of scoring, filtering, storing, ageing, leasing and commit.

    Attributes:
        prompt_id: stable id of the task, shared by all groups ever sampled for it.
        ticket_id: the right under which it was generated; None for preloaded sources.
        num_asked: group size asked for; the members may be fewer.
        context: the context the members were sampled in.
        history: counts of superseded attempts (redo, grow) on the same ticket.
        tags: labels of the task that metrics are split by.
    """

    group_id: str
    prompt_id: str
    source: Source
    trajectories: tuple[Trajectory, ...]
    ticket_id: str | None = None
    num_asked: int = 0
    context: Context = Context()
    history: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    """Wall-clock seconds since the epoch, for humans; no decision reads it."""

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError(f"group {self.group_id} has no trajectories")
        strangers = [t.trajectory_id for t in self.trajectories if t.group_id != self.group_id]
        if strangers:
            raise ValueError(f"group {self.group_id} holds trajectories of other groups: {strangers}")

    @property
    def own_members(self) -> tuple[Trajectory, ...]:
        """Members of the group's own source, in a live group the policy's answers; donors say nothing about it."""
        return tuple(t for t in self.trajectories if t.source is self.source)

    @property
    def oldest_version(self) -> PolicyVersion | None:
        """Oldest version among sampled tokens of members of the group's own source; None when they are frozen.

        A donor in a live group keeps the versions that sampled it, but it is no reason to call the group old.
        """
        versions = [v for t in self.own_members if (v := t.oldest_version) is not None]
        return min(versions) if versions else None

    @property
    def num_tokens(self) -> int:
        return sum(len(t.token_ids) for t in self.trajectories)

    @property
    def num_sampled_tokens(self) -> int:
        return sum(t.num_sampled_tokens for t in self.trajectories)

    @property
    def scores(self) -> list[float | None]:
        return [t.score for t in self.trajectories]

    @property
    def num_scored(self) -> int:
        return sum(score is not None for score in self.scores)
