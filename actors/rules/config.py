"""Options of the built-in rules for scored groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from actors.contexts.config import ContextSpec
from rewards.config import Section

DonorSource = Literal["expert", "teacher", "own_past", "other_run"]


class ComponentOptions(Section):
    component: str | None = None
    """Named part of the reward to look at, e.g. the accuracy beside a length penalty; None is the whole score."""


class ConstantOptions(ComponentOptions):
    tolerance: float = Field(default=1e-6, ge=0)
    """Scores this close together (largest minus smallest, reward units) count as equal."""


class UnscoredOptions(Section):
    min_scored: int = Field(default=2, ge=1)
    """Members that must have a score; a group with fewer members must have all of them scored."""


class RateOptions(ComponentOptions):
    low: float = Field(default=0.0, ge=0, le=1)
    """Groups with a smaller share of right answers are too hard."""
    high: float = Field(default=1.0, ge=0, le=1)
    """Groups with a larger share of right answers are too easy."""

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> RateOptions:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}, so every group would be dropped: swap them")
        return self


class RedoOptions(ComponentOptions):
    max: int = Field(ge=1)
    """How often one ticket's group may be sampled again."""
    contexts: tuple[ContextSpec, ...] = ()
    """Context of the first, second, ... further sampling; beyond them the last one, without any as it was leased."""


class GrowOptions(ComponentOptions):
    num: int = Field(ge=1)
    """Members added each time."""
    max: int = Field(ge=1)
    """How often one ticket's group may grow."""
    context: ContextSpec | None = None
    """Context the added members are sampled in; None is the one the task was leased in."""


class AllocationOptions(ComponentOptions):
    schedule: Literal["equal", "hardness"] = "equal"
    """equal: until the prompt's total advantage reaches the peak (ET). hardness: twice (1 - rate) of it (HW)."""
    max_members: int = Field(default=32, ge=2)
    """Members of a grown group at most."""
    normalised: bool = False
    """Advantages are divided by the deviation of their group."""


class SpliceOptions(ComponentOptions):
    source: DonorSource
    """Whose answers join the group."""
    table: str | None = None
    """Table they were stashed in; the source's name by default. Of `expert` it is the task's own answers."""
    count: int = Field(default=1, ge=1)
    """Donors at most."""
    when: Literal["always", "failed", "imperfect"] = "always"
    """failed: no member is right. imperfect: at least one is not."""
    places: Literal["nobody", "first", "failed"] = "failed"
    """Whose places they take. nobody: donors are added. first: the first members. failed: wrong ones at random."""
    pick: Literal["random", "newest", "likeliest", "surest", "best", "understood"] = "random"
    """likeliest: highest mean log-prob as recorded; surest: under the policy that samples now (ExGRPO). best: highest
    score. understood: the reference answer is most probable after it under the policy that samples now, as a mean of
    token probabilities (AMPO)."""


class StashOptions(ComponentOptions):
    table: str = "own_past"
    """Name donors are asked for by."""
    low: float = Field(default=0.0, ge=0, le=1)
    """Right answers are kept when more than this share of the group is right."""
    high: float = Field(default=1.0, ge=0, le=1)
    """And at most this share."""


class RetireOptions(ComponentOptions):
    rate: float = Field(default=0.9, gt=0, le=1)
    """Smallest share of right answers in a group that retires its prompt."""


class ForkOptions(ComponentOptions):
    context: ContextSpec = ContextSpec(kind="feedback")
    """What the new task shows beside the old one."""
    max_depth: int = Field(default=1, ge=1)
    """Forks of forks."""


class PerplexityOptions(Section):
    low: float = Field(default=1.0, ge=1)
    """Smallest perplexity of an answer under the policy that sampled it."""
    high: float = Field(default=100.0, ge=1)
    """Largest one."""

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> PerplexityOptions:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}, so nobody would stay: swap them")
        return self


class ProposalOptions(Section):
    num: int = Field(default=1, ge=1)
    """Valid problems of one proposer's group that are solved; the feed keeps at most 8 authors of one answer."""
    table: str = "proposals"
    """Table the authors wait in."""


class AuthorOptions(ComponentOptions):
    source: Literal["own_past"]
    """Source of the author, as a term names it."""
    table: str = "proposals"
    """Table the authors wait in."""
    pay: Literal["failure", "spread"] = "failure"
    """failure: share of the solvers that fail. spread: 4 x share that succeeds x share that fails."""


class FirstOptions(Section):
    num: int = Field(ge=1)
    """Members that are trained; the others only voted or moved the baseline of whoever judged them."""


def donor_sources(rules: Iterable[str | Mapping[str, Any]]) -> frozenset[str]:
    """Sources whose answers rules put into live groups: the `source` of every rule that has one, also of a user's."""
    return frozenset(str(rule["source"]) for rule in _with_donors(rules))


def donor_tables(rules: Iterable[str | Mapping[str, Any]]) -> frozenset[str]:
    """Tables of the prompt those rules read."""
    return frozenset(str(rule.get("table") or _default_table(rule)) for rule in _with_donors(rules)) - {"expert"}


def measured_picks(rules: Iterable[str | Mapping[str, Any]]) -> frozenset[str]:
    """What rules pick donors by and somebody has to measure first, with the policy that samples."""
    picks = (rule.get("pick") for rule in rules if not isinstance(rule, str))
    return frozenset(str(pick) for pick in picks if pick in ("understood", "surest"))


def _default_table(rule: Mapping[str, Any]) -> str:
    return "proposals" if rule.get("rule") == "join_proposer" else str(rule["source"])


def _with_donors(rules: Iterable[str | Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [rule for rule in rules if not isinstance(rule, str) and "source" in rule]
