"""Adds up a run's loss terms, each over its own tokens of the whole batch.

    loss = sum over terms of  weight(step) * sum over tokens of  token_scale * f(logprobs, ...)

Two stages keep the result independent of packing, micro-batch size and number of ranks:

1. `Objective.plan(groups)` looks at the whole batch once, in numpy, the same on every rank. For each term it selects
   tokens, turns verdicts into advantages and writes each token's share of the term into `token_scale`, with the
   global count already divided out. All arrays lie on the token axis of the record: `array[t]` belongs to
   `trajectory.token_ids[t]`.
2. `Objective.loss(columns, step)` sees any part of the batch as flat tensors [N] and only adds up. The caller packs
   `plan.columns` exactly like token ids, next to

       logprobs              [N] nats of token n given the tokens before it, policy being trained, with gradient
       behavior_logprobs     [N] nats, NaN where unknown          if "behavior_logprobs" in objective.needs
       entropy               [N] nats, with gradient              if "entropy" in objective.needs
       reference_logprobs    [N] nats                             if "reference_logprobs" in objective.needs

   The log-prob of token n is the model's output one position earlier. Columns may hold anything, also NaN, where
   `plan.trained` is False, so the head need not be computed there; the first token of a sequence is never trained.

The caller adds up losses (and gradients) of its micro-batches and ranks as they are, without averaging; a framework
that averages gradients over R ranks needs the loss times R. Metrics are joined by `join_metrics` and turned into
numbers a person reads by `Objective.report`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.advantages import ADVANTAGES
from learner.config import Need, Term
from learner.losses.table import LOSSES
from learner.ratios import effective_sample_fraction
from rewards.trajectory import Float32Array, Group, Role, Trajectory

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TermPlan:
    """One term's view of the whole batch; one array per trajectory, groups and members in order.

    Attributes:
        label: unique name of the term, e.g. "live/clipped_surrogate".
        mask: [T] True on the tokens this term trains.
        token_scale: [T] the token's factor in the term's sum, global counts divided out; 0 outside the mask.
        advantages: [T] reward units, 0 outside the mask; None for a loss that reads no scores.
        num_tokens: masked tokens of the whole batch.
        num_sequences: trajectories with at least one masked token.
    """

    label: str
    mask: tuple[BoolArray, ...]
    token_scale: tuple[Float32Array, ...]
    advantages: tuple[Float32Array, ...] | None
    num_tokens: int
    num_sequences: int


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """All terms of one batch.

    Attributes:
        terms: in the order of the objective's terms.
        trained: [T] per trajectory, True on tokens that at least one term uses: only these need log-probs.
    """

    terms: tuple[TermPlan, ...]
    trained: tuple[BoolArray, ...]

    @property
    def columns(self) -> dict[str, tuple[Float32Array, ...]]:
        """Name to one [T] array per trajectory: what the caller packs beside the tokens for `Objective.loss`."""
        columns: dict[str, tuple[Float32Array, ...]] = {}
        for term in self.terms:
            columns[f"{term.label}/token_scale"] = term.token_scale
            if term.advantages is not None:
                columns[f"{term.label}/advantages"] = term.advantages
        return columns

    @property
    def num_trained_tokens(self) -> int:
        """Tokens of the whole batch that at least one term uses."""
        return sum(int(np.count_nonzero(mask)) for mask in self.trained)


class Objective:
    """The weighted sum of a recipe's terms."""

    def __init__(self, terms: Sequence[Term]) -> None:
        if not terms:
            raise ValueError("an objective needs at least one term, got none")
        self._terms = tuple(terms)
        self._labels = _labels(self._terms)

    @property
    def labels(self) -> tuple[str, ...]:
        """One unique name per term."""
        return self._labels

    @property
    def needs(self) -> frozenset[Need]:
        """Everything the terms read beside the log-probs being trained."""
        return frozenset().union(*(term.loss.needs for term in self._terms))

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        """Token selection, advantages and global denominators of every term.

        A term selects the sampled tokens of trajectories of its source. A loss that reads scores leaves out unscored
        trajectories, and its advantages compare a trajectory with the scored members of its group that have the same
        source, so an expert's answer never moves the baseline of the policy's own.

        Raises:
            ValueError: a selected token has no behaviour log-prob but the term needs one.
        """
        trajectories = [t for group in groups for t in group.trajectories]
        terms = tuple(
            _plan_term(label, term, groups, trajectories) for label, term in zip(self._labels, self._terms, strict=True)
        )
        trained = tuple(np.logical_or.reduce(masks) for masks in zip(*(term.mask for term in terms), strict=True))
        return BatchPlan(terms=terms, trained=trained)

    def loss(self, columns: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What these tokens contribute to the loss of a 0-based learner step.

        Args:
            columns: [N] each, see the module's docstring; N may be 0.

        Returns:
            The loss [], always connected to `logprobs`, and metrics [] named "{label}/{metric}" for `join_metrics`.
            A term whose weight is 0 at this step is measured but adds nothing, whatever its value.
        """
        total = columns["logprobs"][:0].sum()
        metrics: dict[str, Tensor] = {}
        for label, term in zip(self._labels, self._terms, strict=True):
            weight = term.weight.at(step)
            arguments = _arguments(label, columns, LOSSES[term.loss.name].columns)
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0.0):
                output = LOSSES[term.loss.name].function(**arguments, **term.loss.parameters())
            if weight != 0.0:
                total = total + weight * output.loss
            metrics[f"{label}/loss"] = output.loss.detach()
            metrics |= {f"{label}/{name}": value for name, value in output.metrics.items()}
        return total, metrics

    def report(self, plan: BatchPlan, metrics: Mapping[str, Tensor], step: int) -> dict[str, dict[str, float]]:
        """Per term, numbers to read, from metrics joined over the whole batch (all micro-batches and ranks).

        Always: loss (before its weight), weight, num_tokens, num_sequences. By loss: clip_fraction, ratio_mean,
        mismatch_mean, mismatch_max (nats between log-probs and behaviour log-probs), chi2 and
        effective_sample_fraction of the ratios, kl_mean, entropy_mean, token_weight_mean, nll_mean.
        """
        report: dict[str, dict[str, float]] = {}
        for term, plan_of_term in zip(self._terms, plan.terms, strict=True):
            prefix = f"{plan_of_term.label}/"
            own = {name.removeprefix(prefix): float(v) for name, v in metrics.items() if name.startswith(prefix)}
            report[plan_of_term.label] = {
                "weight": term.weight.at(step),
                "num_tokens": float(plan_of_term.num_tokens),
                "num_sequences": float(plan_of_term.num_sequences),
                **_readable(own, plan_of_term.num_tokens),
            }
        return report


def join_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of several micro-batches as one: the larger value where `is_maximum`, the sum otherwise."""
    joined: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in joined:
                joined[name] = value
            elif is_maximum(name):
                joined[name] = torch.maximum(joined[name], value)
            else:
                joined[name] = joined[name] + value
    return joined


def is_maximum(name: str) -> bool:
    """Whether a metric is joined over micro-batches and ranks by its maximum instead of its sum."""
    return name.endswith("_max")


def _labels(terms: Sequence[Term]) -> tuple[str, ...]:
    """source/loss, with #2, #3, ... where a pair repeats."""
    seen: dict[str, int] = {}
    labels = []
    for term in terms:
        name = f"{term.source}/{term.loss.name}"
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(labels)


def _plan_term(label: str, term: Term, groups: Sequence[Group], trajectories: Sequence[Trajectory]) -> TermPlan:
    needs_scores = "scores" in term.loss.needs
    masks = tuple(_mask(trajectory, term, needs_scores) for trajectory in trajectories)
    if "behavior_logprobs" in term.loss.needs:
        _refuse_unknown_behavior(label, trajectories, masks)
    advantages = None
    if needs_scores:
        per_trajectory = [a for group in groups for a in _group_advantages(group, term)]
        advantages = tuple(
            np.where(mask, np.float32(a), np.float32(0.0)) for a, mask in zip(per_trajectory, masks, strict=True)
        )
    lengths = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)
    scales = _token_scales(lengths, term)
    return TermPlan(
        label=label,
        mask=masks,
        token_scale=tuple(
            np.where(mask, np.float32(scale), np.float32(0.0)) for scale, mask in zip(scales, masks, strict=True)
        ),
        advantages=advantages,
        num_tokens=int(lengths.sum()),
        num_sequences=int(np.count_nonzero(lengths)),
    )


def _mask(trajectory: Trajectory, term: Term, needs_scores: bool) -> BoolArray:
    """[T] the tokens a term trains; never the first of a sequence, which nothing predicts."""
    if trajectory.source != term.source or (needs_scores and trajectory.score is None):
        return np.zeros(len(trajectory.token_ids), dtype=np.bool_)
    mask = trajectory.roles == Role.SAMPLED
    mask[:1] = False
    return mask


def _token_scales(lengths: npt.NDArray[np.int64], term: Term) -> npt.NDArray[np.float64]:
    """[trajectories] factor of each token of a trajectory, from all masked lengths [trajectories] of the batch."""
    num_tokens, num_sequences = lengths.sum(), np.count_nonzero(lengths)
    if num_tokens == 0:
        return np.zeros(len(lengths))
    if term.aggregation == "token":
        return np.full(len(lengths), 1.0 / num_tokens)
    if term.aggregation == "sequence":
        return 1.0 / (np.maximum(lengths, 1) * num_sequences)
    assert term.aggregation_constant is not None  # Term's validator
    return np.full(len(lengths), 1.0 / (term.aggregation_constant * num_sequences))


def _group_advantages(group: Group, term: Term) -> npt.NDArray[np.float64]:
    """[G] in member order; 0 for unscored members and members of another source."""
    compared = np.array([t.source == term.source and t.score is not None for t in group.trajectories])
    scores = np.array([np.nan if t.score is None else t.score for t in group.trajectories], dtype=np.float64)
    return ADVANTAGES[term.advantage](scores, compared)


def _refuse_unknown_behavior(label: str, trajectories: Sequence[Trajectory], masks: Sequence[BoolArray]) -> None:
    """Checked here, on every rank alike, because a loss that raises on one rank leaves the others waiting for it."""
    unknown = {
        t.trajectory_id: count
        for t, mask in zip(trajectories, masks, strict=True)
        if (count := int(np.count_nonzero(~np.isfinite(t.behavior_logprobs[mask]))))
    }
    if unknown:
        raise ValueError(
            f"term {label} needs behaviour log-probs, but {sum(unknown.values())} of its tokens have none, in "
            f"{len(unknown)} trajectories (first: {list(unknown)[:3]}). A ratio to a made-up number would be wrong; "
            "use a loss that needs none for this source, such as negative_log_likelihood, or record them."
        )


def _arguments(label: str, columns: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The columns a loss function takes; token_scale and advantages are the term's own."""
    own = {"token_scale": f"{label}/token_scale", "advantages": f"{label}/advantages"}
    missing = [key for name in names if (key := own.get(name, name)) not in columns]
    if missing:
        raise ValueError(f"term {label} needs the columns {missing}, given are {sorted(columns)}")
    return {name: columns[own.get(name, name)] for name in names}


def _readable(metrics: Mapping[str, float], num_tokens: int) -> dict[str, float]:
    """Sums to means, counts to fractions, and what follows from the moments of the ratio."""
    count = max(num_tokens, 1)
    readable: dict[str, float] = {}
    for name, value in metrics.items():
        if name.endswith("_sum"):
            readable[f"{name.removesuffix('_sum')}_mean"] = value / count
        elif name.endswith("_count"):
            readable[f"{name.removesuffix('_count')}_fraction"] = value / count
        else:
            readable[name] = value
    if num_tokens and "squared_ratio_sum" in metrics:
        total, squares = metrics["ratio_sum"], metrics["squared_ratio_sum"]
        readable["effective_sample_fraction"] = effective_sample_fraction(total, squares, num_tokens)
        readable["chi2"] = readable.pop("squared_ratio_mean") - 1.0
    return readable
