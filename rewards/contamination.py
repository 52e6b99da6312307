"""Does a model know a problem by heart? Pure functions on its text and on what the model makes of its beginning."""

from __future__ import annotations

from collections.abc import Sequence


def cut(text: str, share: float) -> tuple[str, str]:
    """The first `share` of the words with the space behind them, and the rest.

    Raises:
        ValueError: share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie strictly between 0 and 1, got {share}")
    words = text.split(" ")
    at = min(max(1, round(share * len(words))), len(words) - 1)
    return " ".join(words[:at]) + " " * (at > 0), " ".join(words[at:])


def is_completed(hidden: str, continuation: str) -> bool:
    """Whether the continuation begins with every hidden word."""
    wanted, found = hidden.split(), continuation.split()
    return bool(wanted) and found[: len(wanted)] == wanted


def overlap(hidden: str, continuation: str) -> float:
    """F1 of the longest common subsequence of words; the continuation is cut to the hidden part's number of words.

    Source: ROUGE-L, Lin 2004, section 3.1, with equal weight of precision and recall.
    """
    wanted = hidden.split()
    found = continuation.split()[: len(wanted)]
    if not wanted or not found:
        return 0.0
    return 2 * _longest_common(wanted, found) / (len(wanted) + len(found))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]
