"""The opponent of the learner benchmarks: transformers' own forward pass, torch's fused cross entropy and AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel


class PlainLearner:
    """Imitates packed sequences as plain code does: boundaries from restarting positions, loss over all next tokens."""

    def __init__(self, model: PreTrainedModel, *, max_grad_norm: float = 1.0, learning_rate: float = 1e-6) -> None:
        self.model = model
        self._max_grad_norm = max_grad_norm
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)

    @classmethod
    def load(cls, folder: Path) -> PlainLearner:
        return cls(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa"))

    def step(self, sequences: Sequence[np.ndarray]) -> float:
        """One optimizer step; sequences [L] each, every token but the first is a target. Returns the loss."""
        inputs, targets, positions = packed(sequences, self.model.device)
        hidden = self.model.get_decoder()(
            input_ids=inputs[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state[0]
        weight = self.model.get_output_embeddings().weight
        if hasattr(F, "linear_cross_entropy"):
            loss = F.linear_cross_entropy(hidden, weight, targets)
        else:
            loss = F.cross_entropy((hidden @ weight.T).float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def packed(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[n] inputs, targets and positions of sequences in one row."""
    inputs = np.concatenate([s[:-1] for s in sequences])
    targets = np.concatenate([s[1:] for s in sequences])
    positions = np.concatenate([np.arange(len(s) - 1) for s in sequences])
    return tuple(torch.as_tensor(a, dtype=torch.int64, device=device) for a in (inputs, targets, positions))
