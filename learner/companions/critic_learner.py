"""A critic with its optimizer: values for the policy's advantages, then a step of its own beside the policy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from learner.batch import MicroBatch, training_sequences
from learner.companions.config import CriticConfig
from learner.companions.critic import Critic, CriticPlan, EpisodeSource, ValueCode, critic_loss, plan_critic
from learner.config import OptimizerConfig, Term
from learner.objective import BatchPlan, join_metrics
from learner.optimizer import apply_gradients, make_optimizer, why_not_finite
from learner.policy import Policy, TokenOutputs
from learner.sharding import reduce_over_ranks, total_grad_norm
from learner.update import Update
from rewards.trajectory import Group


def measure_gaps(policy: Policy, reference: Policy | None, batch: MicroBatch) -> Tensor:
    """[2, N] nats: the policy's largest log-prob before each trained token, and how far below it the policy has the
    token that the reference finds likeliest; the model below the adapters is the reference of None."""
    with policy.without_adapter() if reference is None else nullcontext():
        tokens = (reference or policy).likeliest_tokens(batch)
    (reference or policy).release()
    at_rows = replace(batch, rows=torch.arange(len(tokens), device=tokens.device), targets=tokens)
    outputs: TokenOutputs = policy(replace(at_rows, readers=batch.rows[batch.readers]), vocabulary_floor=1.0)
    policy.release()
    assert outputs.measures is not None
    largest = outputs.measures[1]
    return torch.stack([largest, outputs.logprobs - largest])


class CriticLearner:
    """One rank's part of the critic; every method is called on all ranks together."""

    def __init__(self, config: CriticConfig, settings: OptimizerConfig, model: Critic, *, world_size: int) -> None:
        """`settings` are the policy's; the critic has its own rate where it names one."""
        self.config, self.model, self._settings, self._world_size = config, model, settings, world_size
        self.optimizer = make_optimizer(settings, model)
        self._code = ValueCode(config, model.device)

    @torch.no_grad()
    def values(self, batch: MicroBatch) -> Tensor:
        """[1, N] reward units before each trained token."""
        values = self._code.values(self.model(batch).logits)
        self.model.release()
        return values[None]

    def plan(self, terms: Sequence[Term], plan: BatchPlan, source: EpisodeSource) -> CriticPlan:
        """What it learns from an update."""
        return plan_critic(self.config, plan, ["values" in term.needs for term in terms], source)

    def accumulate(self, update: Update, plan: CriticPlan, groups: Sequence[Group]) -> dict[str, float]:
        """Gradients of the whole update; loss and its parts over all ranks, and the gradient's norm."""
        parts: list[Mapping[str, Tensor]] = []
        for chunk in update.chunks(training_sequences(groups, plan.masks)):
            batch = update.collate(chunk, plan.columns)
            losses = critic_loss(self.config, self._code, self.model(batch), batch.columns)
            # FSDP averages gradients over the ranks; the parts are meant to be added.
            (losses["loss"] * self._world_size).backward()
            parts.append({name: value.detach() for name, value in losses.items()})
        if not parts:
            return {}
        totals = reduce_over_ranks(join_metrics(parts), is_maximum=lambda _: False, world_size=self._world_size)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return {name: float(value) for name, value in totals.items()} | {"grad_norm": total_grad_norm(trained)}

    def why_not(self, totals: Mapping[str, float]) -> str | None:
        """Why its step must not be taken, or None."""
        reason = why_not_finite(totals["loss"], totals["grad_norm"]) if totals else None
        return None if reason is None else f"critic: {reason}"

    def apply(self, totals: Mapping[str, float], step: int) -> None:
        """The step with the gradients that are there."""
        if totals:
            rate = self.config.learning_rate or self._settings.learning_rate
            apply_gradients(
                self.optimizer,
                learning_rate=rate * self._settings.schedule.at(step),
                grad_norm=totals["grad_norm"],
                max_grad_norm=self._settings.max_grad_norm,
            )
