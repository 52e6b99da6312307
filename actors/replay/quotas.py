"""How many groups of each source a batch takes: exact rationals over the running total, never rounded per batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

LIVE = "live"


class QuotaPlan:
    """The composition of every batch, fixed by the configuration alone.

    With share f of a source and B groups per batch, batch t takes floor(f*B*(t+1)) - floor(f*B*t) of its groups, so
    that the running total is never off by a whole group; f=3/10 and B=32 alternate between 9 and 10. Live groups are
    the rest. Where several fractional shares would together exceed one batch, the last declared source waits with
    its remainder for the next batch.
    """

    def __init__(self, groups_per_update: int, quotas: Mapping[str, Fraction]) -> None:
        """Raises ValueError when the shares exceed the whole batch."""
        if sum(quotas.values(), Fraction(0)) > 1:
            raise ValueError(
                f"quotas {dict(quotas)} sum to more than the whole batch: lower them to at most 1 together"
            )
        self.groups_per_update = groups_per_update
        self.shares = dict(quotas)
        self._totals: list[tuple[int, ...]] = [(0,) * len(quotas)]
        """Groups of each source in all batches before step t, at index t."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources other than live, in declared order."""
        return tuple(self.shares)

    @property
    def has_live(self) -> bool:
        return sum(self.shares.values(), Fraction(0)) < 1

    def counts(self, step: int) -> dict[str, int]:
        """Groups per source of the batch of this step, live included; they sum to `groups_per_update`."""
        before, after = self._total(step), self._total(step + 1)
        frozen = {source: b - a for source, a, b in zip(self.shares, before, after, strict=True)}
        return {**frozen, LIVE: self.groups_per_update - sum(frozen.values())}

    def live_total(self, steps: int) -> int:
        """Live groups of the first `steps` batches together."""
        return steps * self.groups_per_update - sum(self._total(steps))

    def _total(self, steps: int) -> tuple[int, ...]:
        while len(self._totals) <= steps:
            self._totals.append(self._after(len(self._totals), self._totals[-1]))
        return self._totals[steps]

    def _after(self, steps: int, before: tuple[int, ...]) -> tuple[int, ...]:
        room = self.groups_per_update
        totals = []
        for share, total in zip(self.shares.values(), before, strict=True):
            granted = min(floor(share * self.groups_per_update * steps) - total, room)
            room -= granted
            totals.append(total + granted)
        return tuple(totals)


@dataclass(frozen=True, slots=True)
class Composition:
    """What one batch can be made of right now.

    Attributes:
        take: groups to hand out by source; they sum to `groups_per_update` when nothing is missing.
        shortfall: groups a source could not supply and another one fills, by the source that fell short.
        missing: groups nobody can supply yet, by source; empty when the batch is complete.
    """

    take: Mapping[str, int]
    shortfall: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)


def compose(plan: QuotaPlan, step: int, ready: Mapping[str, int]) -> Composition:
    """Fits the planned counts of a step to the groups at hand.

    A frozen source cannot grow while the batch waits, so what it lacks is filled at once by the sources declared
    after it (live stands last and can be waited for); without live rollouts, by those before it as well. Live groups
    are never filled in from elsewhere: the batch waits for them.
    """
    planned = plan.counts(step)
    take = {source: min(planned[source], ready.get(source, 0)) for source in plan.sources}
    live, shortfall, missing = planned[LIVE], {}, {}
    for position, source in enumerate(plan.sources):
        short = planned[source] - min(planned[source], ready.get(source, 0))
        if short == 0:
            continue
        after, before = plan.sources[position + 1 :], plan.sources[:position]
        unfilled = _fill(short, after if plan.has_live else (*after, *before), take, ready)
        if plan.has_live:
            live, unfilled = live + unfilled, 0
        if unfilled < short:
            shortfall[source] = short - unfilled
        if unfilled:
            missing[source] = unfilled
    take[LIVE] = min(live, ready.get(LIVE, 0))
    if take[LIVE] < live:
        missing[LIVE] = live - take[LIVE]
    return Composition(take, shortfall, missing)


def _fill(short: int, donors: tuple[str, ...], take: dict[str, int], ready: Mapping[str, int]) -> int:
    """Takes spare groups of the donors in order; returns what is still unfilled."""
    for donor in donors:
        spare = min(short, ready.get(donor, 0) - take[donor])
        take[donor] += spare
        short -= spare
    return short


def shortage(composition: Composition, num_running: int, held_back: Sequence[str] = ()) -> str:
    """What a batch still needs, for whoever waits for it; `held_back` says why other sources do not fill it."""
    parts = []
    for source, missing in composition.missing.items():
        ready = composition.take.get(source, 0)
        part = f"need {ready + missing} {source} groups: {ready} ready"
        parts.append(f"{part}, {num_running} running" if source == LIVE else part)
    return "; ".join([*parts, *(held_back if parts else ())])
