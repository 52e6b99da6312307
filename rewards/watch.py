"""Watches how the paid answers change: the signs that a policy has found a way around its reward.

Pure state, standard library only. The first samples of a reward worker's life are the baseline, the newest ones are
compared with it, in standard deviations of the baseline.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewards.config import WatchConfig
from rewards.verdict import Verdict

REWARD, LENGTH, REPETITION = "reward", "length", "repetition"
NGRAM = 3
SHORT = 16
"""Characters; a paid answer shorter than that is worth a look where answers should show their work."""
MIN_SPREAD = 1e-3
"""Deviation a constant baseline is taken to have, so that leaving it shows without being infinite."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the watch keeps of one scored sample.

    Attributes:
        values: reward, length in tokens, share of repeated n-grams, and under `component/NAME` each component's score.
        agrees: whether reward and held-out verifier both paid or both did not; None without a held-out verdict.
    """

    task_id: str
    answer: int
    is_paid: bool
    is_short: bool
    values: Mapping[str, float]
    agrees: bool | None


class RewardWatch:
    """Compares the newest `window` scored samples with the first `window` ones.

    Alarms, each with its reason: `length` and `repetition` grew beyond their limits; `agreement` with the held-out
    verifier fell; `gap`: the reward rose while the held-out score did not follow; `same_answer`: unrelated tasks get
    one answer.
    """

    def __init__(self, config: WatchConfig) -> None:
        self._config = config
        self._baseline: list[Seen] = []
        self._recent: deque[Seen] = deque(maxlen=config.window)
        self._starts: dict[str, tuple[float, float]] = {}
        """Mean and deviation of the baseline by value, once it is complete."""

    def add(self, task_id: str, answer: str, num_tokens: int, verdict: Verdict) -> None:
        """Takes one live sample; one without a score says nothing about the policy."""
        if verdict.score is None:
            return
        values = {REWARD: verdict.score, LENGTH: float(num_tokens), REPETITION: repeated_share(answer)}
        values |= {f"component/{name}": score for name, score in verdict.components.items() if score is not None}
        held_out = verdict.components.get(self._config.held_out or "")
        agrees = None if held_out is None else (held_out > 0) == (verdict.score > 0)
        text = " ".join(answer.split())
        is_paid = verdict.score > 0
        seen = Seen(task_id, hash(text), is_paid, is_paid and len(text) < SHORT, values, agrees)
        self._recent.append(seen)
        if len(self._baseline) < self._config.window:
            self._baseline.append(seen)
            if len(self._baseline) == self._config.window:
                names = {name for sample in self._baseline for name in sample.values}
                self._starts = {name: _mean_and_deviation(_values(self._baseline, name)) for name in names}

    def stats(self) -> dict[str, float]:
        """Means of the newest samples, drifts in deviations of the baseline (0 until it is complete), and alarms."""
        if not self._recent:
            return {}
        names = sorted({name for sample in self._recent for name in sample.values})
        numbers = {f"watch/{name}_mean": _mean(_values(self._recent, name)) for name in names}
        numbers |= {f"watch/{name}_drift": self._drift(name) for name in names}
        paid = [sample for sample in self._recent if sample.is_paid]
        numbers["watch/paid_short_share"] = sum(s.is_short for s in paid) / max(len(paid), 1)
        numbers["watch/same_answer_share"] = self._same_answer_share()
        if (agreement := _agreement(self._recent)) is not None:
            numbers["watch/agreement"] = agreement
        numbers["watch/alarms"] = len(self.alarms())
        return numbers

    def alarms(self) -> dict[str, str]:
        """Reason of each alarm that rings now, by kind; none before there is a baseline to compare with."""
        if not self._starts or len(self._recent) < self._config.window:
            return {}
        config, found = self._config, {}
        for name, limit in ((LENGTH, config.max_length_drift), (REPETITION, config.max_repetition_drift)):
            if (drift := self._drift(name)) > limit:
                mean, start = _mean(_values(self._recent, name)), self._starts[name][0]
                found[name] = (
                    f"{name} rose from {start:.3g} to {mean:.3g}, {drift:.1f} deviations; the limit is {limit:g}"
                )
        before, now = _agreement(self._baseline), _agreement(self._recent)
        if before is not None and now is not None and before - now > config.max_agreement_drop:
            found["agreement"] = f"agreement of reward and {config.held_out!r} fell from {before:.0%} to {now:.0%}"
        held_out = f"component/{config.held_out}"
        if config.held_out and held_out in self._starts:
            ahead = self._drift(REWARD) - max(self._drift(held_out), 0.0)
            if ahead > config.max_gap:
                found["gap"] = (
                    f"the reward rose {ahead:.1f} deviations more than {config.held_out!r}, which it should follow"
                )
        if (share := self._same_answer_share()) > config.max_same_answer:
            found["same_answer"] = f"one answer is given to {share:.0%} of the recent tasks"
        return found

    def _drift(self, name: str) -> float:
        """Mean of the newest samples minus that of the baseline, in deviations of the baseline."""
        if name not in self._starts:
            return 0.0
        mean, deviation = self._starts[name]
        return (_mean(_values(self._recent, name)) - mean) / max(deviation, MIN_SPREAD * max(abs(mean), 1.0))

    def _same_answer_share(self) -> float:
        """Largest share of the recent tasks that one answer was given to; 0 for a single task."""
        tasks = {sample.task_id for sample in self._recent}
        if len(tasks) < 2:
            return 0.0
        pairs = {(sample.answer, sample.task_id) for sample in self._recent}
        return max(Counter(answer for answer, _ in pairs).values()) / len(tasks)


def repeated_share(answer: str) -> float:
    """Share of a text's word triples that stood in it before; 0 for shorter texts."""
    words = answer.lower().split()
    total = len(words) - NGRAM + 1
    if total < 1:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(NGRAM)), strict=False))) / total


def _values(samples: Iterable[Seen], name: str) -> list[float]:
    return [sample.values[name] for sample in samples if name in sample.values]


def _agreement(samples: Iterable[Seen]) -> float | None:
    known = [sample.agrees for sample in samples if sample.agrees is not None]
    return sum(known) / len(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    mean = _mean(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
