"""What overlapping sampling and training can gain: a list-scheduling simulation without any of the system's own code.

Time is counted in answer lengths: a sequence occupies one of `slots` places for as long as it has tokens, whatever
runs beside it, and training one batch takes a fixed time.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_SIMULATED_SAMPLES = 40_000
MIN_STEPS, MAX_STEPS = 12, 200
WARM_UP = 1 / 4
"""Share of the steps that are left out of a steady state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is sampled and trained.

    Attributes:
        groups_per_update, group_size: live groups of one update, and answers per group.
        slots: sequences that run at the same time, all workers together.
        cut: the longest answer over the mean of the lengths before they are cut; lengths are lognormal.
        sigma: standard deviation of the logarithm of the length.
        train_ratio: time to train one batch over the time to sample it with every slot always busy.
    """

    groups_per_update: int
    group_size: int
    slots: int
    cut: float = 3.0
    sigma: float = 1.0
    train_ratio: float = 1.0

    @property
    def samples_per_update(self) -> int:
        return self.groups_per_update * self.group_size


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapGain:
    """Throughput over that of sampling and training in turn.

    Attributes:
        one_step_off: each batch is sampled while the one before it is trained.
        this_run: under the admission rule and the age gate of `max_age`.
        fully_asynchronous: the bound, max(sampling, training) with no slot ever idle.
        dropped_share: groups of `this_run` that were too old when their turn came, over all finished ones.
        slots_per_batch: slots over samples per update; where a batch fills few slots twice, its tail costs most.
    """

    one_step_off: float
    this_run: float
    fully_asynchronous: float
    dropped_share: float
    slots_per_batch: float


def overlap_gain(workload: Workload, *, max_age: int, seed: int = 0) -> OverlapGain:
    """Gains over the synchronous schedule, averaged over simulated updates.

    Raises:
        ValueError: no samples, no slots, or a cut or training time that is not positive.
    """
    if min(workload.samples_per_update, workload.slots) < 1 or workload.cut <= 0 or workload.train_ratio < 0:
        raise ValueError(f"nothing to simulate in {workload}")
    num_steps = int(np.clip(MAX_SIMULATED_SAMPLES // workload.samples_per_update, MIN_STEPS, MAX_STEPS))
    lengths = _lengths(workload, num_steps, seed)
    sampling_s = workload.samples_per_update * float(lengths.mean()) / workload.slots
    training_s = workload.train_ratio * sampling_s
    makespans = np.array([_makespan(batch, workload.slots) for batch in lengths])
    synchronous_s = float(makespans.mean()) + training_s
    one_step_off_s = float(np.maximum(makespans, training_s).mean())
    run_s, dropped_share = _simulate(workload, lengths.ravel(), training_s, max_age=max_age, num_steps=num_steps)
    return OverlapGain(
        one_step_off=synchronous_s / one_step_off_s,
        this_run=synchronous_s / run_s,
        fully_asynchronous=synchronous_s / max(sampling_s, training_s),
        dropped_share=dropped_share,
        slots_per_batch=workload.slots / workload.samples_per_update,
    )


def _lengths(workload: Workload, num_steps: int, seed: int) -> npt.NDArray[np.float64]:
    """[steps, samples] lognormal with mean 1 before the cut."""
    shape = (num_steps, workload.samples_per_update)
    uncut = np.random.default_rng(seed).lognormal(-(workload.sigma**2) / 2, workload.sigma, shape)
    return np.minimum(uncut, workload.cut)


def _makespan(lengths: npt.NDArray[np.float64], slots: int) -> float:
    """When the last of the sequences ends, each started on the first free slot."""
    ends = lengths[:slots].tolist()
    heapq.heapify(ends)
    for length in lengths[slots:].tolist():
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def _simulate(
    workload: Workload, lengths: npt.NDArray[np.float64], training_s: float, *, max_age: int, num_steps: int
) -> tuple[float, float]:
    """(time per update in the steady state, dropped share) of a run whose groups may be `max_age` updates old."""
    run = _Run(workload, itertools.cycle(lengths.tolist()), max_age)
    commits: list[float] = []
    now, trained_at = 0.0, None
    while len(commits) < num_steps:
        run.admit(len(commits), in_training=trained_at is not None)
        run.start_sequences(now, len(commits))
        if trained_at is None and run.take_batch(len(commits)):
            trained_at = now + training_s
            continue
        if trained_at is None and run.next_end == math.inf:
            continue  # what was ready has just been dropped; there is room for new groups now
        if trained_at is not None and trained_at <= run.next_end:
            now, trained_at = trained_at, None
            commits.append(now)
        else:
            now = run.finish_sequence()
    first = int(WARM_UP * num_steps)
    return (commits[-1] - commits[first]) / (num_steps - 1 - first), run.dropped / max(run.finished, 1)


class _Run:
    """Groups that wait, run and are ready."""

    def __init__(self, workload: Workload, lengths: Iterator[float], max_age: int) -> None:
        self._workload, self._lengths, self._max_age = workload, lengths, max_age
        self._free = workload.slots
        self._waiting: deque[int] = deque()
        """Group of each sequence that has no slot yet."""
        self._running: list[tuple[float, int]] = []
        self._left: dict[int, int] = {}
        """Unfinished sequences of each group that is not ready."""
        self._version: dict[int, int] = {}
        self._ready: deque[int] = deque()
        self._num_groups = 0
        self.finished = self.dropped = 0

    @property
    def next_end(self) -> float:
        return self._running[0][0] if self._running else math.inf

    def admit(self, committed: int, *, in_training: bool) -> None:
        """accepted + running <= (max_age + committed + 1) * fresh, with the trained groups left out on both sides."""
        fresh = self._workload.groups_per_update
        room = (self._max_age + 1) * fresh - len(self._ready) - len(self._left) - (fresh if in_training else 0)
        for _ in range(room):
            group, self._num_groups = self._num_groups, self._num_groups + 1
            self._left[group] = self._workload.group_size
            self._waiting.extend([group] * self._workload.group_size)

    def start_sequences(self, now: float, committed: int) -> None:
        while self._free and self._waiting:
            group = self._waiting.popleft()
            self._version.setdefault(group, committed)
            heapq.heappush(self._running, (now + next(self._lengths), group))
            self._free -= 1

    def finish_sequence(self) -> float:
        now, group = heapq.heappop(self._running)
        self._free += 1
        self._left[group] -= 1
        if self._left[group] == 0:
            del self._left[group]
            self._ready.append(group)
            self.finished += 1
        return now

    def take_batch(self, committed: int) -> bool:
        """Drops what is too old; takes the oldest groups when there are enough for a batch."""
        young = [g for g in self._ready if committed - self._version[g] <= self._max_age]
        self.dropped += len(self._ready) - len(young)
        self._ready = deque(young)
        if len(young) < self._workload.groups_per_update:
            return False
        for _ in range(self._workload.groups_per_update):
            self._ready.popleft()
        return True
