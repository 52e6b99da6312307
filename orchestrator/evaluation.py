"""Held-out accuracy at a pinned policy version, with intervals, whole and by tag."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from actors.rollout_worker import EvaluatedTask, PinnedEvaluation
from rewards.statistics import wilson_interval


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of scored samples that were right, with its 95 % Wilson interval; `unscored` ones are not in `n`."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    unscored: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One look at the held-out tasks. `splits` has `all` and one entry per value of the tag."""

    step: int
    version: int
    seconds: float
    splits: Mapping[str, Accuracy]

    def as_dict(self) -> dict[str, object]:
        return {
            "step": self.step,
            "version": self.version,
            "seconds": self.seconds,
            "splits": {name: asdict(accuracy) for name, accuracy in self.splits.items()},
        }


def summarise(pinned: PinnedEvaluation, split_by: str | None) -> Evaluation:
    """Counts what the pinned version got right; a sample is right when the success component says so."""
    parts: dict[str, list[EvaluatedTask]] = defaultdict(list)
    for task in pinned.tasks:
        parts["all"].append(task)
        if split_by is not None and split_by in task.tags:
            parts[task.tags[split_by]].append(task)
    splits = {name: accuracy_of(tasks) for name, tasks in parts.items()}
    return Evaluation(pinned.step, int(pinned.version), pinned.seconds, splits)


def accuracy_of(tasks: Iterable[EvaluatedTask]) -> Accuracy:
    """Accuracy over all samples of the tasks."""
    verdicts = [verdict for task in tasks for verdict in task.verdicts]
    scored = [verdict for verdict in verdicts if verdict.score is not None]
    correct = sum(verdict.is_right for verdict in scored)
    if not scored:
        return Accuracy(n=0, correct=0, accuracy=float("nan"), low=0.0, high=1.0, unscored=len(verdicts))
    low, high = wilson_interval(correct, len(scored))
    return Accuracy(len(scored), correct, correct / len(scored), low, high, unscored=len(verdicts) - len(scored))
