"""RewardTrainer: preference pairs in, one optimizer step, a reward model out. One process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from learner.config import OptimizerConfig
from learner.losses.reward import bradley_terry
from learner.optimizer import apply_gradients, make_optimizer, why_not_finite
from learner.reward_model import RewardModel, TooLongError, length_batches
from rewards.config import Section
from rewards.preference_statistics import RankingAccuracy, brier_score, expected_calibration_error, pair_accuracy
from rewards.preferences import PreferencePair
from rewards.statistics import Estimate


class RewardTraining(Section):
    """How a reward model is trained."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    """AdamW of the learner; its schedule counts steps."""
    pairs_per_step: int = Field(default=64, ge=1)
    """Pairs of one optimizer step."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the pairs, each in another order."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Padded tokens of one forward pass; it changes memory and speed, not the result."""
    max_length: int = Field(default=4096, ge=2)
    """Tokens of prompt and answer; a pair with a longer side is left out and counted."""
    centring: float = Field(default=0.0, ge=0)
    """Weight of the squared sum of a pair's scores."""
    seed: int = Field(default=0, ge=0)
    """Draws a new head, and the order of the pairs."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as tokens."""

    pair: PreferencePair
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class RewardStep:
    """One optimizer step; `skipped` left the weights alone, because loss or gradient were no numbers."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardReport:
    """A reward model on held-out pairs.

    Attributes:
        accuracy: share in the right order, ties one half.
        by_source: the same for each source of pairs.
        longer_preferred: share of pairs in which the longer answer scores higher; far from the share in which it is the
            chosen one (`longer_chosen`) the model pays for length.
        length_matched: accuracy on pairs whose answers differ by at most a tenth in characters; None without any.
        brier, calibration_error: of sigmoid(score gap) as the probability that the chosen answer is better.
        left_out: pairs with a side that is too long.
    """

    accuracy: RankingAccuracy
    by_source: Mapping[str, Estimate]
    longer_preferred: float
    longer_chosen: float
    length_matched: Estimate | None
    brier: float
    calibration_error: float
    left_out: int


class RewardTrainer:
    """Trains the head and the body of a reward model by the Bradley-Terry loss."""

    def __init__(self, config: RewardTraining, model: RewardModel) -> None:
        self.config, self.model = config, model
        self.optimizer = make_optimizer(config.optimizer, model)
        self.steps_done = 0

    def encode(self, pairs: Sequence[PreferencePair]) -> tuple[list[EncodedPair], int]:
        """The pairs as tokens, and how many were left out because a side is too long."""
        encoded = []
        for pair in pairs:
            try:
                sides = [
                    self.model.encode(pair.messages, text, pair.reference) for text in (pair.chosen, pair.rejected)
                ]
            except TooLongError:
                continue
            encoded.append(EncodedPair(pair, *sides))
        return encoded, len(pairs) - len(encoded)

    def train(self, pairs: Sequence[EncodedPair]) -> Iterator[RewardStep]:
        """All epochs; a last batch that is not full is used all the same.

        Raises:
            ValueError: no pairs.
        """
        if not pairs:
            raise ValueError("no pairs to train on")
        rng = np.random.default_rng(self.config.seed)
        for _ in range(self.config.num_epochs):
            order = rng.permutation(len(pairs))
            for start in range(0, len(pairs), self.config.pairs_per_step):
                yield self.step([pairs[i] for i in order[start : start + self.config.pairs_per_step]])

    def step(self, pairs: Sequence[EncodedPair]) -> RewardStep:
        """One optimizer step on whole pairs; the result does not depend on how they are cut into passes."""
        optimizer, settings = self.optimizer, self.config.optimizer
        learning_rate = settings.learning_rate * settings.schedule.at(self.steps_done)
        loss, metrics = 0.0, dict[str, float]()
        optimizer.zero_grad(set_to_none=True)
        longest = [2 * max(len(pair.chosen), len(pair.rejected)) for pair in pairs]  # a pair is two rows
        for places in length_batches(longest, self.config.batch_tokens):
            chosen, rejected = self._pair_scores([pairs[p] for p in places])
            margins = torch.tensor([pairs[p].pair.margin for p in places], device=chosen.device)
            output = bradley_terry(
                chosen, rejected, num_pairs=len(pairs), margin=margins, centring=self.config.centring
            )
            output.loss.backward()
            loss += float(output.loss.detach())
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))
        skipped = why_not_finite(loss, norm) is not None
        if not skipped:
            apply_gradients(
                optimizer, learning_rate=learning_rate, grad_norm=norm, max_grad_norm=settings.max_grad_norm
            )
        report = RewardStep(self.steps_done, loss, norm, learning_rate, skipped, metrics)
        self.steps_done += not skipped
        return report

    def evaluate(self, pairs: Sequence[EncodedPair], *, left_out: int = 0) -> RewardReport:
        """Raises ValueError without pairs."""
        sequences = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
        scores = self.model.scores(sequences, batch_tokens=self.config.batch_tokens)
        return report_on([pair.pair for pair in pairs], scores[::2], scores[1::2], left_out=left_out)

    def _pair_scores(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        scores = self.model([side for pair in pairs for side in (pair.chosen, pair.rejected)])
        return scores[::2], scores[1::2]


def report_on(
    pairs: Sequence[PreferencePair], chosen: Sequence[float], rejected: Sequence[float], *, left_out: int = 0
) -> RewardReport:
    """What scores of pairs say of whoever gave them.

    Raises:
        ValueError: no pairs.
    """
    rng = np.random.default_rng(0)
    by_source = {}
    for source in dict.fromkeys(pair.source for pair in pairs):
        places = [i for i, pair in enumerate(pairs) if pair.source == source]
        by_source[source] = pair_accuracy([chosen[i] for i in places], [rejected[i] for i in places], rng).estimate
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    matched = [i for i, (a, b) in enumerate(lengths) if abs(a - b) <= 0.1 * max(a, b)]
    probabilities = [1 / (1 + math.exp(min(max(b - a, -500.0), 500.0))) for a, b in zip(chosen, rejected, strict=True)]
    rights = [True] * len(pairs)
    # half of the pairs are asked the other way round, so that a model that always says 1 is not well calibrated
    for i in range(0, len(pairs), 2):
        probabilities[i], rights[i] = 1 - probabilities[i], False
    unequal = [i for i, (a, b) in enumerate(lengths) if a != b]
    longer_wins = [(chosen[i] > rejected[i]) == (lengths[i][0] > lengths[i][1]) for i in unequal]
    longer_is_chosen = [lengths[i][0] > lengths[i][1] for i in unequal]
    return RewardReport(
        accuracy=pair_accuracy(chosen, rejected, rng),
        by_source=by_source,
        longer_preferred=_share(longer_wins),
        longer_chosen=_share(longer_is_chosen),
        length_matched=_accuracy_of(matched, chosen, rejected, rng),
        brier=brier_score(probabilities, rights),
        calibration_error=expected_calibration_error(probabilities, rights),
        left_out=left_out,
    )


def _accuracy_of(
    places: Sequence[int], chosen: Sequence[float], rejected: Sequence[float], rng: np.random.Generator
) -> Estimate | None:
    if not places:
        return None
    return pair_accuracy([chosen[i] for i in places], [rejected[i] for i in places], rng).estimate


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.5
