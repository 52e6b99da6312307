from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.run_checkpoint import RestorePoint, RunCheckpointer, newest_restore_point
from learner.checkpoint import CorruptCheckpointError, verify_checkpoint

MUTATING_CALLS = ("fsync", "rename", "mkdir", "unlink", "rmdir")
"""Calls into the system before each of which a process may die; writes become visible to others by these."""


class Box:
    """A box whose snapshots are numbered."""

    def __init__(self) -> None:
        self.snapshots = 0

    async def snapshot(self) -> str:
        self.snapshots += 1
        return f"snapshot {self.snapshots}"


def checkpointer(root: Path, keep: int = 2, boxes: dict | None = None) -> RunCheckpointer:
    return RunCheckpointer(root, boxes or {}, keep=keep, config_json='{"name": "run"}')


async def checkpoint(saver: RunCheckpointer, step: int) -> None:
    """What the learner does: the ranks fill the folder, then it is completed."""
    folder = Path(await saver.begin(step))
    (folder / "ranks").mkdir()
    (folder / "ranks" / "shard").write_bytes(b"weights of %d" % step)
    await saver.complete(step, {s: [f"g{s}", f"h{s}"] for s in range(step)}, {"step": step})


def step_of(point: RestorePoint | None) -> int:
    assert point is not None
    assert point.folder.name == f"step-{point.step:08d}"
    return point.step


def lying(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir())


async def test_a_restore_point_has_what_was_saved(tmp_path):
    boxes = {"replay": Box(), "tasks": Box()}
    await checkpoint(checkpointer(tmp_path, boxes=boxes), 3)
    point = newest_restore_point(tmp_path)
    folder = tmp_path / "step-00000003"
    assert point == RestorePoint(folder, 3, {0: ["g0", "h0"], 1: ["g1", "h1"], 2: ["g2", "h2"]})
    assert (folder / "ranks" / "shard").read_bytes() == b"weights of 3"
    assert json.loads((folder / "config.json").read_text()) == {"name": "run"}
    assert verify_checkpoint(folder) == {"step": 3, "snapshots": {"replay": "snapshot 1", "tasks": "snapshot 1"}}


async def test_no_checkpoint_is_no_restore_point(tmp_path):
    assert newest_restore_point(tmp_path) is None
    assert newest_restore_point(tmp_path / "never made") is None
    await checkpointer(tmp_path).begin(3)
    assert newest_restore_point(tmp_path) is None


async def test_older_checkpoints_go(tmp_path):
    for step in range(5):
        await checkpoint(checkpointer(tmp_path, keep=2), step)
    assert lying(tmp_path) == ["LATEST", "step-00000003", "step-00000004"]


async def test_what_an_interrupted_save_left_is_swept_up(tmp_path):
    saver = checkpointer(tmp_path)
    leftover = Path(await saver.begin(3))
    (leftover / "half a shard").touch()
    assert lying(Path(await saver.begin(3))) == []
    await checkpoint(saver, 4)
    assert lying(tmp_path) == ["LATEST", "step-00000004"]


def damage(folder: Path, how: str) -> None:
    shard, manifest = folder / "ranks" / "shard", folder / "manifest.json"
    if how == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif how == "flipped":
        shard.write_bytes(b"W" + shard.read_bytes()[1:])
    elif how == "missing":
        (folder / "batches.json").unlink()
    else:
        manifest.unlink()


@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "no manifest"])
async def test_damaged_checkpoints_are_passed_over(tmp_path, how):
    for step in (2, 4, 6):
        await checkpoint(checkpointer(tmp_path, keep=3), step)
    for step in (6, 4):
        damage(tmp_path / f"step-0000000{step}", how)
        point = newest_restore_point(tmp_path)
        assert point is not None
        assert (point.step, sorted(point.batches)) == (step - 2, list(range(step - 2)))
    damage(tmp_path / "step-00000002", how)
    with pytest.raises(CorruptCheckpointError, match="no intact checkpoint"):
        newest_restore_point(tmp_path)


async def test_after_a_damaged_one_was_passed_over_the_new_one_is_kept_and_found(tmp_path):
    for step in (4, 8):
        await checkpoint(checkpointer(tmp_path, keep=2), step)
    damage(tmp_path / "step-00000008", "flipped")
    assert step_of(newest_restore_point(tmp_path)) == 4
    await checkpoint(checkpointer(tmp_path, keep=1), 6)
    assert lying(tmp_path) == ["LATEST", "step-00000006"]
    assert step_of(newest_restore_point(tmp_path)) == 6


async def test_the_pointer_decides_between_intact_ones(tmp_path):
    await checkpoint(checkpointer(tmp_path), 4)
    await checkpoint(checkpointer(tmp_path), 6)
    shutil.copytree(tmp_path / "step-00000006", tmp_path / "step-00000009")  # of a history that was given up
    assert step_of(newest_restore_point(tmp_path)) == 6


# -- death at every point --------------------------------------------------------------------------------------------


def interrupt_before(patch: pytest.MonkeyPatch, nth: int, interrupt: Callable[[], None]) -> Callable[[], int]:
    """Calls `interrupt` before the nth mutating call; returns how many there have been."""
    count = 0

    def counted(original):
        def call(*args, **options):
            nonlocal count
            count += 1
            if count == nth:
                interrupt()
            return original(*args, **options)

        return call

    for name in MUTATING_CALLS:
        patch.setattr(os, name, counted(getattr(os, name)))
    return lambda: count


def assert_consistent(root: Path, may_be: set[int]) -> int:
    """Exactly one of the allowed checkpoints is the newest, whole, and saving goes on from there."""
    point = newest_restore_point(root)
    assert point is not None
    assert point.step in may_be
    assert (point.folder / "ranks" / "shard").read_bytes() == b"weights of %d" % point.step
    assert sorted(point.batches) == list(range(point.step))
    for step in (4, 6):
        if (folder := root / f"step-0000000{step}").exists():
            assert verify_checkpoint(folder)["step"] == step
    asyncio.run(checkpoint(checkpointer(root), 9))
    assert step_of(newest_restore_point(root)) == 9
    assert not [name for name in lying(root) if name.endswith(".tmp")]
    return point.step


@pytest.fixture
def two_checkpoints(tmp_path) -> Path:
    """Steps 2 and 4 are saved; saving 6 will forget 2."""
    root = tmp_path / "checkpoints"
    for step in (2, 4):
        asyncio.run(checkpoint(checkpointer(root), step))
    return root


def test_killed_at_any_point_the_newest_complete_checkpoint_is_found(two_checkpoints, tmp_path):
    found = []
    for nth in range(1, 200):
        root = tmp_path / f"killed-{nth}"
        shutil.copytree(two_checkpoints, root)
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                interrupt_before(patch, nth, lambda: os.kill(os.getpid(), signal.SIGKILL))
                asyncio.run(checkpoint(checkpointer(root), 6))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found.append(assert_consistent(root, {4, 6}))
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    assert found == sorted(found)  # once the new one is there it stays there
    assert (found[0], found[-1]) == (4, 6)
    assert found.count(4) > 5
    assert found.count(6) > 5


def test_failing_at_any_point_the_newest_complete_checkpoint_is_found(two_checkpoints, tmp_path):
    def full() -> None:
        raise OSError("no space left on device")

    found = []
    for nth in range(1, 200):
        root = tmp_path / f"failed-{nth}"
        shutil.copytree(two_checkpoints, root)
        with pytest.MonkeyPatch.context() as patch:
            calls = interrupt_before(patch, nth, full)
            try:
                asyncio.run(checkpoint(checkpointer(root), 6))
            except OSError:
                pass
            else:
                assert calls() < nth
                break
        found.append(assert_consistent(root, {4, 6}))
    assert found == sorted(found)
    assert set(found) == {4, 6}
