"""Two short sequences of one group with all log-probs a loss may read: the input of the worked numbers in the tests.

Flat, sequence 1 (3 tokens, advantage +1, reward 1) before sequence 2 (2 tokens, advantage -1, reward 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

LENGTHS = (3, 2)


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MU = flat(-0.5, -1.0, -2.0, -0.3, -1.5)
"""Behaviour log-probs."""
PROX = flat(-0.6, -0.9, -1.8, -0.35, -1.4)
"""Log-probs before the first update on the batch."""
PI = flat(-0.4, -1.2, -1.5, -0.5, -1.1)
"""Policy being trained."""
REF = flat(-0.7, -1.0, -1.6, -0.4, -1.6)
ADVANTAGES = flat(1, 1, 1, -1, -1)

TOKEN = flat(*[1 / 5] * 5)
"""Per-token scales of the mean over tokens."""
SEQUENCE = flat(*[1 / 6] * 3, *[1 / 4] * 2)
"""Of the mean over sequences of token means."""
FIRST = flat(*[1 / 3] * 3, 0, 0)
"""Of the mean over the tokens of sequence 1 alone."""
SECOND = flat(0, 0, 0, 1 / 2, 1 / 2)


def policy() -> Tensor:
    """PI as a leaf that collects gradients."""
    return PI.clone().requires_grad_()
