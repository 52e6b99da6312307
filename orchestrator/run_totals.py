"""RunTotals: what a run has added up to, over all its starts. Pure: no clock, no file."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.telemetry import describe, unknown_metrics

LEARNER = "learner"


@dataclass(slots=True)
class Spread:
    """Count, mean and largest of values seen one by one."""

    count: int = 0
    total: float = 0.0
    largest: float = 0.0

    def add(self, value: float) -> None:
        self.largest = value if self.count == 0 else max(self.largest, value)
        self.count += 1
        self.total += value

    def as_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.total / max(self.count, 1), "max": self.largest}


@dataclass(slots=True)
class RunTotals:
    """Counts of every reporter, during training and in all; ages at hand-out; activations; training wall clock.

    Work that a crash took back stays counted: it was done and cost time.

    Attributes:
        overall, training: amounts by role, then metric; `training` only what was reported while training went on.
        ages: live groups handed out, by age in committed steps.
        activations: spread of each phase of the engines' weight changes, in seconds (probe errors in nats).
        wall_s: training wall clock of earlier starts; starts: how often the run was started or resumed.
        redone_steps: steps that crashes took back.
    """

    overall: dict[str, dict[str, float]] = field(default_factory=dict)
    training: dict[str, dict[str, float]] = field(default_factory=dict)
    ages: Counter[int] = field(default_factory=Counter)
    activations: defaultdict[str, Spread] = field(default_factory=lambda: defaultdict(Spread))
    wall_s: float = 0.0
    starts: int = 0
    redone_steps: int = 0
    _newest: dict[str, dict[str, float]] = field(default_factory=dict)
    """Newest running counts of each reporter of this start."""

    def add(self, role: str, values: Mapping[str, float], *, is_training: bool) -> None:
        """Counts what a report says has happened since the previous one."""
        known = {name: value for name, value in values.items() if not unknown_metrics([name])}
        for name, value in known.items():
            reduction = describe(name).reduction
            if reduction == "sum":
                growth = value
            elif reduction == "total":
                before = self._newest.get(role, {}).get(name, 0.0)
                growth = value - before if value >= before else value  # the reporter was replaced and began at 0
            else:
                continue
            for table in (self.overall, self.training) if is_training else (self.overall,):
                counts = table.setdefault(role, {})
                counts[name] = counts.get(name, 0.0) + growth
        for name, count in known.items():
            if name.startswith("policy_age/"):
                self.ages[int(name.removeprefix("policy_age/"))] += int(count)
        self._newest[role] = dict(known)

    def known(self, role: str, values: Mapping[str, float]) -> None:
        """What this role counts next is counted from here."""
        self._newest[role] = {name: value for name, value in values.items() if not unknown_metrics([name])}

    def replaced(self, role: str) -> None:
        """The next report of this role comes from a new process, whose counts begin at 0."""
        self._newest.pop(role, None)

    def learner(self, name: str) -> float:
        """Amount of a learner metric during training."""
        return self.training.get(LEARNER, {}).get(name, 0.0)

    def workers(self, name: str) -> float:
        """Amount of a metric during training, over all reporters but the learner."""
        return sum(counts.get(name, 0.0) for role, counts in self.training.items() if role != LEARNER)

    def by_name(self, prefix: str) -> dict[str, int]:
        """Overall counts of a family of metrics over all reporters, by what follows the prefix."""
        joined: Counter[str] = Counter()
        for counts in self.overall.values():
            for name, value in counts.items():
                if name.startswith(prefix) and value:
                    joined[name.removeprefix(prefix)] += int(value)
        return dict(joined.most_common())

    def tokens_per_s(self, wall_s: float) -> dict[str, float]:
        """Rates of each stage over its own busy time, and of the whole over the wall clock, during training."""
        generated, trained = self.workers("generated_tokens"), self.learner("trained_tokens")
        parts = {
            "rollout": (generated, self.workers("busy_s")),
            "learner_trained": (trained, self.learner("train_s")),
            "learner_computed": (self.learner("computed_tokens"), self.learner("train_s")),
            "end_to_end_generated": (generated, wall_s),
            "end_to_end_trained": (trained, wall_s),
        }
        return {name: amount / seconds for name, (amount, seconds) in parts.items() if seconds > 0}

    def time_s(self, wall_s: float) -> dict[str, dict[str, float]]:
        """Seconds by what they went into, for the learner, for its optimizer steps, and for all engines together.

        The learner's parts add up to the wall clock, the steps' to its `train`, and the engines' busy and idle time to
        engines times wall clock; `new weights` lies within these two.
        """
        learner = {
            "train": self.learner("train_s"),
            "wait for batch": self.learner("lease_wait_s"),
            "publish": self.learner("publish_s"),
            "checkpoint": self.learner("checkpoint_s"),
        }
        learner["other"] = max(0.0, wall_s - sum(learner.values()))
        step = {
            name.removeprefix("train_phase/").removesuffix("_s"): seconds
            for name, seconds in self.training.get(LEARNER, {}).items()
            if name.startswith("train_phase/")
        }
        step["other"] = max(0.0, learner["train"] - sum(step.values()))
        engines = [counts for counts in self.training.values() if "busy_s" in counts]
        busy = sum(counts["busy_s"] for counts in engines)
        rollout = {
            "engine busy": busy,
            "engine idle": max(0.0, wall_s * len(engines) - busy),
            "new weights": sum(counts.get("activate_s", 0.0) for counts in engines),
        }
        return {"learner": learner, "step": step, "rollout": rollout}

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall,
            "training": self.training,
            "ages": {str(age): count for age, count in self.ages.items()},
            "activations": {name: [s.count, s.total, s.largest] for name, s in self.activations.items()},
            "wall_s": self.wall_s,
            "starts": self.starts,
            "redone_steps": self.redone_steps,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunTotals:
        """Also for another process: no reporter of the earlier start goes on."""
        totals = cls(**{name: data[name] for name in ("overall", "training", "wall_s", "starts", "redone_steps")})
        totals.ages.update({int(age): count for age, count in data["ages"].items()})
        totals.activations.update({name: Spread(*parts) for name, parts in data["activations"].items()})
        return totals
