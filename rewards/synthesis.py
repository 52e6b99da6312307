"""More of what a run cannot do: budgets by failure, sets of concepts, and the gates a written problem has to pass.

Pure functions around the models that write, judge and answer; they call none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Grade = Literal["perfect", "acceptable", "bad"]

MAX_WORDS = 512
"""Longer problems are dropped."""


def budgets(total: int, failures: Mapping[str, float]) -> dict[str, int]:
    """Problems to write per category, in proportion to its share of failures; they sum to the total exactly.

    Largest remainders, so a category that fails more never gets fewer; without any failure all get the same.

    Raises:
        ValueError: no categories, a negative number, or a total below 0.

    Source: SwS, MasterVito/SwS.
    """
    if total < 0 or not failures or min(failures.values()) < 0:
        raise ValueError(f"budgets of {total} over {dict(failures)}: name categories, and no negative numbers")
    names = sorted(failures, key=lambda name: (-failures[name], name))
    shares = np.array([failures[name] for name in names], np.float64)
    shares = shares if shares.sum() > 0 else np.ones(len(names))
    exact = total * shares / shares.sum()
    counts = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return dict(zip(names, np.sort(counts)[::-1].tolist(), strict=True))


def concept_set(
    rng: np.random.Generator, together: Floats, vectors: Floats, *, size: int = 5, temperature: float = 0.2
) -> list[int]:
    """Positions of `size` distinct concepts that go together: each next one by its fit to those chosen.

    p(next) = softmax((share of co-occurrence + mean cosine) / temperature), both with the concepts chosen so far.

    Args:
        together: [C, C] how often two concepts stood in one weak problem.
        vectors: [C, D] embeddings.

    Raises:
        ValueError: fewer concepts than asked for, or matrices that do not fit.

    Source: SwS, MasterVito/SwS; the weights of the two parts are ours.
    """
    num = len(vectors)
    if together.shape != (num, num) or not 1 <= size <= num:
        raise ValueError(f"{size} of {num} concepts with co-occurrences of shape {together.shape}: they do not fit")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    chosen = [int(rng.integers(num))]
    while len(chosen) < size:
        counts = together[chosen].sum(axis=0)
        fit = counts / max(float(counts.sum()), 1.0) + unit @ unit[chosen].mean(axis=0)
        logits = fit / temperature
        logits[chosen] = -np.inf
        weights = np.exp(logits - logits.max())
        chosen.append(int(rng.choice(num, p=weights / weights.sum())))
    return chosen


def is_well_written(
    problem: str, grades: Sequence[Grade], *, judges: Literal["first_perfect", "one_perfect"] = "first_perfect"
) -> bool:
    """Whether a problem passes its judges; proofs and overlong ones never do.

    first_perfect: the first judge says perfect and the second at least acceptable. one_perfect: one says perfect and
    none bad.

    Source: SwS, MasterVito/SwS, both variants of its code.
    """
    words = problem.lower().split()
    if not words or len(words) > MAX_WORDS or any(word in ("prove", "proof") for word in words):
        return False
    if judges == "first_perfect":
        return len(grades) >= 2 and grades[0] == "perfect" and grades[1] != "bad"
    return "perfect" in grades and "bad" not in grades


def agreed_answer(answers: Sequence[Hashable | None], *, min_share: float = 0.5) -> Hashable | None:
    """The answer at least `min_share` of all samples give; None without one. None among them is no answer."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    winner, count = votes.most_common(1)[0]
    return winner if count >= min_share * len(answers) else None
