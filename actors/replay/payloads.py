"""The packed blocks of groups that may still be handed out: the newest in memory, the others on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Blob = Sequence[Any]
"""Where a block lies: file, offset, bytes."""


class Payloads:
    """Blocks by group. Every block with a place on disk was written there first, so leaving memory costs nothing.

    Args:
        max_bytes: of blocks in memory; those that lie nowhere else stay whatever they take.
        read: the block at a place on disk; None when it is gone or damaged.
    """

    def __init__(self, max_bytes: int, read: Callable[[Blob], bytes | None]) -> None:
        self._max_bytes, self._read = max_bytes, read
        self._hot: OrderedDict[str, bytes] = OrderedDict()
        """Of groups that are also on disk, the least recently used first."""
        self._only: dict[str, bytes] = {}
        """Of groups that are in memory alone."""
        self._blobs: dict[str, Blob] = {}
        self.num_spilled = self.num_fetched = 0
        """Blocks that left memory, and that were read back, since this process began."""
        self._hot_bytes = self._only_bytes = 0

    def __len__(self) -> int:
        return len(self._blobs) + len(self._only)

    def __iter__(self) -> Iterator[str]:
        yield from self._blobs
        yield from self._only

    def __contains__(self, group_id: str) -> bool:
        return group_id in self._blobs or group_id in self._only

    @property
    def num_cold(self) -> int:
        """Blocks on disk alone."""
        return len(self._blobs) - len(self._hot)

    @property
    def memory_bytes(self) -> int:
        return self._hot_bytes + self._only_bytes

    def add(self, group_id: str, data: bytes, blob: Blob | None) -> None:
        self.discard(group_id)
        if blob is None:
            self._only[group_id] = data
            self._only_bytes += len(data)
            self._trim()
        else:
            self._blobs[group_id] = blob
            self._keep(group_id, data)

    def move(self, group_id: str, blob: Blob) -> None:
        """The block lies at another place now."""
        if group_id in self._blobs:
            self._blobs[group_id] = blob

    def get(self, group_id: str) -> bytes | None:
        """The block; None when it cannot be read back. Raises KeyError for a group that was never added."""
        if group_id in self._only:
            return self._only[group_id]
        if group_id in self._hot:
            self._hot.move_to_end(group_id)
            return self._hot[group_id]
        data = self._read(self._blobs[group_id])
        if data is not None:
            self.num_fetched += 1
            self._keep(group_id, data)
        return data

    def discard(self, group_id: str) -> None:
        self._only_bytes -= len(self._only.pop(group_id, b""))
        self._hot_bytes -= len(self._hot.pop(group_id, b""))
        self._blobs.pop(group_id, None)

    def _keep(self, group_id: str, data: bytes) -> None:
        self._hot[group_id] = data
        self._hot_bytes += len(data)
        self._trim()

    def _trim(self) -> None:
        while self.memory_bytes > self._max_bytes and self._hot:
            _, dropped = self._hot.popitem(last=False)
            self._hot_bytes -= len(dropped)
            self.num_spilled += 1
