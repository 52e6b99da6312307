"""One manifest for everything a run needs to go on: ranks, replay cache, task feed, batches, configuration."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from learner.checkpoint import newest_checkpoint, publish_checkpoint


class SnapshotPort(Protocol):
    """A stateful box that can make its state durable up to now."""

    async def snapshot(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A verified checkpoint.

    Attributes:
        step: committed steps it contains.
        batches: group ids trained at each step of its history.
    """

    folder: Path
    step: int
    batches: dict[int, list[str]]


class RunCheckpointer:
    """Writes checkpoints of a run as `checkpoints/step-N`, newest named by `LATEST`.

    The folder is filled under a temporary name, then manifest and digests are added and it is renamed, so that a
    crash at any point leaves the previous checkpoint the newest complete one.
    """

    def __init__(self, directory: Path, boxes: Mapping[str, SnapshotPort], *, keep: int, config_json: str) -> None:
        self._directory = directory
        self._boxes = boxes
        self._keep = keep
        self._config_json = config_json

    async def begin(self, step: int) -> str:
        folder = self._temporary(step)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return str(folder)

    async def complete(self, step: int, batches: Mapping[int, Sequence[str]], state: Mapping[str, Any]) -> None:
        """Makes the filled folder the newest checkpoint and forgets those beyond the number to keep."""
        snapshots = {name: await box.snapshot() for name, box in self._boxes.items()}
        payload = {"step": step, **state, "snapshots": {k: str(v) for k, v in snapshots.items()}}
        await asyncio.to_thread(self._publish, step, {str(k): list(v) for k, v in batches.items()}, payload)

    def _publish(self, step: int, batches: Mapping[str, list[str]], payload: Mapping[str, Any]) -> None:
        folder, target = self._temporary(step), self._directory / f"step-{step:08d}"
        (folder / "config.json").write_text(self._config_json)
        (folder / "batches.json").write_text(json.dumps(batches))
        publish_checkpoint(folder, target, payload)
        self._forget_all_but(target)

    def _temporary(self, step: int) -> Path:
        return self._directory / f"step-{step:08d}.tmp"

    def _forget_all_but(self, newest: Path) -> None:
        """The newest and the ones before it stay. Higher steps were passed over as damaged when the run was resumed
        before them; folders under a temporary name are what a crash left."""
        older = sorted(p for p in self._directory.glob("step-*") if p.suffix != ".tmp" and p < newest)
        kept = {newest, *(older[1 - self._keep :] if self._keep > 1 else ())}
        for folder in self._directory.glob("step-*"):
            if folder not in kept:
                shutil.rmtree(folder)


def newest_restore_point(directory: Path) -> RestorePoint | None:
    """The newest checkpoint whose digests hold; damaged ones are passed over. None when there is none.

    Raises:
        CorruptCheckpointError: checkpoints exist but none of them is intact.
    """
    newest = newest_checkpoint(directory)
    if newest is None:
        return None
    folder, payload = newest
    batches = json.loads((folder / "batches.json").read_text())
    return RestorePoint(folder, int(payload["step"]), {int(k): v for k, v in batches.items()})
