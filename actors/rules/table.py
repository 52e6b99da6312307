"""The built-in rules: pure functions `(group, leased task, ledger row or None, **options) -> action or None`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from actors.contexts.config import ContextSpec
from actors.contexts.policy import as_context
from actors.draws import order_key
from actors.ledger import LedgerRow
from actors.ports import LeasedTask
from actors.rules.actions import Action, Drop, Fork, Grow, Redo, Retire, Splice, Stash
from actors.rules.config import (
    AllocationOptions,
    AuthorOptions,
    ConstantOptions,
    FirstOptions,
    ForkOptions,
    GrowOptions,
    PerplexityOptions,
    ProposalOptions,
    RateOptions,
    RedoOptions,
    RetireOptions,
    SpliceOptions,
    StashOptions,
    UnscoredOptions,
)
from actors.rules.linked import fork_proposals, join_proposer
from actors.rules.scores import all_wrong, success_rate, value_of, values
from rewards.config import Section
from rewards.trajectory import Context, Group, Trajectory

FORK_DEPTH = "fork_depth"
"""Key of a forked task's metadata: how many forks lie between it and a task of the stream."""


# -- keep or drop -----------------------------------------------------------------------------------------------------


def drop_constant(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, tolerance: float
) -> Drop | None:
    """Drops a group whose scored members all earned the same: it carries no group-relative gradient.

    With a shaped reward name the component that means success: a length penalty makes scores of an all-right group
    differ that dynamic sampling is meant to drop. With fewer than two scores nothing can be compared.

    Source: DAPO, arXiv:2503.14476, dynamic sampling (by accuracy).
    """
    found = values(group.trajectories, component)
    if len(found) < 2 or max(found) - min(found) > tolerance:
        return None
    return Drop("constant")


def drop_unscored(group: Group, leased: LeasedTask, row: LedgerRow | None, *, min_scored: int) -> Drop | None:
    """Drops a group of which too few members could be judged."""
    return Drop("unscored") if group.num_scored < min(min_scored, len(group.trajectories)) else None


def drop_rate(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, low: float, high: float
) -> Drop | None:
    """Keeps groups whose share of right answers (above 0) among the scored ones lies in [low, high]."""
    rate = success_rate(group, component)
    if rate is None:
        return None
    if rate < low:
        return Drop("too_hard")
    return Drop("too_easy") if rate > high else None


# -- sample more ------------------------------------------------------------------------------------------------------


def redo_failed(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    max: int,
    contexts: tuple[ContextSpec, ...] = (),
) -> Redo | None:
    """Samples a group again in which every scored answer is wrong (0 or below), at most `max` times.

    Each further sampling has the next context, e.g. a growing part of the solution. Feedback is about the group's
    first wrong answer.

    Source: GHPO (growing hints); Agent-RLVR (feedback on the attempt).
    """
    attempts = group.history.get("redo", 0)
    if not all_wrong(group, component) or attempts >= max:
        return None
    if not contexts:
        return Redo(leased.context)
    return Redo(_context(contexts[min(attempts, len(contexts) - 1)], group, leased, component))


def grow_failed(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    num: int,
    max: int,
    context: ContextSpec | None = None,
) -> Grow | None:
    """Adds members to a group in which every scored answer is wrong (0 or below), at most `max` times.

    Source: Guide, arXiv:2506.13923 (members with a hint that training removes); KEPO (one at a time until one is
    right).
    """
    if not all_wrong(group, component) or group.history.get("grow", 0) >= max:
        return None
    return Grow(num, leased.context if context is None else _context(context, group, leased, component))


def grow_hard(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    schedule: Literal["equal", "hardness"],
    max_members: int,
    normalised: bool,
) -> Grow | None:
    """Adds members to a group with fewer than half of the answers right, once, until its advantages weigh enough.

    See `extra_members`. A group nobody solved counts as solved by half a member. The grown group's mean is biased
    upward, because it is the hard groups that grow, and low first halves that are diluted most.

    Source: DARS, yangzhch6/DARS, verl/trainer/ppo/ray_dars_trainer.py.
    """
    members, rate = len(group.own_members), success_rate(group, component)
    if rate is None or rate >= 0.5 or group.history.get("grow", 0):
        return None
    extra = extra_members(members, rate, schedule=schedule, max_members=max_members, normalised=normalised)
    return Grow(extra, leased.context) if extra > 0 else None


def extra_members(
    num: int, rate: float, *, schedule: Literal["equal", "hardness"], max_members: int, normalised: bool
) -> int:
    """How many answers a prompt of this success rate gets beside its first `num`.

    The sum of |advantage| of num members is num x S with S = 2 u (1 - u), or 2 sqrt(u (1 - u)) when advantages are
    divided by the deviation; its peak over u is num / 2, or num. equal: ceil((peak - num S) / S); hardness:
    ceil((2 (1 - u) peak - num S) / S).
    """
    u = rate if rate > 0 else 1.0 / (2 * num)
    per_member = 2.0 * math.sqrt(u * (1 - u)) if normalised else 2.0 * u * (1 - u)
    peak = float(num) if normalised else num / 2
    goal = peak if schedule == "equal" else 2.0 * (1 - u) * peak
    extra = math.ceil((goal - num * per_member) / per_member - 1e-9)  # 60 + rounding is 60, not 61
    return max(0, min(extra, max_members - num))


# -- who else sits in the group ---------------------------------------------------------------------------------------


def splice_donors(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    source: str,
    table: str | None,
    count: int,
    when: Literal["always", "failed", "imperfect"],
    places: Literal["nobody", "first", "failed"],
    pick: Literal["random", "newest", "likeliest", "surest", "best", "understood"],
) -> Splice | None:
    """Answers of others to the same task join the group, or take the places of members; nothing without a donor.

    Source: LUFFY (always one expert), RLEP (always two own successes added), AMPO (failed, the two best understood),
    ARPO, BEPA (failed, one own success), ExGRPO (always one own success).
    """
    donors = list(leased.donors.get(table or source, ()))
    rate = success_rate(group, component)
    if not donors or (when == "failed" and rate != 0.0) or (when == "imperfect" and rate == 1.0):
        return None
    chosen = _picked(donors, pick, group.group_id)[:count]
    return Splice(tuple(chosen), _victims(group, component, places, len(chosen)))


def _picked(donors: list[Trajectory], pick: str, group_id: str) -> list[Trajectory]:
    """Best first; those that are equal in an order of the group's own."""
    shuffled = sorted(donors, key=lambda t: order_key(group_id, t.trajectory_id))
    if pick == "newest":
        return sorted(donors, key=lambda t: t.oldest_version or -1, reverse=True)
    if pick == "likeliest":
        return sorted(shuffled, key=_mean_logprob, reverse=True)
    if pick == "best":
        return sorted(shuffled, key=lambda t: -math.inf if t.score is None else t.score, reverse=True)
    if pick == "surest":
        return sorted(shuffled, key=lambda t: _extra(t, "logprob_now"), reverse=True)
    if pick == "understood":
        return sorted(shuffled, key=lambda t: _extra(t, "understood"), reverse=True)
    return shuffled


def _victims(group: Group, component: str | None, places: str, num: int) -> tuple[str, ...]:
    members = list(group.own_members)
    if places == "nobody":
        return ()
    if places == "failed":
        members = [t for t in members if (value_of(t, component) or 0.0) <= 0]
        members.sort(key=lambda t: order_key(group.group_id, t.trajectory_id))
    return tuple(t.trajectory_id for t in members[:num])


def keep_first(group: Group, leased: LeasedTask, row: LedgerRow | None, *, num: int) -> Splice | None:
    """Members beyond the first `num` leave the group once they have voted (TTRL)."""
    rest = tuple(t.trajectory_id for t in group.trajectories[num:])
    return Splice((), rest) if rest else None


def drop_perplexity(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, low: float, high: float
) -> Splice | Drop | None:
    """Members whose perplexity under the policy that sampled them lies outside [low, high] leave the group.

    Source: BFS-Prover (a middle band: neither known already nor noise); thresholds are ours.
    """
    outside = [t.trajectory_id for t in group.own_members if not low <= math.exp(-_mean_logprob(t)) <= high]
    if len(outside) == len(group.trajectories):
        return Drop("perplexity")
    return Splice((), tuple(outside)) if outside else None


# -- what is remembered -----------------------------------------------------------------------------------------------


def stash_right(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    table: str,
    low: float,
    high: float,
) -> Stash | None:
    """Right answers of a group whose success rate lies in (low, high] become donors of later groups of the prompt."""
    rate = success_rate(group, component)
    if rate is None or not low < rate <= high:
        return None
    right = [t.trajectory_id for t in group.own_members if (value_of(t, component) or 0.0) > 0]
    return Stash(table, tuple(right))


def retire_solved(
    group: Group, leased: LeasedTask, row: LedgerRow | None, *, component: str | None, rate: float
) -> Retire | None:
    """A prompt that was answered right so often, without help, is not drawn any more (ScaleRL, ExGRPO)."""
    found = success_rate(group, component)
    is_helped = any(t.sample_context.is_help for t in group.own_members)
    return Retire(group.prompt_id) if found is not None and found >= rate and not is_helped else None


def fork_failed(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    component: str | None,
    context: ContextSpec,
    max_depth: int,
) -> Fork | None:
    """A failed answer becomes a new task: the problem, the attempt, and what was wrong with it (Fission-GRPO)."""
    depth = leased.task.metadata.get(FORK_DEPTH, 0)
    wrong = _first_wrong(group, component)
    if wrong is None or not isinstance(depth, int) or depth >= max_depth:
        return None
    forked = replace(leased.task, metadata={**leased.task.metadata, FORK_DEPTH: depth + 1})
    return Fork(forked, _context(context, group, leased, component), attempt=wrong.trajectory_id)


RULES: dict[str, tuple[Callable[..., Action | tuple[Action, ...] | None], type[Section]]] = {
    "drop_constant": (drop_constant, ConstantOptions),
    "drop_perplexity": (drop_perplexity, PerplexityOptions),
    "drop_rate": (drop_rate, RateOptions),
    "drop_unscored": (drop_unscored, UnscoredOptions),
    "fork_failed": (fork_failed, ForkOptions),
    "fork_proposals": (fork_proposals, ProposalOptions),
    "grow_failed": (grow_failed, GrowOptions),
    "grow_hard": (grow_hard, AllocationOptions),
    "join_proposer": (join_proposer, AuthorOptions),
    "keep_first": (keep_first, FirstOptions),
    "redo_failed": (redo_failed, RedoOptions),
    "retire_solved": (retire_solved, RetireOptions),
    "splice_donors": (splice_donors, SpliceOptions),
    "stash_right": (stash_right, StashOptions),
}
"""Built-in rules, by the name a config uses, with the options each takes."""


def _context(spec: ContextSpec, group: Group, leased: LeasedTask, component: str | None) -> Context:
    """The spec for this group; feedback is about its first wrong answer."""
    context = as_context(spec, leased.index, group.group_id)
    if spec.kind != "feedback":
        return context
    wrong = _first_wrong(group, component)
    return replace(context, reference=None if wrong is None else wrong.trajectory_id)


def _first_wrong(group: Group, component: str | None) -> Trajectory | None:
    scored = ((t, value_of(t, component)) for t in group.own_members)
    return next((t for t, value in scored if value is not None and value <= 0), None)


def _mean_logprob(member: Trajectory) -> float:
    """Nats per sampled token as recorded; minus infinity where unknown."""
    recorded = member.behavior_logprobs[member.sampled_mask]
    mean = float(recorded.mean()) if len(recorded) else 0.0
    return mean if math.isfinite(mean) else -math.inf


def _extra(member: Trajectory, name: str) -> float:
    value = None if member.verdict is None else member.verdict.extras.get(name)
    return float(value) if isinstance(value, (int, float)) else -math.inf
