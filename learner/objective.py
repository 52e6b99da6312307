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
       teacher_logprobs      [N] nats                             if "teacher_logprobs" in objective.needs
       divergence            [N] nats to the teacher, with gradient  if "divergence" in objective.needs
       proximal_logprobs     [N] nats, policy at the start of the update, optional: a batch that is used for one
                             update starts it at `logprobs`, so these are taken, without gradient, where it is missing
       {label}/{column}      [N] what `learner.statistics` makes of all tokens, for a term whose loss has a statistic

   The log-prob of token n is the model's output one position earlier. Columns may hold anything, also NaN, where
   `plan.trained` is False, so the head need not be computed there; the first token of a sequence is never trained.

All tokens of a sequence belong to one call: losses and corrections may sum over them (`sequence_ids` of the plan).
So do all members of a group where a loss compares them (`whole_groups`, `group_ids`).

The caller adds up losses (and gradients) of its micro-batches and ranks as they are, without averaging; a framework
that averages gradients over R ranks needs the loss times R. Metrics are joined by `join_metrics` and turned into
numbers a person reads by `Objective.report`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.advantages import ADVANTAGES, Float64Array, ScoredBatch
from learner.config import TOKEN_ADVANTAGES, Need, ProtectedSurrogate, TeacherDivergence, Term
from learner.corrections import correction_weights
from learner.losses.table import LOSSES
from learner.ratios import effective_sample_fraction, mismatch_metrics
from learner.returns import RETURNS
from learner.schedules.controllers import Controls
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
        moves: per trajectory, whether it can have a gradient.
    """

    label: str
    mask: tuple[BoolArray, ...]
    token_scale: tuple[Float32Array, ...]
    advantages: tuple[Float32Array, ...] | None
    num_tokens: int
    num_sequences: int
    moves: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """All terms of one batch.

    Attributes:
        terms: in the order of the objective's terms.
        trained: [T] per trajectory, True on tokens that at least one term uses: only these need log-probs.
        groups: per trajectory, the number of its group.
        whole_groups: a term compares the members of a group, so they belong to one call of `Objective.loss`.
    """

    terms: tuple[TermPlan, ...]
    trained: tuple[BoolArray, ...]
    groups: tuple[int, ...]
    whole_groups: bool

    @property
    def columns(self) -> dict[str, tuple[Float32Array, ...]]:
        """Name to one [T] array per trajectory: what the caller packs beside the tokens for `Objective.loss`."""
        columns: dict[str, tuple[Float32Array, ...]] = {
            # float32 like every column: exact up to 2^24 trajectories
            "sequence_ids": tuple(np.full(len(mask), i, dtype=np.float32) for i, mask in enumerate(self.trained))
        }
        if self.whole_groups:
            columns["group_ids"] = tuple(
                np.full(len(mask), group, dtype=np.float32)
                for group, mask in zip(self.groups, self.trained, strict=True)
            )
        for term in self.terms:
            columns[f"{term.label}/token_scale"] = term.token_scale
            if term.advantages is not None:
                columns[f"{term.label}/advantages"] = term.advantages
        return columns

    def spread(self, values: Float64Array) -> tuple[Float32Array, ...]:
        """A column from [num_trained_tokens] values of the trained tokens in order; NaN elsewhere."""
        flat = np.full(sum(map(len, self.trained)), np.nan, np.float32)
        flat[np.concatenate(self.trained)] = values
        return tuple(np.split(flat, np.cumsum([len(mask) for mask in self.trained])[:-1]))

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
        for label, term in zip(self._labels, self._terms, strict=True):
            _check_advantage_options(label, term)
        _refuse_two_floors(self._terms)
        self.controls = Controls(self._labels, [term.controller for term in self._terms])
        """All that an objective remembers between steps."""
        if len(_mixtures(self._terms)) > 1:
            raise ValueError(
                f"terms of teacher_divergence ask for mixtures {_mixtures(self._terms)}, but one divergence is "
                "computed: give them the same mixture"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """One unique name per term."""
        return self._labels

    def weights(self, step: int) -> tuple[float, ...]:
        """Factor of each term: its schedule at this step times its controller's coefficient."""
        return tuple(
            term.weight.at(step) * coefficient
            for term, coefficient in zip(self._terms, self.controls.coefficients, strict=True)
        )

    @property
    def has_statistics(self) -> bool:
        """Whether a term's loss reads columns of `learner.statistics`, so that an update starts with a first pass."""
        return any(term.loss.statistic is not None for term in self._terms)

    @property
    def vocabulary_floor(self) -> float | None:
        """Share of the largest probability from which on a token counts to `kept_mass` of `learner.statistics`; None:
        no term reads whole distributions."""
        readers = [term.loss for term in self._terms if term.loss.reads_vocabulary]
        floors = [loss.min_ratio for loss in readers if isinstance(loss, ProtectedSurrogate)]
        return (floors or [1.0])[0] if readers else None

    @property
    def teacher_mixture(self) -> float | None:
        """`mixture` of the terms that compare whole distributions with a teacher's; None: there are none."""
        return next(iter(_mixtures(self._terms)), None)

    @property
    def needs(self) -> frozenset[Need]:
        """Everything the terms read beside the log-probs being trained."""
        return frozenset().union(*(term.needs for term in self._terms))

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        """Token selection, advantages and global denominators of every term.

        A term selects the sampled tokens of trajectories of its source. A loss that reads scores leaves out unscored
        trajectories, and its advantages compare a trajectory with the scored members of its group that have the same
        source, so an expert's answer does not move the baseline of the policy's own, unless `compared_with` says so.

        Raises:
            ValueError: a selected token has no behaviour log-prob but the term needs one.
        """
        trajectories = [t for group in groups for t in group.trajectories]
        terms = tuple(
            _plan_term(label, term, groups, trajectories) for label, term in zip(self._labels, self._terms, strict=True)
        )
        trained = tuple(np.logical_or.reduce(masks) for masks in zip(*(term.mask for term in terms), strict=True))
        return BatchPlan(
            terms=terms,
            trained=trained,
            groups=tuple(i for i, group in enumerate(groups) for _ in group.trajectories),
            whole_groups=any(term.loss.couples_groups for term in self._terms),
        )

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
        for label, term, weight in zip(self._labels, self._terms, self.weights(step), strict=True):
            own = _columns_of_term(label, term, columns)
            correction_metrics = _correct(label, term, own)
            names = LOSSES[term.loss.name].columns
            if term.loss.statistic is not None and not own["token_scale"].any():
                own = dict.fromkeys(names, own["token_scale"]) | own  # nothing to measure, so no columns
            arguments = _arguments(label, own, names)
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0.0):
                output = LOSSES[term.loss.name].function(**arguments, **term.loss.parameters())
            if weight != 0.0:
                total = total + weight * output.loss
            metrics[f"{label}/loss"] = output.loss.detach()
            metrics |= {f"{label}/{name}": value for name, value in {**output.metrics, **correction_metrics}.items()}
        return total, metrics

    def report(self, plan: BatchPlan, metrics: Mapping[str, Tensor], step: int) -> dict[str, dict[str, float]]:
        """Per term, numbers to read, from metrics joined over the whole batch (all micro-batches and ranks).

        Always: loss (before its weight), weight, num_tokens, num_sequences. By loss: clip_fraction, ratio_mean,
        mismatch_mean, mismatch_max (nats between log-probs and behaviour log-probs), chi2 and
        effective_sample_fraction of the ratios, kl_mean, entropy_mean, token_weight_mean, nll_mean,
        protected_fraction, target_kl_mean. A correction adds, behind "correction/", token_weight_mean, clip_fraction
        (tokens of weight 0) and the distances of proximal and sampling policy: ratio_mean, mismatch_mean, mismatch_max,
        chi2, effective_sample_fraction.
        """
        report: dict[str, dict[str, float]] = {}
        for plan_of_term, weight in zip(plan.terms, self.weights(step), strict=True):
            prefix = f"{plan_of_term.label}/"
            own = {name.removeprefix(prefix): float(v) for name, v in metrics.items() if name.startswith(prefix)}
            report[plan_of_term.label] = {
                "weight": weight,
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
    masks = tuple(_mask(trajectory, term) for trajectory in trajectories)
    advantages = None
    if "scores" in term.loss.needs:
        per_trajectory = _advantages(term, groups, trajectories)
        masks = tuple(
            mask if np.isfinite(a) else np.zeros_like(mask) for a, mask in zip(per_trajectory, masks, strict=True)
        )
        advantages = tuple(
            np.where(mask, np.float32(a), np.float32(0.0)) for a, mask in zip(per_trajectory, masks, strict=True)
        )
    if "behavior_logprobs" in term.needs:
        _refuse_unknown_behavior(label, trajectories, masks)
    lengths = np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)
    scales = _token_scales(lengths, term)
    moving = advantages if advantages is not None and term.loss.silent_without_advantage else masks
    return TermPlan(
        label=label,
        mask=masks,
        token_scale=tuple(
            np.where(mask, np.float32(scale), np.float32(0.0)) for scale, mask in zip(scales, masks, strict=True)
        ),
        advantages=advantages,
        num_tokens=int(lengths.sum()),
        num_sequences=int(np.count_nonzero(lengths)),
        moves=tuple(bool(np.any(array)) for array in moving),
    )


def _mask(trajectory: Trajectory, term: Term) -> BoolArray:
    """[T] the tokens a term trains; never the first of a sequence, which nothing predicts, nor a greedy answer."""
    if (
        trajectory.source not in term.sources
        or _is_greedy(trajectory)
        or ("scores" in term.loss.needs and trajectory.score is None)
        or (term.members == "right" and not trajectory.is_right)
    ):
        return np.zeros(len(trajectory.token_ids), dtype=np.bool_)
    return _trainable(trajectory)


def _is_greedy(trajectory: Trajectory) -> bool:
    """Sampled at temperature 0: a baseline, and no draw of the policy."""
    return trajectory.sampling.temperature == 0.0


def _trainable(trajectory: Trajectory) -> BoolArray:
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
    if term.aggregation == "width":
        return np.full(len(lengths), 1.0 / term.aggregation_constant)
    return np.full(len(lengths), 1.0 / (term.aggregation_constant * num_sequences))


def _advantages(term: Term, groups: Sequence[Group], trajectories: Sequence[Trajectory]) -> Float64Array:
    """[trajectories] NaN for those the advantage leaves out; of no meaning where the term's mask is empty."""
    scored = np.array([t.score is not None for t in trajectories], dtype=np.bool_)
    alike = np.array([term.compared_with == "group" or t.source in term.sources for t in trajectories], dtype=np.bool_)
    greedy = np.array([_is_greedy(t) for t in trajectories], dtype=np.bool_)
    names = sorted({name for t in trajectories if t.verdict is not None for name in t.verdict.components})
    batch = ScoredBatch(
        scores=np.array([_number(t.score) for t in trajectories], dtype=np.float64),
        compared=scored & alike & ~greedy,
        groups=np.repeat(np.arange(len(groups)), [len(group.trajectories) for group in groups]),
        lengths=np.array([np.count_nonzero(_trainable(t)) for t in trajectories], dtype=np.int64),
        components={
            name: np.array([_number(t.verdict and t.verdict.components.get(name)) for t in trajectories])
            for name in names
        },
        stages=np.concatenate([_stages(group) for group in groups] or [np.zeros(0, np.int64)]),
        fresh=np.array([t.source == "live" for t in trajectories], dtype=np.bool_),
        of_source=np.array([t.source == term.source for t in trajectories], dtype=np.bool_),
        greedy=scored & greedy,
        loglikelihoods=np.array([float(t.behavior_logprobs[_trainable(t)].sum()) for t in trajectories]),
    )
    if term.advantage in TOKEN_ADVANTAGES:  # `learner.returns` puts those of tokens in the place of the scores
        return ADVANTAGES["score"](batch)
    return ADVANTAGES[term.advantage](batch, **term.advantage_options)


def _stages(group: Group) -> npt.NDArray[np.int64]:
    """[members] which sampling of the group each was drawn in, by its seed; 0 for donors."""
    seeds = list(dict.fromkeys(t.sampling.seed for t in group.own_members))
    return np.array(
        [seeds.index(t.sampling.seed) if t.source is group.source else 0 for t in group.trajectories], np.int64
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _check_advantage_options(label: str, term: Term) -> None:
    function = {**ADVANTAGES, **RETURNS}[term.advantage]
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(term.advantage_options) - set(known))
    if unknown:
        raise ValueError(
            f"term {label}: advantage {term.advantage!r} has no options {unknown}, so they would do nothing; "
            f"it has {known or 'none'}"
        )


def _refuse_two_floors(terms: Sequence[Term]) -> None:
    floors = sorted({term.loss.min_ratio for term in terms if isinstance(term.loss, ProtectedSurrogate)})
    if len(floors) > 1:
        raise ValueError(
            f"terms of protected_surrogate ask for min_ratio {floors}, but one denoised policy is measured: give them "
            "the same min_ratio"
        )


def _mixtures(terms: Sequence[Term]) -> list[float]:
    return sorted({term.loss.mixture for term in terms if isinstance(term.loss, TeacherDivergence)})


def _columns_of_term(label: str, term: Term, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns under the names a loss function gives them."""
    own = {"proximal_logprobs": columns["logprobs"].detach(), **columns}
    own |= {name.removeprefix(f"{label}/"): column for name, column in columns.items() if name.startswith(f"{label}/")}
    if term.ratio_to == "proximal":
        own["sampling_logprobs"] = own.get("behavior_logprobs", own["logprobs"])
        own["behavior_logprobs"] = own["proximal_logprobs"]
    return own


def _correct(label: str, term: Term, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiplies the term's token_scale by its correction, in place; metrics of the weights."""
    if term.correction is None:
        return {}
    behavior = own["sampling_logprobs"] if term.ratio_to == "proximal" else own["behavior_logprobs"]
    mask = own["token_scale"] != 0
    weights = correction_weights(
        term.correction,
        logprobs=own["logprobs"],
        proximal_logprobs=own["proximal_logprobs"],
        behavior_logprobs=behavior,
        sequence_ids=own["sequence_ids"],
        mask=mask,
        advantages=own.get("advantages"),
    )
    own["token_scale"] = own["token_scale"] * weights
    metrics = {
        "token_weight_sum": weights.sum(),
        "clip_count": (mask & (weights == 0)).sum().to(weights.dtype),
        **mismatch_metrics(own["proximal_logprobs"], behavior, mask),
    }
    return {f"correction/{name}": value for name, value in metrics.items()}


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


def _arguments(label: str, own: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The columns a loss function takes."""
    missing = [name for name in names if name not in own]
    if missing:
        raise ValueError(f"term {label} needs the columns {missing}, given are {sorted(own)}")
    return {name: own[name] for name in names}


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
    for part in ("", "correction/"):
        squared_mean = readable.pop(f"{part}squared_ratio_mean", None)
        if num_tokens and squared_mean is not None:
            total, squares = metrics[f"{part}ratio_sum"], metrics[f"{part}squared_ratio_sum"]
            readable[f"{part}effective_sample_fraction"] = effective_sample_fraction(total, squares, num_tokens)
            readable[f"{part}chi2"] = squared_mean - 1.0
    return readable
