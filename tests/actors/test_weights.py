from __future__ import annotations

import asyncio
import math
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.engines.protocol import EngineError, WeightUpdate
from actors.ports import StaleEpochError
from actors.transports.shared_memory import read_manifest, version_folder, version_folders
from actors.weights import (
    CorruptVersionError,
    ProbeFailedError,
    ReadLease,
    VersionGoneError,
    WeightStore,
    activate,
    verify_version,
    write_version,
)
from rewards.trajectory import PolicyVersion

PROBE = (5, 6, 7)
PROBE_LOGPROBS = (math.nan, -1.0, -2.0)


def write(directory: Path, version: int, *, step: int = 0, value: float = 0.0) -> WeightUpdate:
    return write_version(
        [("w", torch.full((2,), value))],
        directory,
        version=PolicyVersion(version),
        step=step,
        incarnation=0,
        dtype="float32",
        probe_token_ids=PROBE,
        probe_logprobs=PROBE_LOGPROBS,
    )


def store(root: Path, keep: int = 2) -> WeightStore:
    return WeightStore(root / "versions", state_dir=root / "state", keep_versions=keep)


async def publish(weights: WeightStore, root: Path, step: int) -> WeightUpdate:
    version = await weights.issue_version(step)
    update = write(root / "versions", version, step=step, value=float(version))
    await weights.publish(update)
    return update


def version_of(update: WeightUpdate | None) -> int:
    assert update is not None
    return update.version


def lying(root: Path) -> list[int]:
    return list(version_folders(root / "versions"))


# -- writing ---------------------------------------------------------------------------------------------------------


def test_an_update_says_where_the_version_lies_and_how_to_recognise_it(tmp_path):
    update = write(tmp_path, 4, step=9)
    assert Path(update.path) == version_folder(tmp_path, 4)
    assert verify_version(update.path, update.digest).step == 9
    assert update.probe_token_ids == PROBE
    assert update.probe_logprobs[1:] == PROBE_LOGPROBS[1:]
    with pytest.raises(CorruptVersionError, match="announced"):
        verify_version(update.path, write(tmp_path, 5).digest)
    with pytest.raises(FileExistsError):
        write(tmp_path, 4)


def test_a_probe_of_two_lengths_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="3 tokens but 2 log-probs"):
        write_version(
            [("w", torch.zeros(1))], tmp_path / "versions", version=PolicyVersion(0), step=0, incarnation=0,
            dtype="float32", probe_token_ids=PROBE, probe_logprobs=(0.0, 0.0),
        )  # fmt: skip
    assert not (tmp_path / "versions").exists()


# -- the store -------------------------------------------------------------------------------------------------------


async def test_the_newest_version_is_announced_and_repeating_it_changes_nothing(tmp_path):
    weights = store(tmp_path)
    assert await weights.newest() is None
    first = await publish(weights, tmp_path, 0)
    assert await weights.newest() == first
    second = await publish(weights, tmp_path, 1)
    await weights.publish(first)
    assert await weights.newest() == second


async def test_versions_that_were_never_issued_or_have_other_bytes_are_refused(tmp_path):
    weights = store(tmp_path)
    with pytest.raises(ValueError, match="never issued"):
        await weights.publish(write(tmp_path / "versions", 7))
    update = await publish(weights, tmp_path, 0)
    with pytest.raises(ValueError, match="other bytes"):
        await weights.publish(replace(update, digest="0" * 64))
    assert await weights.newest() == update


@pytest.mark.parametrize("restart", [False, True])
async def test_a_replaced_publisher_is_refused(tmp_path, restart):
    weights = store(tmp_path)
    late = await weights.issue_version(0)
    newest = await publish(weights, tmp_path, 0)
    if restart:  # also when the newer version's files are lost
        shutil.rmtree(newest.path)
        weights = store(tmp_path)
    with pytest.raises(StaleEpochError, match=f"version {late} "):
        await weights.publish(write(tmp_path / "versions", late))
    assert await weights.newest() == (None if restart else newest)


async def test_a_rollback_abandons_what_contains_more_steps_also_after_a_restart(tmp_path):
    weights = store(tmp_path)
    published = [await publish(weights, tmp_path, step) for step in (0, 4, 8, 12)]
    assert await weights.abandoned() == frozenset()
    await publish(weights, tmp_path, 4)  # the learner went back to its checkpoint
    assert await weights.abandoned() == {published[2].version, published[3].version}
    assert await store(tmp_path).abandoned() == {published[2].version, published[3].version}


async def test_a_restarted_store_knows_the_newest_version_in_full(tmp_path):
    update = await publish(store(tmp_path), tmp_path, 3)
    again = await store(tmp_path).newest()
    assert again is not None
    assert replace(again, probe_logprobs=()) == replace(update, probe_logprobs=())
    np.testing.assert_array_equal(again.probe_logprobs, PROBE_LOGPROBS)
    assert isinstance(again.probe_token_ids, tuple)


@pytest.mark.parametrize("damage", ["gone", "no manifest", "other manifest"])
async def test_a_restarted_store_does_not_announce_what_is_no_longer_there(tmp_path, damage):
    weights = store(tmp_path)
    folders = [Path((await publish(weights, tmp_path, step)).path) for step in range(2)]
    if damage == "gone":
        shutil.rmtree(folders[1])
    elif damage == "no manifest":
        (folders[1] / "manifest.json").unlink()
    else:
        shutil.copy(folders[0] / "manifest.json", folders[1] / "manifest.json")
    again = store(tmp_path)
    assert await again.newest() is None
    newer = await publish(again, tmp_path, 2)
    assert newer.version == 2
    assert await again.newest() == newer


@pytest.mark.parametrize("cut", [1, 5, 30])
async def test_a_log_cut_by_a_crash_loses_only_what_was_never_answered(tmp_path, cut):
    weights = store(tmp_path)
    first = await publish(weights, tmp_path, 0)
    version = await weights.issue_version(1)
    log = tmp_path / "state" / "versions.jsonl"
    before = log.read_bytes()
    second = write(tmp_path / "versions", version, step=1)
    await weights.publish(second)
    log.write_bytes(before + log.read_bytes()[len(before) : -cut])

    again = store(tmp_path)
    assert version_of(await again.newest()) == first.version
    await again.publish(second)  # the learner tries again
    assert await again.newest() == second
    assert await store(tmp_path).issue_version(2) == version + 1


async def test_what_could_not_be_made_durable_is_not_announced(tmp_path, monkeypatch):
    weights = store(tmp_path)
    first = await publish(weights, tmp_path, 0)
    second = write(tmp_path / "versions", await weights.issue_version(1), step=1)

    def full(fd: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            await weights.publish(second)
        with pytest.raises(OSError, match="no space"):
            await weights.issue_version(2)
    assert await weights.newest() == first
    assert version_of(await store(tmp_path).newest()) == first.version
    await weights.publish(second)
    assert await weights.newest() == second
    assert await store(tmp_path).issue_version(2) == 2


async def test_waiting_for_a_newer_version(tmp_path):
    weights = store(tmp_path)
    assert await weights.wait_newer(PolicyVersion(-1), 0.01) is None
    waiting = [asyncio.create_task(weights.wait_newer(PolicyVersion(v), 10)) for v in (-1, -1, 0)]
    await asyncio.sleep(0.01)
    first = await publish(weights, tmp_path, 0)
    assert [await task for task in waiting[:2]] == [first, first]
    assert await weights.wait_newer(PolicyVersion(-1), 0.0) == first
    assert not waiting[2].done()
    second = await publish(weights, tmp_path, 1)
    assert await waiting[2] == second
    assert await weights.wait_newer(second.version, 0.01) is None


async def test_a_cancelled_waiter_does_not_disturb_the_others(tmp_path):
    weights = store(tmp_path)
    leaving, staying = [asyncio.create_task(weights.wait_newer(PolicyVersion(-1), 10)) for _ in range(2)]
    await asyncio.sleep(0.01)
    leaving.cancel()
    await asyncio.sleep(0)
    assert await asyncio.gather(publish(weights, tmp_path, 0), staying) == [(await weights.newest())] * 2


async def test_old_versions_go_unless_they_are_read(tmp_path):
    weights = store(tmp_path, keep=2)
    updates = [await publish(weights, tmp_path, step) for step in range(2)]
    lease = ReadLease(Path(updates[0].path))
    updates += [await publish(weights, tmp_path, step) for step in range(2, 5)]
    assert lying(tmp_path) == [0, 3, 4]
    lease.release()
    await publish(weights, tmp_path, 5)
    assert lying(tmp_path) == [4, 5]


async def test_new_versions_are_written_into_the_memory_of_old_ones_and_read_ones_stay_as_they_are(tmp_path):
    weights = store(tmp_path, keep=1)
    updates = [await publish(weights, tmp_path, 0)]
    lease = ReadLease(Path(updates[0].path))
    for step in range(1, 5):
        updates.append(await publish(weights, tmp_path, step))
        verify_version(updates[0].path, updates[0].digest)
        verify_version(updates[-1].path, updates[-1].digest)
    inodes = [(Path(u.path) / "model.safetensors").stat().st_ino for u in (updates[0], updates[-1])]
    spare = (tmp_path / "versions" / ".spare").stat().st_ino
    assert len({*inodes, spare}) == 3
    lease.release()
    newest = await publish(weights, tmp_path, 5)
    assert (Path(newest.path) / "model.safetensors").stat().st_ino == spare


async def test_versions_nobody_announced_go_with_the_older_ones(tmp_path):
    weights = store(tmp_path, keep=1)
    write(tmp_path / "versions", await weights.issue_version(0))
    await publish(weights, tmp_path, 0)
    assert lying(tmp_path) == [1]


async def test_folders_of_another_run_are_removed_before_their_numbers_come_again(tmp_path):
    write(tmp_path / "versions", 0, value=7.0)
    write(tmp_path / "versions", 9)
    weights = store(tmp_path)
    assert lying(tmp_path) == []
    update = await publish(weights, tmp_path, 0)
    store(tmp_path)
    assert lying(tmp_path) == [update.version]


@settings(max_examples=25, stateful_step_count=20, deadline=None)
class StoreLife(RuleBasedStateMachine):
    """A store through issues, publications, rollbacks, crashes with torn logs, and readers."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(mkdtemp(prefix="braid-test-"))
        self.loop = asyncio.new_event_loop()
        self.issued: list[int] = []
        self.published: dict[int, WeightUpdate] = {}
        self.abandoned: set[int] = set()
        self.step = 0
        self.leases: list[tuple[int, ReadLease]] = []

    def teardown(self) -> None:
        self.loop.close()
        shutil.rmtree(self.root)

    def do(self, call):
        return self.loop.run_until_complete(call)

    @initialize(keep=st.integers(1, 3))
    def begin(self, keep):
        self.keep = keep
        self.weights = store(self.root, keep)

    @rule()
    def issue(self):
        version = self.do(self.weights.issue_version(self.step))
        assert version not in self.issued
        assert version > max(self.issued, default=-1)
        self.issued.append(version)

    @precondition(lambda self: self.issued)
    @rule(data=st.data())
    def publish_one(self, data):
        version = data.draw(st.sampled_from(self.issued))
        if version in self.published:
            self.do(self.weights.publish(self.published[version]))
            return
        folder = version_folder(self.root / "versions", version)
        shutil.rmtree(folder, ignore_errors=True)
        update = write(self.root / "versions", version, step=self.step, value=float(version))
        if version < max(self.published, default=-1):
            with pytest.raises(StaleEpochError):
                self.do(self.weights.publish(update))
            return
        self.do(self.weights.publish(update))
        self.abandoned |= {v for v, u in self.published.items() if u.step > update.step}
        self.published[version] = update

    @rule(steps=st.integers(1, 3))
    def train(self, steps):
        self.step += steps

    @precondition(lambda self: self.step)
    @rule(data=st.data())
    def roll_back(self, data):
        self.step = data.draw(st.integers(0, self.step - 1))

    @rule(torn=st.binary(max_size=12).filter(lambda b: b"\n" not in b))
    def crash(self, torn):
        with (self.root / "state" / "versions.jsonl").open("ab") as log:
            log.write(torn)
        self.weights = store(self.root, self.keep)

    @precondition(lambda self: self.published)
    @rule()
    def read_newest(self):
        version = max(self.published)
        self.leases.append((version, ReadLease(Path(self.published[version].path))))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def stop_reading(self, data):
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))[1].release()

    @invariant()
    def newest_is_the_last_published(self):
        newest = self.do(self.weights.newest()) if self.published else None
        assert (newest.version if newest else None) == max(self.published, default=None)
        assert self.do(self.weights.abandoned()) == self.abandoned

    @invariant()
    def kept_and_read_versions_are_there(self):
        readable = {*sorted(self.published)[-self.keep :], *(version for version, _ in self.leases)}
        for version in readable:
            update = self.published[version]
            assert read_manifest(Path(update.path)).digest == update.digest


TestStoreLife = StoreLife.TestCase


# -- activation ------------------------------------------------------------------------------------------------------


class ScriptedEngine:
    """Records what is asked of it; `answers` replaces what a method returns, an exception is raised."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[Any] = []
        healthy = {"reset_prefix_cache": True, "score": np.array(PROBE_LOGPROBS, np.float32)}
        self.answers: dict[str, Any] = healthy | answers

    def __getattr__(self, name: str):
        async def call(*args: object, **options: object) -> object:
            self.calls.append((name, *args, *options.items()) if args or options else name)
            await asyncio.sleep(0.02)
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


async def run_activation(engine: Any, update: WeightUpdate, *, tolerance: float = 1e-3, clear: bool = True):
    return await activate(engine, update, tolerance=tolerance, clear_cache=clear)


@pytest.mark.parametrize("clear", [True, False])
async def test_activation_goes_in_order_and_the_probe_comes_before_resume(tmp_path, clear):
    update, engine = write(tmp_path, 3, step=8), ScriptedEngine()
    report = await run_activation(engine, update, clear=clear)
    assert engine.calls == [
        "pause",
        ("load_weights", update),
        ("reset_prefix_cache", ("recompute_running", clear)),
        ("set_version", 3),
        ("score", PROBE),
        "resume",
    ]
    assert (report.version, report.step) == (3, 8)
    assert (report.probe_mean_error, report.probe_max_error) == (0.0, 0.0)


async def test_the_phases_of_a_report_add_up_to_the_pause(tmp_path):
    report = await run_activation(ScriptedEngine(), write(tmp_path, 0))
    phases = [report.freeze_s, report.load_s, report.reset_s, report.probe_s]
    assert all(phase >= 0.02 for phase in phases)
    assert report.probe_s >= 0.04  # label and score
    assert report.pause_s >= sum(phases) + 0.02  # and resume
    assert report.verify_s > 0
    assert report.as_dict()["version"] == 0


async def test_damaged_files_are_found_before_the_engine_is_touched(tmp_path):
    update, engine = write(tmp_path, 0), ScriptedEngine()
    path = Path(update.path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptVersionError):
        await run_activation(engine, update)
    shutil.rmtree(update.path)
    with pytest.raises(VersionGoneError):
        await run_activation(engine, update)
    assert engine.calls == []


@pytest.mark.parametrize(
    ("answers", "error", "last_call"),
    [
        ({"pause": EngineError("dead")}, EngineError, "pause"),
        ({"load_weights": EngineError("half loaded")}, EngineError, "load_weights"),
        ({"reset_prefix_cache": False}, ProbeFailedError, "reset_prefix_cache"),
        ({"set_version": EngineError("dead")}, EngineError, "set_version"),
        ({"score": EngineError("dead")}, EngineError, "score"),
        ({"score": np.array([np.nan, -1.0, -2.01])}, ProbeFailedError, "score"),
        ({"score": np.array([np.nan, -1.0, np.nan])}, ProbeFailedError, "score"),
        ({"score": np.array([np.nan, -1.0, -np.inf])}, ProbeFailedError, "score"),
        ({"score": np.array([np.nan, -1.0])}, ProbeFailedError, "score"),
    ],
)
async def test_after_any_failure_the_engine_stays_paused(tmp_path, answers, error, last_call):
    engine = ScriptedEngine(**answers)
    with pytest.raises(error):
        await run_activation(engine, write(tmp_path, 0))
    assert (engine.calls[-1] if isinstance(engine.calls[-1], str) else engine.calls[-1][0]) == last_call


async def test_a_failed_probe_says_by_how_much_and_what_is_allowed(tmp_path):
    engine = ScriptedEngine(score=np.array([np.nan, -1.0, -2.5]))
    with pytest.raises(ProbeFailedError, match=r"by 0\.25 nats on average \(largest 0\.5, allowed 0\.1\)"):
        await run_activation(engine, write(tmp_path, 0), tolerance=0.1)
    report = await run_activation(ScriptedEngine(score=engine.answers["score"]), write(tmp_path, 1), tolerance=0.3)
    assert (report.probe_mean_error, report.probe_max_error) == (0.25, 0.5)


async def test_a_learner_that_published_nan_is_noticed(tmp_path):
    update = replace(write(tmp_path, 0), probe_logprobs=(math.nan, -1.0, math.nan))
    with pytest.raises(ProbeFailedError):
        await run_activation(ScriptedEngine(), update)


async def test_without_a_probe_nothing_is_scored(tmp_path):
    engine = ScriptedEngine()
    report = await run_activation(engine, replace(write(tmp_path, 0), probe_token_ids=(5,), probe_logprobs=(math.nan,)))
    assert (report.probe_mean_error, report.probe_max_error) == (None, None)
    assert engine.calls[-2:] == [("set_version", 0), "resume"]
