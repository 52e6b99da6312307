"""Which READY group is handed out next: an order or a draw per source, kept while groups come and go.

Every selector answers with keys: the smallest key goes first, and keys of the same selector over different shares of
the groups can be merged, so a batch drawn from several shards is the batch one selector over all of them would give.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from actors.replay.config import TableConfig
from actors.replay.sum_tree import Handle, SumTree

Key = tuple[float, ...]
"""Sort key of a group in one hand-out; the smallest is handed out first."""

Rank = Callable[["Candidate"], Key]
"""The sort key of a candidate that does not depend on the other groups."""

MIN_WEIGHT = 1e-6
"""Of a group of priority 0: it stays possible to draw it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A READY group as a selector sees it.

    Attributes:
        turn: how often it was used in the surviving history, counted from the pass in which it arrived.
        seq: position in the order of arrival.
        oldest: oldest policy version among its trained tokens; 0 for frozen sources.
        priority: of a prioritised table, at least 0.
        num_bytes: packed size.
    """

    group_id: str
    turn: int
    seq: int
    oldest: int = 0
    priority: float = 1.0
    prompt_id: str | None = None
    num_bytes: int = 0


class Selector(Protocol):
    """The READY groups of one source. `draw` numbers the hand-outs: the same groups and draw give the same answer."""

    def __len__(self) -> int: ...

    def add(self, candidate: Candidate) -> None: ...

    def remove(self, group_id: str) -> None: ...

    def heads(self, count: int, draw: int) -> list[tuple[Key, str]]:
        """The next `count` groups in order, with their keys; they stay until they are removed."""
        ...


def stalest_first(candidate: Candidate) -> tuple[int, int, int]:
    """The oldest version among the least used, then the oldest arrival; a group that comes back takes its old place.

    A group that took long to sample would otherwise stand behind younger ones and age out, so that long answers were
    trained on less often than short ones.
    """
    return candidate.turn, candidate.oldest, candidate.seq


def oldest_arrival_first(candidate: Candidate) -> tuple[int, int]:
    return candidate.turn, candidate.seq


def newest_arrival_first(candidate: Candidate) -> tuple[int]:
    return (-candidate.seq,)


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


def make_selector(table: TableConfig, source: str, seed: int, shard: int = 0) -> Selector:
    """The selector of a table; the default order is the stalest first for live groups and passes for all others.

    The order of passes is one over all shards; random draws differ from shard to shard.
    """
    match table.order or ("stalest" if source == "live" else "passes"):
        case "stalest":
            return ReadyQueue(stalest_first)
        case "passes":
            return ReadyQueue(shuffled_passes(seed, source))
        case "fifo":
            return ReadyQueue(oldest_arrival_first)
        case "lifo":
            return ReadyQueue(newest_arrival_first)
        case "uniform":
            return WeightedPool(f"{seed}:{shard}:{source}", exponent=0.0)
        case "prioritised":
            return WeightedPool(f"{seed}:{shard}:{source}", exponent=table.priority_exponent)


class ReadyQueue:
    """The READY groups of one source in hand-out order. Adding and taking cost O(log n), removing is lazy."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._heap: list[tuple[Key, str]] = []
        self._keys: dict[str, Key] = {}

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

    def heads(self, count: int, draw: int = 0) -> list[tuple[Key, str]]:
        """The order does not depend on `draw`."""
        del draw
        chosen: list[tuple[Key, str]] = []
        while len(chosen) < count and self._heap:
            item = heapq.heappop(self._heap)
            if self._keys.get(item[1]) == item[0] and (not chosen or chosen[-1] != item):
                chosen.append(item)
        for item in chosen:
            heapq.heappush(self._heap, item)
        return chosen


class WeightedPool:
    """Draws READY groups without replacement, with chances in proportion to (priority + 1e-6) ** exponent.

    The keys are arrival times of a race: with weights w each group arrives after Exp(1)/w, so the next arrival is a
    group drawn by weight, after Exp(1)/(sum of the weights left). Merging the races of several pools by time is
    therefore one draw over all of their groups. The random numbers are a hash of name and draw, so there is no state
    to save.

    Args:
        name: of the table and the run's seed. Pools of different shards need different names.
    """

    def __init__(self, name: str, *, exponent: float) -> None:
        self._name, self._exponent = name, exponent
        self._tree = SumTree()
        self._handles: dict[str, Handle] = {}
        self._names: list[str] = []
        """Group by slot; stale where the slot is empty."""

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, candidate: Candidate) -> None:
        handle = self._tree.insert((candidate.priority + MIN_WEIGHT) ** self._exponent)
        self._handles[candidate.group_id] = handle
        if handle.slot == len(self._names):
            self._names.append(candidate.group_id)
        else:
            self._names[handle.slot] = candidate.group_id

    def remove(self, group_id: str) -> None:
        self._tree.remove(self._handles.pop(group_id))

    def heads(self, count: int, draw: int = 0) -> list[tuple[Key, str]]:
        tree, time, chosen = self._tree, 0.0, []
        weights: list[tuple[Handle, float]] = []
        for position in range(min(count, len(self._handles))):
            time -= math.log(self._random(draw, position, "time")) / tree.total
            name = self._names[tree.find(self._random(draw, position, "group") * tree.total)]
            handle = self._handles[name]
            weights.append((handle, tree.weight(handle) or 0.0))
            tree.update(handle, 0.0)
            chosen.append(((time,), name))
        for handle, weight in weights:
            tree.update(handle, weight)
        return chosen

    def _random(self, draw: int, position: int, what: str) -> float:
        """Uniform in (0, 1)."""
        digest = hashlib.blake2b(f"{self._name}:{draw}:{position}:{what}".encode(), digest_size=8).digest()
        return ((int.from_bytes(digest) >> 11) + 0.5) / (1 << 53)
