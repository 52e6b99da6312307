"""Watches the boxes that the cluster restarts by itself, and writes down how long each was away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

from orchestrator.recorder import RunRecorder

WATCH_S = 0.5
"""How often each box is asked where it is; what a restart is known to have cost is this much too long at most."""


class LocatedBox(Protocol):
    """A box in a process of its own, asked without retries."""

    async def place(self) -> tuple[str, int]:
        """Node and process id."""
        ...


class ServiceWatch:
    """Tells of each box where it runs, when it is lost, and when it is back in another process.

    Consumes the boxes' places; produces events; waits for nobody: a box that is away delays no other one's watch.

    Args:
        lost: exceptions that mean a box's process is gone or cannot be reached.
    """

    def __init__(
        self, boxes: Mapping[str, LocatedBox], lost: tuple[type[BaseException], ...], recorder: RunRecorder
    ) -> None:
        self._boxes, self._lost, self._recorder = dict(boxes), lost, recorder
        self._changed = asyncio.Event()

    def watch(self, boxes: Mapping[str, LocatedBox]) -> None:
        """From now on these; those that were watched before are not told of anew."""
        self._boxes = dict(boxes)
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        watches: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                self._changed.clear()
                for name in watches.keys() - self._boxes.keys():
                    watches.pop(name).cancel()
                for name in self._boxes.keys() - watches.keys():
                    watches[name] = asyncio.ensure_future(self._follow(name, self._boxes[name]))
                await self._changed.wait()
        finally:
            for watch in watches.values():
                watch.cancel()

    async def _follow(self, name: str, box: LocatedBox) -> None:
        known: tuple[str, int] | None = None
        answered_at, is_away = time.monotonic(), False
        while True:
            asked_at = time.monotonic()
            try:
                place = await box.place()
            except self._lost as error:
                if not is_away:
                    await self._recorder.event("box_lost", {"box": name, "error": type(error).__name__})
                is_away = True
            else:
                if place != known:
                    details = {"box": name, "node": place[0], "pid": place[1]}
                    if known is None:
                        await self._recorder.event("box_runs", details)
                    else:
                        away_s = time.monotonic() - answered_at
                        await self._recorder.event("box_restarted", {**details, "seconds": away_s})
                known, is_away, answered_at = place, False, asked_at
            await asyncio.sleep(WATCH_S)
