"""From the scores of a batch to the advantages of its members. Pure; no gradient exists here.

A named advantage (`ADVANTAGES`) is a composition of operations on a `ScoredBatch`: a baseline inside each group, then
a scale, then a shape. NaN in its result leaves a trajectory out of the term altogether, denominators included.

Every operation inside a group takes the scores [G] of one group and the members that are compared [G] (scored, and of
the source being trained). The others take no part in any statistic and get 0; what their scores hold is never read, so
NaN is fine. A group whose compared scores are all equal, and so also a group of one, teaches nothing: exactly 0 for
every function that subtracts a baseline. (Some implementations set mean 0 and deviation 1 for a group of one, which
pushes up any single answer with a positive reward.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
GroupOperation = Callable[[Float64Array, BoolArray], Float64Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredBatch:
    """All trajectories of a batch, groups and members in order.

    Attributes:
        scores: [n] reward units; read only where compared.
        compared: [n] bool, the members that statistics look at.
        groups: [n] int64, members of one group have one number.
        lengths: [n] int64 tokens that would be trained.
        components: [n] each, parts of the scores by name; NaN where a member has no such part.
        stages: [n] int64, in which sampling of its group a member was drawn, 0 for the first; empty means all in one.
        fresh: [n] bool, answers the policy itself has just sampled; None: all of them.
        of_source: [n] bool, answers of the term's own source, not of the one it stands against; None: all of them.
        greedy: [n] bool, scored answers at temperature 0, which are not compared; None: there are none.
        loglikelihoods: [n] nats of the whole answer under the policy that sampled it; NaN or None where unknown.
    """

    scores: Float64Array
    compared: BoolArray
    groups: Int64Array
    lengths: Int64Array
    components: Mapping[str, Float64Array] = field(default_factory=dict)
    stages: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    fresh: BoolArray | None = None
    of_source: BoolArray | None = None
    greedy: BoolArray | None = None
    loglikelihoods: Float64Array | None = None


AdvantageFunction = Callable[..., Float64Array]


def group_relative(scores: Float64Array, compared: BoolArray, *, eps: float = 1e-6) -> Float64Array:
    """(score - mean) / (std + eps), std with n - 1.

    Args:
        scores: [G] reward units; read only where compared.
        compared: [G] bool.

    Returns:
        [G] float64, in standard deviations of the group.

    Raises:
        ValueError: shapes differ, or a compared score is not finite.

    Source: GRPO, arXiv:2402.03300, section 4.1.2.
    """
    advantages = centered(scores, compared)
    if not advantages.any():
        return advantages
    return advantages / (scores[compared].std(ddof=1) + eps)


def centered(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """score - mean: no division, so hard and easy groups keep their own scale.

    Args, Returns, Raises: as `group_relative`; reward units.

    Source: Dr. GRPO, arXiv:2503.20783.
    """
    _check(scores, compared)
    advantages = np.zeros(len(scores))
    values = scores[compared]
    if len(values) and values.min() != values.max():  # equal scores: rounding of their mean must not teach
        advantages[compared] = values - values.mean()
    return advantages


def leave_one_out(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """score - mean of the other members' scores, an unbiased baseline.

    Args, Returns, Raises: as `group_relative`; reward units.

    Source: RLOO, arXiv:2402.14740.
    """
    advantages = centered(scores, compared)
    n = int(np.count_nonzero(compared))
    return advantages * (n / (n - 1)) if n > 1 else advantages


def score(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """The score itself: no baseline, also for a group of one.

    Args, Returns, Raises: as `group_relative`; reward units.
    """
    _check(scores, compared)
    return np.where(compared, scores, 0.0)


GROUP_OPERATIONS: Mapping[str, GroupOperation] = {
    "group_relative": group_relative,
    "centered": centered,
    "leave_one_out": leave_one_out,
    "score": score,
}
"""Advantages that look at one group and nothing else of it than scores."""


def best_over_second(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """Only the best member gets an advantage: its score minus the second best. A tie at the top gives 0.

    Args, Returns, Raises: as `group_relative`; reward units.

    Source: the pass@k variant of GRPO as in verl; also arXiv:2503.19595.
    """
    _check(scores, compared)
    advantages = np.zeros(len(scores))
    members = np.flatnonzero(compared)
    if len(members) > 1:
        order = members[np.argsort(scores[members], kind="stable")]
        advantages[order[-1]] = scores[order[-1]] - scores[order[-2]]
    return advantages


def over_mean(scores: Float64Array, compared: BoolArray, *, eps: float = 1e-6) -> Float64Array:
    """(score - mean) / (mean + eps): the harder the task, the larger its weight.

    Unlike the published code a group of one gets 0, like everywhere here. Scores must not be negative.

    Args, Returns, Raises: as `group_relative`; also ValueError for a negative compared score.

    Source: MaxRL, arXiv:2602.02710.
    """
    advantages = centered(scores, compared)
    values = scores[compared]
    if len(values) and values.min() < 0:
        raise ValueError(
            f"max_likelihood divides by the mean score, which negative scores make meaningless: got {values.tolist()}; "
            "use scores of at least 0, or another advantage"
        )
    return advantages / (values.mean() + eps) if advantages.any() else advantages


def log_mean_exp_centered(scores: Float64Array, compared: BoolArray, *, temperature: float = 1.0) -> Float64Array:
    """score - temperature * log(mean(exp(score / temperature))): between the mean and the best of the group.

    Args, Returns, Raises: as `group_relative`; reward units. Also ValueError when temperature is not above 0.

    Source: online policy mirror descent; Kimi k1.5, arXiv:2501.12599, section 2.3.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    _check(scores, compared)
    advantages = np.zeros(len(scores))
    values = scores[compared]
    if len(values) and values.min() != values.max():
        top = values.max()
        advantages[compared] = values - (top + temperature * np.log(np.exp((values - top) / temperature).mean()))
    return advantages


# ---------------------------------------------------------------------------------------- operations on a whole batch


def in_groups(batch: ScoredBatch, operation: GroupOperation, scores: Float64Array | None = None) -> Float64Array:
    """[n] `operation` in each group of the batch, on its scores or on other numbers [n] in their place."""
    scores = batch.scores if scores is None else scores
    advantages = np.zeros(len(scores))
    for group in np.unique(batch.groups):
        members = batch.groups == group
        advantages[members] = operation(scores[members], batch.compared[members])
    return advantages


def whitened_over_tokens(values: Float64Array, batch: ScoredBatch, *, eps: float = 1e-8) -> Float64Array:
    """(value - mean) / sqrt(variance + eps) over all tokens of the batch, n - 1: long answers count by their length."""
    counts = np.where(batch.compared, batch.lengths, 0)
    total = int(counts.sum())
    taken = counts > 0
    if total < 2 or values[taken].min() == values[taken].max():
        return np.zeros(len(values))
    mean = (counts[taken] * values[taken]).sum() / total
    variance = (counts[taken] * (values[taken] - mean) ** 2).sum() / (total - 1)
    return np.where(taken, (values - mean) / np.sqrt(variance + eps), 0.0)


def without_outliers(values: Float64Array, *, bound: float = 3.0) -> Float64Array:
    """0 where a whitened value lies more than `bound` deviations from 0, the value elsewhere."""
    return np.where(np.abs(values) <= bound, values, 0.0)


# --------------------------------------------------------------------------------------------------- named advantages


def _of_groups(operation: GroupOperation) -> AdvantageFunction:
    def advantage(batch: ScoredBatch) -> Float64Array:
        return in_groups(batch, operation)

    return advantage


def stage_centered(batch: ScoredBatch, *, weight: float = 1.0) -> Float64Array:
    """score - baseline, where a group that grew mixes the means of its last sampling and of the earlier ones.

    baseline = weight * mean of the last stage + (1 - weight) * mean of the others. The first stage decides which
    groups grow, so their mean over all members is biased; the last stage's own is not. A group of one stage is
    `centered`.

    Source: DARS, yangzhch6/DARS, whose code takes the combined mean (our `centered`).
    """
    if not len(batch.stages):
        return in_groups(batch, centered)
    advantages = np.zeros(len(batch.scores))
    for group in np.unique(batch.groups):
        members = np.flatnonzero((batch.groups == group) & batch.compared)
        values, stages = batch.scores[members], batch.stages[members]
        if not len(members) or values.min() == values.max():
            continue
        last = stages == stages.max()
        baseline = values[last].mean()
        if not last.all():
            baseline = weight * baseline + (1.0 - weight) * values[~last].mean()
        advantages[members] = values - baseline
    return advantages


def length_weighted(batch: ScoredBatch) -> Float64Array:
    """score - sum(length * score) / sum(length) in the group: the baseline of least variance for sums over tokens.

    Source: OPO, arXiv:2505.23585.
    """
    advantages = np.zeros(len(batch.scores))
    for group in np.unique(batch.groups):
        members = np.flatnonzero((batch.groups == group) & batch.compared & (batch.lengths > 0))
        values, lengths = batch.scores[members], batch.lengths[members]
        if len(members) and values.min() != values.max():
            advantages[members] = values - (lengths * values).sum() / lengths.sum()
    return advantages


def batch_relative(batch: ScoredBatch, *, eps: float = 1e-6) -> Float64Array:
    """(score - mean of the group) / (std of all raw scores of the batch + eps), std with n - 1.

    Source: Lite PPO, arXiv:2508.08221.
    """
    advantages = in_groups(batch, centered)
    scores = batch.scores[batch.compared]
    return advantages / (scores.std(ddof=1) + eps) if advantages.any() else advantages


def whitened(batch: ScoredBatch) -> Float64Array:
    """The score on every token, whitened over all tokens of the batch. Exact for a reward at the end and no discount.

    Source: REINFORCE++, arXiv:2501.03262.
    """
    return whitened_over_tokens(in_groups(batch, score), batch)


def centered_whitened(batch: ScoredBatch) -> Float64Array:
    """score - mean of the group, whitened over all tokens of the batch.

    Source: REINFORCE++ with baseline, arXiv:2501.03262.
    """
    return whitened_over_tokens(in_groups(batch, centered), batch)


def nonzero_scaled(batch: ScoredBatch) -> Float64Array:
    """(score - mean of the group) * trajectories / trajectories with a score other than 0.

    Source: GPG, arXiv:2504.02546.
    """
    advantages = in_groups(batch, centered)
    nonzero = int(np.count_nonzero(batch.scores[batch.compared]))
    return advantages * (int(np.count_nonzero(batch.compared)) / nonzero) if nonzero else advantages


def shifted(batch: ScoredBatch, *, shift: float = -0.1) -> Float64Array:
    """score - (mean of the group + shift): a negative shift learns more from successes than from failures of stale
    data. A group of equal scores gets -shift, not 0.

    Source: AsymRE, arXiv:2506.20520.
    """
    return np.where(batch.compared, in_groups(batch, centered) - shift, 0.0)


def log_mean_exp(batch: ScoredBatch, *, temperature: float = 1.0) -> Float64Array:
    """`log_mean_exp_centered` in each group."""
    return in_groups(batch, lambda s, c: log_mean_exp_centered(s, c, temperature=temperature))


def positives_only(batch: ScoredBatch, *, correct_from: float = 1.0) -> Float64Array:
    """1 for answers that score at least `correct_from`; all others are left out, also of the denominators.

    Source: PSR, arXiv:2506.01347.
    """
    return np.where(in_groups(batch, score) >= correct_from, 1.0, np.nan)


def negatives_only(batch: ScoredBatch, *, correct_from: float = 1.0) -> Float64Array:
    """-1 for answers that score less than `correct_from`; all others are left out, also of the denominators.

    Nothing but a clipped ratio bounds the loss from below. Source: NSR, arXiv:2506.01347.
    """
    return np.where(in_groups(batch, score) < correct_from, -1.0, np.nan)


def sign_weighted(batch: ScoredBatch, *, positive: float = 0.1, correct_from: float = 1.0) -> Float64Array:
    """`positive` for answers that score at least `correct_from`, -1 for all others; no baseline.

    Source: W-REINFORCE, arXiv:2506.01347.
    """
    return np.where(in_groups(batch, score) >= correct_from, positive, -1.0)


def outliers_removed(batch: ScoredBatch, *, bound: float = 3.0) -> Float64Array:
    """`group_relative`, whitened over tokens, and 0 beyond `bound` deviations.

    The paper's three-sigma filter; its code compares the whitened values with the raw mean +-3.
    Source: StableReinforce, arXiv:2505.02835.
    """
    return without_outliers(whitened_over_tokens(in_groups(batch, group_relative), batch), bound=bound)


def component_relative(batch: ScoredBatch) -> Float64Array:
    """Each part of the score made `group_relative` by itself, added up, whitened over all tokens of the batch.

    So no part drowns the others by its scale.

    Raises:
        ValueError: there are no parts, or a compared member lacks one.

    Source: GDPO, arXiv:2601.05242.
    """
    if not batch.components:
        raise ValueError("component_relative needs verdicts with named components, got none; use group_relative")
    total = np.zeros(len(batch.scores))
    for values in batch.components.values():
        total += in_groups(batch, group_relative, values)
    return whitened_over_tokens(total, batch)


def label_smoothed(batch: ScoredBatch) -> Float64Array:
    """`group_relative`, where a label counts as the mean of the policy's own answers once one of them is as good.

    So a label teaches what the policy cannot do yet, and nothing of what it can. For groups that hold a label beside
    fresh answers, which are compared together.

    Source: ViSurf, arXiv:2510.10606, second-hand.
    """
    scores = batch.scores.copy()
    fresh = np.ones(len(scores), np.bool_) if batch.fresh is None else batch.fresh
    for group in np.unique(batch.groups):
        members = (batch.groups == group) & batch.compared
        own, labels = members & fresh, members & ~fresh
        if own.any():
            reached = labels & (np.where(labels, scores, np.inf) <= batch.scores[own].max())
            scores[reached] = batch.scores[own].mean()
    return in_groups(batch, group_relative, scores)


def shortest_right(batch: ScoredBatch, *, min_rate: float = 0.0, correct_from: float = 1.0) -> Float64Array:
    """1 for the shortest answer of a group that scores at least `correct_from`, if more than the share `min_rate` of
    its answers does; all others are left out, also of the denominators. The first of several equally short ones.

    Source: SOPHIA, arXiv:2507.16814, section 4: the share of right answers after one caption is the caption's reward.
    """
    advantages = np.full(len(batch.scores), np.nan)
    right = in_groups(batch, score) >= correct_from
    for group in np.unique(batch.groups):
        members = (batch.groups == group) & batch.compared
        kept = np.flatnonzero(members & right)
        if len(kept) > min_rate * np.count_nonzero(members):
            advantages[kept[np.argmin(batch.lengths[kept])]] = 1.0
    return advantages


def rank_penalised(batch: ScoredBatch, *, correct_from: float = 1.0, eps: float = 1e-4) -> Float64Array:
    """(score - penalty - mean) / (std + eps): in a group with a right answer a wrong one pays by its rank k from 0.

    penalty = (1 / log2(k + 2)) / sum over all ranks j of 1 / log2(j + 2)

    The rank is that of the answer's likelihood, likeliest first; where one is unknown, as from a constrained beam,
    the order of the group. Source: ReRe, sober-clever/ReRe.
    """
    scores = batch.scores.copy()
    for group in np.unique(batch.groups):
        members = np.flatnonzero((batch.groups == group) & batch.compared)
        wrong = scores[members] < correct_from
        if len(members) and not wrong.all():
            scores[members] -= np.where(wrong, _discounts(len(members))[_ranks(batch, members)], 0.0)
    return in_groups(batch, lambda s, c: group_relative(s, c, eps=eps), scores)


def _discounts(count: int) -> Float64Array:
    """[count] shares that fall with the rank and add up to 1."""
    shares = 1.0 / np.log2(np.arange(count) + 2.0)
    return shares / shares.sum()


def _ranks(batch: ScoredBatch, members: Int64Array) -> Int64Array:
    """[len(members)] rank of each from 0."""
    known = None if batch.loglikelihoods is None else batch.loglikelihoods[members]
    if known is None or not np.isfinite(known).all():
        return np.arange(len(members))
    return np.argsort(np.argsort(-known, kind="stable"), kind="stable")


def over_greedy(batch: ScoredBatch) -> Float64Array:
    """score - score of the group's answer at temperature 0; a group without a scored one is left out, also of the
    denominators.

    Source: ReMax, arXiv:2310.10505.
    """
    greedy = np.zeros(len(batch.scores), np.bool_) if batch.greedy is None else batch.greedy
    advantages = np.full(len(batch.scores), np.nan)
    for group in np.unique(batch.groups):
        members = batch.groups == group
        baselines = batch.scores[members & greedy]
        if len(baselines):
            advantages[members] = np.where(batch.compared[members], batch.scores[members] - baselines.mean(), 0.0)
    return advantages


def source_over_other(batch: ScoredBatch, *, reject_below: float | None = None) -> Float64Array:
    """1 for answers of the term's source, 0 for those it stands against: what a preference across sources orders by.

    With `reject_below` the others are left out unless they score less.
    """
    preferred = np.ones(len(batch.scores), np.bool_) if batch.of_source is None else batch.of_source
    others = np.zeros(len(batch.scores))
    if reject_below is not None:
        others = np.where(in_groups(batch, score) < reject_below, 0.0, np.nan)
    return np.where(preferred, 1.0, others)


ADVANTAGES: Mapping[str, AdvantageFunction] = {
    **{name: _of_groups(operation) for name, operation in GROUP_OPERATIONS.items()},
    "best_over_second": _of_groups(best_over_second),
    "max_likelihood": _of_groups(over_mean),
    "length_weighted": length_weighted,
    "stage_centered": stage_centered,
    "batch_relative": batch_relative,
    "whitened": whitened,
    "centered_whitened": centered_whitened,
    "nonzero_scaled": nonzero_scaled,
    "shifted": shifted,
    "log_mean_exp": log_mean_exp,
    "positives_only": positives_only,
    "negatives_only": negatives_only,
    "sign_weighted": sign_weighted,
    "outliers_removed": outliers_removed,
    "component_relative": component_relative,
    "label_smoothed": label_smoothed,
    "shortest_right": shortest_right,
    "rank_penalised": rank_penalised,
    "over_greedy": over_greedy,
    "source_over_other": source_over_other,
}
"""Values of `Term.advantage`: [n] advantages of a `ScoredBatch`; keyword-only parameters are its options."""


def _check(scores: Float64Array, compared: BoolArray) -> None:
    if scores.ndim != 1 or scores.shape != compared.shape or compared.dtype != np.bool_:
        raise ValueError(
            f"scores and compared must be [G] float and [G] bool, got {scores.shape} and "
            f"{compared.shape} {compared.dtype}"
        )
    if not np.isfinite(scores[compared]).all():
        raise ValueError(f"compared scores must be finite, got {scores[compared].tolist()}; leave unscored members out")
