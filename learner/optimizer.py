"""AdamW on sharded weights: parameter groups, clipping inside the fused kernel, steps that must not be taken."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from learner.config import OptimizerConfig


def make_optimizer(settings: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW in one kernel; weight decay on matrices only, as norms and biases have no reason to shrink."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def apply_gradients(
    optimizer: torch.optim.Optimizer, *, learning_rate: float, grad_norm: float, max_grad_norm: float
) -> None:
    """Clips and applies the gradients; the fused kernel divides by `grad_scale` while it reads them.

    Args:
        grad_norm: their global 2-norm.
    """
    excess = max(1.0, grad_norm / max_grad_norm)
    device = optimizer.param_groups[0]["params"][0].device
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    fused = cast(Any, optimizer)  # the two attributes through which torch.amp speaks to the fused kernel
    fused.grad_scale = torch.tensor(excess, device=device) if excess > 1.0 else None
    fused.found_inf = torch.tensor(0.0, device=device) if excess > 1.0 else None
    optimizer.step()


def why_not_finite(loss: float, grad_norm: float) -> str | None:
    """Why a step must not be taken, or None."""
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"gradient norm is {grad_norm}"
    return None
