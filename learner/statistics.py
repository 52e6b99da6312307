"""Columns that depend on all tokens of an update: quantiles, bounds, baselines. Pure numpy, the same on every rank.

A first pass without gradient measures the log-probs at the start of the update; each rank then knows those of all.
The functions here see a term's selected tokens of the whole update as flat arrays and return columns for its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from learner.config import Term
from learner.objective import BatchPlan
from rewards.trajectory import Float32Array

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

MEASURES = ("logprobs", "squared_mass", "largest_logprob", "kept_mass", "entropy")
"""What the first pass measures of a token, in this order: its log-prob, and of the distribution it was drawn from the
sum of squared probabilities, the largest log-prob, the mass of the tokens near the largest and the entropy. Only the
log-prob unless a term reads the vocabulary."""


@dataclass(frozen=True, slots=True)
class UpdateTokens:
    """A term's selected tokens of the whole update, trajectories and positions in order.

    Attributes:
        logprobs: [N] nats at the start of the update.
        behavior_logprobs: [N] nats of the policy in the denominator of the term's ratio; NaN where nothing reads it.
        advantages: [N] reward units; 0 for a loss that reads no scores.
        sequence_ids, group_ids: [N] numbers of trajectory and group.
        measures: name of MEASURES to [N].
        reference_logprobs: [N] nats of the frozen reference; None where the loss reads none.
    """

    logprobs: Float64Array
    behavior_logprobs: Float64Array
    advantages: Float64Array
    sequence_ids: Int64Array
    group_ids: Int64Array
    measures: Mapping[str, Float64Array]
    reference_logprobs: Float64Array | None = None

    @property
    def ratio(self) -> Float64Array:
        """[N] exp(logprobs - behavior_logprobs)."""
        return np.exp(np.clip(self.logprobs - self.behavior_logprobs, -20.0, 20.0))


Columns = dict[str, Float64Array]


def covariance_band(tokens: UpdateTokens, step: int, *, share: float, low: float, high: float) -> Columns:
    """picked: a random `share` of all tokens, at least one, among those whose covariance lies in (low, high).

    The draw depends on the step alone, so all ranks agree and a resumed run repeats it.
    """
    covariance = _covariance(tokens)
    eligible = np.flatnonzero((covariance > low) & (covariance < high))
    count = min(len(eligible), max(1, int(share * len(covariance))))
    chosen = np.random.default_rng(step).permutation(eligible)[:count]
    return {"picked": _indicator(len(covariance), chosen)}


def covariance_top(tokens: UpdateTokens, step: int, *, share: float) -> Columns:
    """picked: the `share` of all tokens, at least one, with the largest covariance."""
    covariance = _covariance(tokens)
    count = max(1, int(share * len(covariance)))
    return {"picked": _indicator(len(covariance), np.argsort(-covariance, kind="stable")[:count])}


def quotient_bounds(
    tokens: UpdateTokens,
    step: int,
    *,
    target: float,
    low: float,
    low_max: float,
    high: float,
    high_max: float,
    increment: float,
) -> Columns:
    """bound_low, bound_high: moved until Q = sum over A >= 0 of min(r, high)*A / sum over A < 0 of max(r, low)*|A|
    reaches `target`: first low in steps up to `low_max`, then high up to `high_max`.

    A larger low only makes Q smaller, as in published code, so low ends at `low_max` whenever it moves.
    """

    def quotient(lower: float, upper: float) -> float:
        ratio, advantages = tokens.ratio, tokens.advantages
        good = advantages >= 0
        above = float((np.minimum(ratio, upper) * advantages)[good].sum())
        below = float((np.maximum(ratio, lower) * -advantages)[~good].sum())
        return above / below if below > 0 else np.inf

    lows = _steps(low, low_max, increment)
    highs = _steps(high, high_max, increment)
    bound_low = next((b for b in lows if quotient(b, high) >= target), lows[-1])
    bound_high = next((b for b in highs if quotient(bound_low, b) >= target), highs[-1])
    return _bounds(tokens, bound_low, bound_high)


def moment_bounds(tokens: UpdateTokens, step: int, *, budget: float) -> Columns:
    """bound_low = exp(-tau), bound_high = exp(tau): the mean of squared log-ratios of harmful tokens, those with A > 0
    and r > 1 or A < 0 and r < 1, would come down to `budget` were they bounded by tau; no bound if it is below."""
    difference = tokens.logprobs - tokens.behavior_logprobs
    squares = np.sort(np.square(difference[tokens.advantages * difference > 0]))
    if not len(squares) or squares.mean() <= budget:
        return _bounds(tokens, 0.0, np.inf)
    bounded = squares * (len(squares) - np.arange(1, len(squares) + 1)) + np.cumsum(squares)
    first = int(np.flatnonzero(bounded >= budget * len(squares))[0])
    tau = np.sqrt(max(squares[first - 1] - 1e-12, 0.0)) if first else 0.0
    return _bounds(tokens, float(np.exp(-tau)), float(np.exp(tau)))


def optimal_token_baseline(tokens: UpdateTokens, step: int) -> Columns:
    """baseline: at each position of a group, the mean of A weighted by W = the sum over the prefix of
    1 - 2 p + sum of squared probabilities, the squared size of the gradient of its log-probs in the logits."""
    growth = 1.0 - 2.0 * np.exp(tokens.logprobs) + tokens.measures["squared_mass"]
    starts = np.flatnonzero(np.diff(tokens.sequence_ids, prepend=-1))
    lengths = np.diff([*starts, len(growth)])
    total = np.cumsum(growth)
    weight = total - np.repeat(total[starts] - growth[starts], lengths)
    place = np.arange(len(growth)) - np.repeat(starts, lengths)
    _, cell = np.unique(np.stack([tokens.group_ids, place]), axis=1, return_inverse=True)
    cell = cell.ravel()
    weights, weighted = np.bincount(cell, weight), np.bincount(cell, weight * tokens.advantages)
    baseline = np.divide(weighted, weights, out=np.zeros_like(weights), where=weights > 0)
    return {"baseline": baseline[cell]}


def low_probability(tokens: UpdateTokens, step: int, *, share: float, min_ratio: float) -> Columns:
    """proxy_logprobs: of tokens with A < 0 among the `share` of lowest log-prob, their log-prob under the policy
    limited to tokens of at least `min_ratio` times the largest probability, where that is larger; else NaN.

    With a share of at most one token none is protected.
    """
    proxy = np.full(len(tokens.logprobs), np.nan)
    count = int(share * len(proxy))
    if count > 1:
        lowest = np.argsort(tokens.logprobs, kind="stable")[:count]
        floor = np.log(min_ratio) + tokens.measures["largest_logprob"][lowest]
        kept = (tokens.logprobs[lowest] >= floor) & (tokens.advantages[lowest] < 0)
        chosen = lowest[kept]
        proxy[chosen] = tokens.logprobs[chosen] - np.log(tokens.measures["kept_mass"][chosen])
    return {"proxy_logprobs": np.where(proxy > tokens.logprobs, proxy, np.nan)}


def mean_entropy(tokens: UpdateTokens, step: int) -> Columns:
    """mean_entropy: nats, of the policy at the start of the update, the mean over the term's tokens on each of them."""
    return {"mean_entropy": np.full(len(tokens.logprobs), tokens.measures["entropy"].mean())}


def token_hits(tokens: UpdateTokens, step: int, *, draws: int) -> Columns:
    """hits: share of `draws` tokens sampled at each position from the policy at the start of the update that are the
    token itself. The draw depends on the step alone, so all ranks agree and a resumed run repeats it."""
    hits = np.random.default_rng(step).binomial(draws, np.exp(np.minimum(tokens.logprobs, 0.0)))
    return {"hits": hits / draws}


def prospect_point(tokens: UpdateTokens, step: int, *, reference_point: float | None) -> Columns:
    """point: nats, `reference_point`, or the mean over all sequences of the update of their log-ratio to the reference,
    not below 0, on each token."""
    if reference_point is None:
        assert tokens.reference_logprobs is not None  # the loss needs them
        total = float((tokens.logprobs - tokens.reference_logprobs).sum())
        reference_point = max(total / len(np.unique(tokens.sequence_ids)), 0.0)
    return {"point": np.full(len(tokens.logprobs), reference_point)}


STATISTICS: Mapping[str, Callable[..., Columns]] = {
    function.__name__: function
    for function in (
        covariance_band,
        covariance_top,
        quotient_bounds,
        moment_bounds,
        optimal_token_baseline,
        low_probability,
        mean_entropy,
        token_hits,
        prospect_point,
    )
}
"""Name of a loss's statistic to the function."""


def statistic_columns(
    terms: Sequence[Term],
    plan: BatchPlan,
    behavior_logprobs: Sequence[Float32Array],
    measured: Mapping[str, Float64Array],
    step: int,
    reference_logprobs: Sequence[Float32Array] | None = None,
) -> dict[str, tuple[Float32Array, ...]]:
    """ "{label}/{column}" to one [T] array per trajectory, for the terms whose loss has a statistic.

    Args:
        behavior_logprobs: [T] per trajectory, NaN where unknown.
        measured: of MEASURES, [num_trained_tokens] each: all trained tokens, trajectories and positions in order.
        step: 0-based learner step.
        reference_logprobs: [T] per trajectory; None where no term reads them.
    """
    columns: dict[str, tuple[Float32Array, ...]] = {}
    trained = np.concatenate(plan.trained)
    for term, own in zip(terms, plan.terms, strict=True):
        if term.loss.statistic is None or own.num_tokens == 0:
            continue
        mask = np.concatenate(own.mask)
        chosen = mask[trained]
        values = {name: array[chosen] for name, array in measured.items()}
        lengths = [int(np.count_nonzero(m)) for m in own.mask]
        behavior = _at(mask, behavior_logprobs)
        tokens = UpdateTokens(
            logprobs=values["logprobs"],
            behavior_logprobs=values["logprobs"] if term.ratio_to == "proximal" else behavior,
            advantages=np.concatenate(own.advantages or [np.zeros(len(mask))])[mask].astype(np.float64),
            sequence_ids=np.repeat(np.arange(len(lengths)), lengths),
            group_ids=np.repeat(plan.groups, lengths),
            measures=values,
            reference_logprobs=None if reference_logprobs is None else _at(mask, reference_logprobs),
        )
        made = STATISTICS[term.loss.statistic](tokens, step, **term.loss.statistic_parameters())
        splits = np.cumsum([len(m) for m in own.mask])[:-1]
        for name, column in made.items():
            flat = np.zeros(len(mask), np.float32)
            flat[mask] = column
            columns[f"{own.label}/{name}"] = tuple(np.split(flat, splits))
    return columns


def _at(mask: npt.NDArray[np.bool_], columns: Sequence[Float32Array]) -> Float64Array:
    """[N] one column [T] per trajectory, at the tokens of a mask over all of them."""
    return np.concatenate(columns)[mask].astype(np.float64)


def _covariance(tokens: UpdateTokens) -> Float64Array:
    return (tokens.advantages - tokens.advantages.mean()) * (tokens.logprobs - tokens.logprobs.mean())


def _indicator(length: int, chosen: npt.NDArray[np.integer]) -> Float64Array:
    picked = np.zeros(length)
    picked[chosen] = 1.0
    return picked


def _steps(start: float, end: float, increment: float) -> list[float]:
    """start, start + increment, ... up to end."""
    return [min(start + i * increment, end) for i in range(int(np.ceil((end - start) / increment - 1e-9)) + 1)]


def _bounds(tokens: UpdateTokens, low: float, high: float) -> Columns:
    return {"bound_low": np.full(len(tokens.logprobs), low), "bound_high": np.full(len(tokens.logprobs), high)}
