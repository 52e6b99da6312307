"""Losses of reward models: scores in, loss and metrics out. Pairs, labels, and steps of a trajectory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from learner.losses.output import LossOutput


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, num_pairs: int, margin: Tensor | None = None, centring: float = 0.0
) -> LossOutput:
    """The chosen answer should score higher than the rejected one.

    loss = sum(-ln sigmoid(chosen - rejected - margin) + centring (chosen + rejected)^2) / num_pairs

    Args:
        chosen, rejected: [P] logits of the two answers of each pair.
        num_pairs: pairs of the whole batch, so that micro-batches simply add up.
        margin: [P] by how much at least; None is 0.
        centring: keeps scores near 0, which comparisons alone leave open.

    Raises:
        ValueError: num_pairs < 1.

    Source: Bradley-Terry as in InstructGPT, arXiv:2203.02155, section 3.5; margin, Llama 2, arXiv:2307.09288, section
    3.2.2; centring, arXiv:2312.09244.
    """
    if num_pairs < 1:
        raise ValueError(f"num_pairs must be at least 1, got {num_pairs}")
    gap = chosen - rejected
    loss = -F.logsigmoid(gap if margin is None else gap - margin)
    loss = loss + centring * (chosen + rejected).square()
    right = (gap.detach() > 0).float() + 0.5 * (gap.detach() == 0).float()
    metrics = {"pair_accuracy": right.sum() / num_pairs, "score_gap": gap.detach().sum() / num_pairs}
    return LossOutput(loss=loss.sum() / num_pairs, metrics=metrics)


def correctness_cross_entropy(logits: Tensor, labels: Tensor, *, num_samples: int) -> LossOutput:
    """A probability that the answer is right, for models that read question, reference and answer.

    Args:
        logits: [B].
        labels: [B] 1 for right, 0 for wrong.
        num_samples: answers of the whole batch.

    Raises:
        ValueError: num_samples < 1.

    Source: VerifyRM in Cooper, arXiv:2508.05613.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum") / num_samples
    right = ((logits.detach() > 0) == (labels > 0.5)).float().sum() / num_samples
    return LossOutput(loss=loss, metrics={"accuracy": right})


def implicit_step_rewards(logprobs: Tensor, old_logprobs: Tensor, step_ids: Tensor, *, beta: float = 0.05) -> Tensor:
    """[S] beta * (log pi_phi - log pi_old) of each step, summed over its action tokens.

    Args:
        logprobs: [N] nats of the action tokens under the implicit reward model; carries gradient.
        old_logprobs: [N] nats under its older snapshot.
        step_ids: [N] 0-based step of each token, none skipped.

    Source: iStar / OPRL, arXiv:2509.19199.
    """
    num_steps = int(step_ids.max()) + 1 if len(step_ids) else 0
    return torch.zeros(num_steps).to(logprobs).index_add(0, step_ids, beta * (logprobs - old_logprobs))


def trajectory_preference(better: Tensor, worse: Tensor, *, num_pairs: int) -> LossOutput:
    """Step rewards of the trajectory with the better outcome should add up to more.

    loss = sum(-ln sigmoid(sum better - sum worse)) / num_pairs

    Args:
        better, worse: [S] and [S'] step rewards of two trajectories of one task.

    Source: iStar / OPRL, arXiv:2509.19199.
    """
    return bradley_terry(better.sum().reshape(1), worse.sum().reshape(1), num_pairs=num_pairs)


def step_advantages(outcomes: Tensor, step_rewards: Tensor, trajectory_ids: Tensor, *, weight: float = 1.0) -> Tensor:
    """[S] A_episode + weight * A_step: outcomes and step rewards, each in deviations within the group.

    Args:
        outcomes: [G] outcome of each trajectory of the group.
        step_rewards: [S] rewards of all steps of the group.
        trajectory_ids: [S] the trajectory of each step.

    Source: iStar / OPRL, arXiv:2509.19199; population deviations, and 0 where all are equal.
    """
    return _deviations(outcomes)[trajectory_ids] + weight * _deviations(step_rewards)


def _deviations(values: Tensor) -> Tensor:
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()
    return torch.where(deviation > 1e-8, centred / deviation.clamp_min(1e-8), torch.zeros_like(values))
