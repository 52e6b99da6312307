"""Weights in a binary tree of sums: one is drawn, changed or removed in O(log n)."""

from __future__ import annotations

from typing import NamedTuple


class Handle(NamedTuple):
    """A place in the tree. Places are reused; the generation tells the present tenant from those before it."""

    slot: int
    generation: int


class SumTree:
    """Non-negative weights by place.

    A node is always computed anew from its two children, never by adding a difference, so rounding errors do not
    accumulate however often weights change.
    """

    def __init__(self, capacity: int = 16) -> None:
        self._capacity = 1 << max(0, capacity - 1).bit_length()
        self._nodes = [0.0] * (2 * self._capacity)
        """Node i has the children 2i and 2i+1; the leaf of slot s is node capacity + s."""
        self._generations: list[int] = []
        self._free: list[int] = []
        self._num = 0

    def __len__(self) -> int:
        return self._num

    @property
    def total(self) -> float:
        return self._nodes[1]

    def insert(self, weight: float) -> Handle:
        """Raises ValueError for a weight that is negative or not finite."""
        _check(weight)
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._generations)
            self._generations.append(0)
            if slot == self._capacity:
                self._grow()
        self._set(slot, weight)
        self._num += 1
        return Handle(slot, self._generations[slot])

    def holds(self, handle: Handle) -> bool:
        return handle.slot < len(self._generations) and self._generations[handle.slot] == handle.generation

    def weight(self, handle: Handle) -> float | None:
        """None when the place has another tenant by now."""
        return self._nodes[self._capacity + handle.slot] if self.holds(handle) else None

    def update(self, handle: Handle, weight: float) -> bool:
        """False, and nothing changes, when the place has another tenant by now.

        Raises:
            ValueError: the weight is negative or not finite.
        """
        _check(weight)
        if not self.holds(handle):
            return False
        self._set(handle.slot, weight)
        return True

    def remove(self, handle: Handle) -> bool:
        """False, and nothing changes, when it was removed before."""
        if not self.holds(handle):
            return False
        self._set(handle.slot, 0.0)
        self._generations[handle.slot] += 1
        self._free.append(handle.slot)
        self._num -= 1
        return True

    def find(self, mass: float) -> int:
        """The slot in which the running sum of weights passes `mass`, for mass in [0, total) and total > 0."""
        nodes, node = self._nodes, 1
        while node < self._capacity:
            node *= 2
            if mass >= nodes[node] and nodes[node + 1] > 0.0:  # rounding may leave mass behind the last weight
                mass -= nodes[node]
                node += 1
        return node - self._capacity

    def _set(self, slot: int, weight: float) -> None:
        nodes, node = self._nodes, self._capacity + slot
        nodes[node] = weight
        while node > 1:
            node //= 2
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]

    def _grow(self) -> None:
        leaves = self._nodes[self._capacity :]
        self._capacity *= 2
        self._nodes = [0.0] * self._capacity + leaves + [0.0] * len(leaves)
        for node in range(self._capacity - 1, 0, -1):
            self._nodes[node] = self._nodes[2 * node] + self._nodes[2 * node + 1]


def _check(weight: float) -> None:
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"weight {weight}: drawing by weight needs finite weights of at least 0")
