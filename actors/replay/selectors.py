"""Which READY group is handed out next: an order per source, kept while groups come and go."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass

Rank = Callable[["Candidate"], tuple[int, ...]]
"""The sort key of a candidate; the smallest is handed out first."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A READY group as a selector sees it.

    Attributes:
        turn: how often it was used in the surviving history, counted from the pass in which it arrived.
        seq: position in the order of arrival.
        oldest: oldest policy version among its trained tokens; 0 for frozen sources.
    """

    group_id: str
    turn: int
    seq: int
    oldest: int = 0


def stalest_first(candidate: Candidate) -> tuple[int, int, int]:
    """The oldest version among the least used, then the oldest arrival; a group that comes back takes its old place.

    A group that took long to sample would otherwise stand behind younger ones and age out, so that long answers were
    trained on less often than short ones.
    """
    return candidate.turn, candidate.oldest, candidate.seq


def shuffled_passes(seed: int, source: str) -> Rank:
    """Every group once per pass, each pass in another seeded order.

    The order is a keyed hash of (pass, group), so it depends neither on arrival nor on the process, and needs no
    state beyond each group's count of uses: undoing a use restores it.
    """
    key = hashlib.blake2b(f"{seed}:{source}".encode(), digest_size=16).digest()

    def rank(candidate: Candidate) -> tuple[int, int]:
        text = f"{candidate.turn}:{candidate.group_id}".encode()
        return candidate.turn, int.from_bytes(hashlib.blake2b(text, key=key, digest_size=8).digest())

    return rank


class ReadyQueue:
    """The READY groups of one source in hand-out order. Adding and taking cost O(log n), removing is lazy."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._heap: list[tuple[tuple[int, ...], str]] = []
        self._keys: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, candidate: Candidate) -> None:
        key = self._rank(candidate)
        self._keys[candidate.group_id] = key
        heapq.heappush(self._heap, (key, candidate.group_id))

    def remove(self, group_id: str) -> None:
        del self._keys[group_id]
        if len(self._heap) > 2 * len(self._keys) + 64:
            self._heap = [(key, name) for name, key in self._keys.items()]
            heapq.heapify(self._heap)

    def first(self, count: int) -> list[str]:
        """The next `count` groups in order; they stay in the queue until they are removed."""
        chosen: list[tuple[tuple[int, ...], str]] = []
        while len(chosen) < count and self._heap:
            item = heapq.heappop(self._heap)
            if self._keys.get(item[1]) == item[0] and (not chosen or chosen[-1] != item):
                chosen.append(item)
        for item in chosen:
            heapq.heappush(self._heap, item)
        return [group_id for _, group_id in chosen]
