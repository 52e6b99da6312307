"""Small models samplers choose by: a prompt's rate from its words, a family's promise, a mixture's outcome."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from actors.ledger import LedgerRow
from rewards.task import Task

Floats = npt.NDArray[np.float64]

WORD = re.compile(r"\w+|[^\w\s]")


def predicted_rates(tasks: Sequence[Task], rows: Sequence[LedgerRow], features: int, ridge: float) -> Floats:
    """[tasks] success rates that a ridge regression over hashed words predicts; each prompt weighs its attempts.

    Without any attempt every rate is 1/2.
    """
    tried = [i for i, row in enumerate(rows) if row.attempts]
    if not tried:
        return np.full(len(tasks), 0.5)
    words = np.stack([_hashed(_text(task), features) for task in tasks])
    attempts = np.array([rows[i].attempts for i in tried], np.float64)
    rates = np.array([rows[i].successes for i in tried]) / attempts
    mean = float((rates * attempts).sum() / attempts.sum())
    known = words[tried]
    normal = known.T @ (known * attempts[:, None]) + ridge * np.eye(features)
    weights = np.linalg.solve(normal, known.T @ ((rates - mean) * attempts))
    return np.clip(mean + words @ weights, 0.0, 1.0)


def _text(task: Task) -> str:
    return " ".join(str(message.get("content")) for message in task.messages)


@lru_cache(maxsize=1 << 15)
def _hashed(text: str, features: int) -> Floats:
    """[features] unit vector of the text's words and numbers' lengths."""
    vector = np.zeros(features)
    for word in WORD.findall(text.lower()):
        shape = f"#{len(word)}" if word.isdigit() else word
        for token in {word, shape}:
            vector[int.from_bytes(hashlib.blake2b(token.encode(), digest_size=4).digest()) % features] += 1.0
    return vector / max(1.0, float(np.linalg.norm(vector)))


def next_source(
    points: Floats,
    trained: Sequence[int],
    rates: Sequence[float],
    *,
    slope: float,
    exploration: float,
    noise: float,
    length_scale: float,
) -> int | None:
    """The family to train next, or None when none promises more than is reached already.

    a_i = mean over j of max(m_i + exploration s_i - slope |x_i - x_j| - V_j, 0), m and s of a Gaussian process on the
    rates reached so far, V_j the best transfer to family j. The first family is the middle of the range.

    Args:
        points: [M] the families' parameters, ascending.
        trained: positions of those trained; `rates` is what each reached.

    Source: MBTL, jhoon-cho/MBTL, MBTL/utils.py; kernel parameters are fixed, not fitted.
    """
    if not trained:
        return int(np.argmin(np.abs(points - (points[0] + points[-1]) / 2)))
    x, y = points[list(trained)], np.asarray(rates, np.float64)
    kernel = np.exp(-0.5 * ((points[:, None] - x[None]) / length_scale) ** 2)
    inverse = np.linalg.inv(kernel[list(trained)] + noise**2 * np.eye(len(x)))
    mean = y.mean() + kernel @ inverse @ (y - y.mean())
    deviation = np.sqrt(np.clip(1.0 - np.einsum("ij,jk,ik->i", kernel, inverse, kernel), 0.0, None))
    reached = np.max(y[:, None] - slope * np.abs(x[:, None] - points[None]), axis=0)
    hope = (mean + exploration * deviation)[:, None] - slope * np.abs(points[:, None] - points[None])
    promise = np.maximum(hope - reached[None], 0.0).mean(axis=1)
    promise[list(trained)] = 0.0
    best = int(np.argmax(promise))
    return best if promise[best] > 0 else None


def best_mixture(pilots: Floats, scores: Floats, *, steps: int = 20, ridge: float = 1e-6) -> Floats:
    """[M] the mixture weights a quadratic fitted to pilot runs calls best, from a grid on the simplex.

    s(w) = w' C w; constant and linear parts are in C, because weights sum to 1.

    Args:
        pilots: [P, M] weights of the pilots; scores: [P] what they reached. P of at least M (M + 1) / 2.

    Source: MoDoMoDo.
    """
    num = pilots.shape[1]
    upper = np.triu_indices(num)
    if len(pilots) < len(upper[0]):
        raise ValueError(f"{len(pilots)} pilots cannot tell {len(upper[0])} coefficients of {num} domains: run more")
    products = pilots[:, upper[0]] * pilots[:, upper[1]]
    normal = products.T @ products + ridge * np.eye(products.shape[1])
    coefficients = np.linalg.solve(normal, products.T @ scores)
    grid = np.array(_simplex(num, steps), np.float64) / steps
    return grid[np.argmax((grid[:, upper[0]] * grid[:, upper[1]]) @ coefficients)]


def _simplex(num: int, total: int) -> list[tuple[int, ...]]:
    """All tuples of `num` whole numbers that sum to `total`."""
    if num == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _simplex(num - 1, total - first)]
