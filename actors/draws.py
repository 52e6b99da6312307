"""Draws that depend on a key alone: the same after a crash, whoever asks and when."""

from __future__ import annotations

import hashlib


def order_key(*key: int | str, size: int = 8) -> bytes:
    """`size` bytes to sort by; those of different keys are in no order."""
    return hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=size).digest()


def uniform(*key: int | str) -> float:
    """[0, 1)."""
    return int.from_bytes(order_key(*key)) / 2**64


def sampling_seed(*key: int | str) -> int:
    """31 bits, for an engine."""
    return int.from_bytes(order_key(*key, size=4)) & 0x7FFFFFFF
