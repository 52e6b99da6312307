"""The critic: a policy's transformer with a value head, updated in the same step as the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.advantages import Float64Array
from learner.batch import Columns, MicroBatch
from learner.companions.config import CriticConfig
from learner.config import TOKEN_ADVANTAGES, Term
from learner.losses.value import (
    categorical_value_loss,
    feature_penalty,
    hl_gauss,
    squared_value_loss,
    support,
    two_hot,
)
from learner.objective import BatchPlan, BoolArray
from learner.policy import Policy
from learner.returns import RETURNS, Episode
from rewards.trajectory import Float32Array

EpisodeSource = Callable[[Sequence[BoolArray]], list[Episode | None]]
"""`learner.returns.episodes` of an update, for the tokens of [T] masks."""


class CriticOutputs(NamedTuple):
    """What the critic says of a micro-batch's trained tokens, in the order of `batch.readers`.

    Attributes:
        logits: [N, K] fp32 outputs of the value head before each token; K is 1 for a plain number.
        features: [N, H] what the head reads.
        squared_head_norm: [] of the head's weights, without gradient.
    """

    logits: Tensor
    features: Tensor
    squared_head_norm: Tensor


class Critic(Policy):
    """The same model, sharding and packing as a policy; [K, H] value outputs in the place of the [V, H] head."""

    def __init__(self, model: PreTrainedModel, *, num_outputs: int, **options: Any) -> None:
        """Takes over `model` and replaces its head; the new one starts at 0, so every value starts in the middle."""
        super().__init__(model, **options)
        head = nn.Linear(model.config.get_text_config().hidden_size, num_outputs, bias=False)
        nn.init.zeros_(head.weight)
        self.model.set_output_embeddings(head)

    def forward(self, batch: MicroBatch) -> CriticOutputs:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden = self.predictor_states(batch)
        head = self._head_weight
        logits = hidden.float() @ head.float().T
        order = batch.rows[batch.readers]
        return CriticOutputs(logits[order], hidden.float()[order], head.detach().float().square().sum())


@dataclass(frozen=True, slots=True)
class CriticPlan:
    """What the critic learns from one update.

    Attributes:
        masks: [T] per trajectory, its tokens.
        columns: targets, rewards and value_scale, [T] per trajectory, and sequence_ids.
        explained_variance: 1 - Var(target - value) / Var(target) at the start of the update; NaN without variance.
        target_mean, value_mean: over its tokens.
    """

    masks: tuple[BoolArray, ...]
    columns: Columns
    explained_variance: float
    target_mean: float
    value_mean: float

    @property
    def report(self) -> dict[str, float]:
        numbers = {
            "explained_variance": self.explained_variance,
            "target_mean": self.target_mean,
            "value_mean": self.value_mean,
        }
        return {name: number for name, number in numbers.items() if np.isfinite(number)}


def with_token_advantages(
    terms: Sequence[Term],
    plan: BatchPlan,
    found: EpisodeSource,
) -> BatchPlan:
    """The plan with advantages of single tokens where a term asks for them; those of "gae" are made to have mean 0 and
    deviation 1 over all tokens of the term."""
    planned = []
    for term, own in zip(terms, plan.terms, strict=True):
        if term.advantage not in TOKEN_ADVANTAGES or own.advantages is None:
            planned.append(own)
            continue
        options = term.advantage_options
        made = [None if e is None else RETURNS[term.advantage](e, **options)[0] for e in found(own.mask)]
        flat = np.concatenate([a for a in made if a is not None] or [np.zeros(0)])
        shift, scale = 0.0, 1.0
        if term.advantage == "gae" and len(flat) > 1:
            shift, scale = float(flat.mean()), float(np.sqrt(flat.var(ddof=1) + 1e-8))
        columns = []
        for mask, advantages in zip(own.mask, made, strict=True):
            column = np.zeros(len(mask), np.float32)
            if advantages is not None:
                column[mask] = (advantages - shift) / scale
            columns.append(column)
        planned.append(replace(own, advantages=tuple(columns), moves=tuple(bool(np.any(c)) for c in columns)))
    return replace(plan, terms=tuple(planned))


def plan_critic(
    config: CriticConfig,
    plan: BatchPlan,
    readers: Sequence[bool],
    source: EpisodeSource,
) -> CriticPlan:
    """Targets of all tokens whose advantages come from the critic.

    Args:
        readers: per term, whether its do.
    """
    chosen = [term for term, reads in zip(plan.terms, readers, strict=True) if reads]
    masks = tuple(np.logical_or.reduce(parts) for parts in zip(*(term.mask for term in chosen), strict=True))
    found = source(masks)
    num_tokens = max(sum(len(e.rewards) for e in found if e is not None), 1)
    columns: dict[str, list[Float32Array]] = {"targets": [], "rewards": [], "value_scale": [], "sequence_ids": []}
    targets: list[Float64Array] = []
    for index, (mask, episode) in enumerate(zip(masks, found, strict=True)):
        made = {name: np.zeros(len(mask), np.float32) for name in columns}
        made["sequence_ids"][:] = index
        if episode is not None:
            targets.append(RETURNS[config.target](episode, **config.target_options())[1])
            made["targets"][mask], made["rewards"][mask] = targets[-1], episode.rewards
            made["value_scale"][mask] = 1.0 / num_tokens
        for name, column in made.items():
            columns[name].append(column)
    flat = np.concatenate(targets or [np.zeros(0)])
    guessed = np.concatenate([e.values for e in found if e is not None] or [np.zeros(0)])
    spread = float(flat.var()) if len(flat) else 0.0
    return CriticPlan(
        masks=masks,
        columns=columns,
        explained_variance=1.0 - float((flat - guessed).var()) / spread if spread > 0 else float("nan"),
        target_mean=float(flat.mean()) if len(flat) else float("nan"),
        value_mean=float(guessed.mean()) if len(guessed) else float("nan"),
    )


class ValueCode:
    """How the head's outputs stand for a value, and what they are compared with."""

    def __init__(self, config: CriticConfig, device: torch.device) -> None:
        self._config = config
        self._range = {"low": config.low, "high": config.high, "bins": config.bins}
        self._support = support(**self._range, ends_included=config.loss == "two_hot", device=device)

    def values(self, logits: Tensor) -> Tensor:
        """[N] reward units of [N, K] outputs."""
        return logits[:, 0] if self._config.loss == "squared" else logits.softmax(-1) @ self._support

    def loss(self, logits: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
        if self._config.loss == "squared":
            return squared_value_loss(logits[:, 0], targets, scale)
        coded = (hl_gauss if self._config.loss == "hl_gauss" else two_hot)(targets, **self._range)
        return categorical_value_loss(logits, coded, scale)


def load_critic(config: CriticConfig, folder: Path, **options: Any) -> Critic:
    """A critic that begins as the model in `folder`; `options` are those of a policy."""
    return Critic.load(folder, num_outputs=1 if config.loss == "squared" else config.bins, **options)


def critic_loss(
    config: CriticConfig, code: ValueCode, outputs: CriticOutputs, columns: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """loss (with gradient) and value_loss and feature_penalty, [] each, of a micro-batch's tokens; they add up."""
    scale = columns["value_scale"]
    value_loss = code.loss(outputs.logits, columns["targets"], scale)
    parts = {"value_loss": value_loss.detach()}
    if config.feature_penalty > 0:
        ids = columns["sequence_ids"]
        paired = torch.where(ids[1:] == ids[:-1], scale[1:], 0.0)
        penalty = feature_penalty(
            outputs.features[:-1],
            outputs.features[1:],
            columns["rewards"][:-1],
            outputs.squared_head_norm,
            paired,
            discount=config.discount,
        )
        parts["feature_penalty"] = penalty.detach()
        value_loss = value_loss + config.feature_penalty * penalty
    return {**parts, "loss": value_loss}
