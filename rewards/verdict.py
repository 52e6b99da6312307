"""What came back when a sample was judged, and which failures are the model's own.

The rules F1-F8 these types serve: a fault of the model earns the floor; a fault of infrastructure, judge or
reference is no number at all, so the sample is masked instead of taught.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Why a verdict has the score it has."""

    SCORED = "scored"
    NO_ANSWER = "no_answer"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    RESOURCE = "resource"
    CRASH = "crash"
    INVALID_GOLD = "invalid_gold"
    JUDGE_ERROR = "judge_error"
    INFRA_ERROR = "infra_error"
    CANCELLED = "cancelled"


FLOOR_STATUSES = frozenset({Status.NO_ANSWER, Status.REJECTED, Status.TIMEOUT, Status.RESOURCE, Status.CRASH})
"""The model's own fault: the sample is scored with the floor and trained on."""

UNSCORED_STATUSES = frozenset({Status.INVALID_GOLD, Status.JUDGE_ERROR, Status.INFRA_ERROR, Status.CANCELLED})
"""Nobody's answer was judged: score is None and the sample is masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A score with the reason for it.

    Attributes:
        score: reward units; None exactly when the status is one of UNSCORED_STATUSES.
        status: what happened.
        components: named parts of the score; None where a part could not be judged.
        extras: JSON-serialisable details for humans; samples of one batch may carry different keys.
        seconds: wall time the verifier took.
        correct: whether the component that means success found the answer right; None where none was named.
    """

    score: float | None
    status: Status
    components: Mapping[str, float | None] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    correct: bool | None = None

    def __post_init__(self) -> None:
        if (self.score is None) != (self.status in UNSCORED_STATUSES):
            raise ValueError(f"status {self.status.value!r} does not go with score {self.score!r}")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"score must be finite, got {self.score!r}; a non-finite score is an infra_error")

    @property
    def is_right(self) -> bool:
        """Whether the answer counts as a success, which is not the same as being paid: a shaped reward may pay a wrong
        answer for its form and charge a right one for its length. Without a named success a score above 0 is one."""
        if self.score is None:
            return False
        return self.score > 0 if self.correct is None else self.correct

    @classmethod
    def scored(cls, score: float, **details: Any) -> Verdict:
        """A verdict was reached; a non-finite score becomes an unscored infra_error (F2)."""
        score = float(score)
        if not math.isfinite(score):
            return cls.unscored(Status.INFRA_ERROR, extras={"error": f"verifier returned {score!r}"})
        return cls(score=score, status=Status.SCORED, **details)

    @classmethod
    def floor(cls, status: Status, floor: float = 0.0, **details: Any) -> Verdict:
        """The model's own fault."""
        if status not in FLOOR_STATUSES:
            raise ValueError(f"status {status.value!r} is not the model's fault and earns no floor")
        return cls(score=floor, status=status, **details)

    @classmethod
    def unscored(cls, status: Status, **details: Any) -> Verdict:
        """Not the model's fault: masked, never a number."""
        return cls(score=None, status=status, **details)
