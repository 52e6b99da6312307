"""How many rollout workers a run should have: a pure function of what was seen lately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config import ScalingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a period has shown.

    Attributes:
        num_workers: rollout workers the run has or waits for.
        wait_share: share of the period in which the learner waited for a batch, 0 to 1.
        fill: live groups that are ready, over those of one batch.
        blocked_share: share of the rollout loops that wait for a ticket, because the age bound holds them back.
        queue: answers waiting for a free slot, per engine.
        num_too_old: groups dropped for their age in the period.
    """

    num_workers: int
    wait_share: float
    fill: float
    blocked_share: float
    queue: float
    num_too_old: int


@dataclass(frozen=True, slots=True)
class Advice:
    """A number of rollout workers, and why."""

    num_workers: int
    reason: str


def advise(load: Load, config: ScalingConfig) -> Advice:
    """One worker more, one less, or as many as now.

    More: the learner waits and no batch lies ready, while the workers are not held back by the age bound; then
    another engine is what is missing. Less: the learner hardly waits, and the workers wait for tickets or groups grow
    too old; then some engine's work is for nothing. Between the two thresholds nothing changes, so that a run does not
    swing. One worker at a time, because a period later the effect is seen.
    """
    now, highest = load.num_workers, config.max_rollout_workers
    if highest is None:
        return Advice(now, "off: scaling.max_rollout_workers is not set")
    if now > highest or now < config.min_rollout_workers:
        bounds = f"{config.min_rollout_workers} to {highest}"
        return Advice(min(max(now, config.min_rollout_workers), highest), f"outside the bounds of {bounds}")
    held_back = load.blocked_share > config.blocked_share
    if load.wait_share > config.wait_share_high and load.fill < 1 and not held_back:
        seen = f"the learner waited {load.wait_share:.0%} of the time, {load.queue:.3g} answers queue per engine"
        return Advice(min(now + 1, highest), seen if now < highest else f"{seen}, but {highest} is the most")
    if load.wait_share < config.wait_share_low and (held_back or load.num_too_old):
        seen = f"the learner waited {load.wait_share:.0%} of the time, {load.blocked_share:.0%} of the rollout loops"
        seen = f"{seen} wait for tickets, {load.num_too_old} groups grew too old"
        return Advice(max(now - 1, config.min_rollout_workers), seen)
    return Advice(now, "in balance")


class LoadMeter:
    """Turns running counts into the load of each period."""

    def __init__(self, num_loops_per_worker: int, groups_per_batch: int) -> None:
        self._num_loops, self._groups_per_batch = num_loops_per_worker, max(groups_per_batch, 1)
        self._before: tuple[float, float, float] | None = None

    def measure(
        self,
        *,
        wall_s: float,
        lease_wait_s: float,
        num_workers: int,
        replay: Mapping[str, Any],
        engines: Mapping[str, Mapping[str, float]],
    ) -> Load | None:
        """The load since the previous call; None at the first one, and when no time has passed.

        Args:
            wall_s: training wall clock so far.
            lease_wait_s: seconds the learner has waited for batches so far.
            replay: newest numbers of the replay cache.
            engines: newest numbers of each rollout worker.
        """
        too_old = sum(value for name, value in replay.items() if name.startswith("dropped/live/too_old"))
        before, self._before = self._before, (wall_s, lease_wait_s, too_old)
        if before is None or wall_s <= before[0]:
            return None
        passed = wall_s - before[0]
        return Load(
            num_workers=num_workers,
            wait_share=min(max((lease_wait_s - before[1]) / passed, 0.0), 1.0),
            fill=replay.get("groups/ready/live", 0.0) / self._groups_per_batch,
            blocked_share=min(replay.get("waiting_for_ticket", 0.0) / max(num_workers * self._num_loops, 1), 1.0),
            queue=sum(values.get("waiting", 0.0) for values in engines.values()) / max(len(engines), 1),
            num_too_old=int(too_old - before[2]),
        )
