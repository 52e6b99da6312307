"""Calls whose failure is somebody else's news."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def quietly(call: Awaitable[T]) -> T | None:
    """The result, or None when the box is gone: numbers for humans must not end a run."""
    try:
        return await call
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except Exception:  # the fault is attributed where the box's own loop is awaited
        return None
