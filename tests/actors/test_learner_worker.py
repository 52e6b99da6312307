from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from actors.config import EngineConfig
from actors.engines.protocol import Engine
from actors.learner_worker import (
    MAX_KEPT_BATCHES,
    LearnerPorts,
    LearnerRank,
    LearnerWorker,
    TooManySkippedStepsError,
    measured_of,
)
from actors.ports import BatchLease, RunFinished, StalledError
from actors.run_checkpoint import RunCheckpointer, newest_restore_point
from actors.weights import CorruptVersionError, ProbeFailedError, WeightStore, activate, write_version
from learner.config import LoRAConfig
from learner.members import MemberRecord
from learner.trainer import StepReport, Trainer
from rewards.codec import decode_group
from rewards.trajectory import Group, PolicyVersion, Source
from tests.actors.learner_fakes import PROBE, FakePorts, make_plan, make_worker
from tests.builders import make_group
from tests.learner.rank_process import CONFIG, batch, make_trainer, poisoned_batch, weights
from tests.learner.tiny_policy import save_tiny_model

# -- order -----------------------------------------------------------------------------------------------------------


async def test_the_whole_life_of_one_step(tmp_path):
    ports = FakePorts()
    assert await make_worker(make_plan(1), ports, num_ranks=2).run() == 1
    assert ports.log == [
        ("lease", 0),
        ("train", 0, 0, ("g0",)),
        ("train", 1, 0, ("g0",)),
        ("commit", 0, "lease-0", {}),
        ("stage", 0, "float32", PROBE),
        ("stage", 1, "float32", PROBE),
        ("issue", 0, 1),
        ("write", 0, 0, 1),
        ("announce", 0, 1),
        ("publish", 0, 1),
        ("begin", 1),
        ("save", 0, "folder-1"),
        ("save", 1, "folder-1"),
        ("saved", 0),
        ("saved", 1),
        ("complete", 1, {0: ["g0"]}, {"step": 1}),
        ("seal", 0),
    ]


def test_the_cache_is_told_how_far_each_group_moved():
    groups = (make_group(group_id="moved"), make_group(group_id="frozen"))
    lease = BatchLease(lease_id="l", step=0, epoch=0, groups=groups)
    members = (
        MemberRecord(3, 1.5, 0.5), MemberRecord(1, 0.5, None),
        MemberRecord(4, None, None), MemberRecord(0, None, None),
    )  # fmt: skip
    report = StepReport(step=0, loss=0.0, terms={}, grad_norm=0.0, learning_rate=0.0, members=members)
    assert measured_of(lease, report) == {"moved": {"ratio": 0.5, "clipped": 0.5}}


async def test_versions_and_checkpoints_come_at_their_intervals_and_at_the_end():
    ports = FakePorts()
    await make_worker(make_plan(7, publish_every=3, checkpoint_every=2), ports).run()
    assert [step for _, _, step in ports.entries("publish")] == [3, 6, 7]
    assert [entry[1] for entry in ports.entries("complete")] == [2, 4, 6, 7]
    assert [step for _, step in ports.entries("seal")] == [1, 3, 5, 6]


async def test_a_checkpoint_is_not_written_over_an_equal_one():
    """Replacing the newest checkpoint by itself would risk the only one that covers what is sealed."""
    ports = FakePorts()
    await make_worker(make_plan(4, checkpoint_every=4), ports).run()
    assert ports.names().count("begin") == 1
    resumed = FakePorts()
    worker = make_worker(make_plan(4), resumed)
    await worker.restore("folder-4", 4, {step: [f"g{step}"] for step in range(4)})
    assert await worker.run() == 4
    assert "begin" not in resumed.names()
    assert resumed.entries("seal") == [("seal", 3)]  # the crash may have come between the checkpoint and its seal


async def test_a_run_that_ends_between_two_publications_publishes_its_last_weights():
    """The evaluation at the end waits for them."""
    ports = FakePorts(waits={2: RunFinished()})
    assert await make_worker(make_plan(9, publish_every=4), ports).run() == 2
    assert ports.entries("publish") == [("publish", 0, 2)]


async def test_weights_can_be_published_before_the_first_step():
    ports = FakePorts()
    worker = make_worker(make_plan(1, publish_every=5), ports)
    update = await worker.publish()
    assert (update.version, update.step) == (0, 0)
    assert ports.names() == ["stage", "issue", "write", "announce", "publish"]


async def test_a_restored_run_goes_on_where_the_checkpoint_ends():
    ports = FakePorts()
    worker = make_worker(make_plan(3), ports, num_ranks=2)
    through_json: Any = {"0": ["a", "b"], "1": []}
    await worker.restore("folder-2", 2, through_json)
    assert worker.step == 2
    assert await worker.run() == 3
    assert ports.log[:3] == [("load", 0, "folder-2"), ("load", 1, "folder-2"), ("lease", 2)]
    assert ports.entries("complete") == [("complete", 3, {0: ["a", "b"], 1: [], 2: ["g2"]}, {"step": 3})]
    assert worker.batches == {0: ["a", "b"], 1: [], 2: ["g2"]}


async def test_export_goes_to_all_ranks():
    ports = FakePorts()
    await make_worker(make_plan(1), ports, num_ranks=2).export("model")
    assert ports.log == [("export", 0, "model"), ("export", 1, "model")]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_intervals_and_faults_the_order_holds(data):
    num_steps = data.draw(st.integers(1, 9), "steps")
    publish_every, checkpoint_every = data.draw(st.integers(1, 4), "publish"), data.draw(st.integers(0, 4), "save")
    skips = data.draw(st.sets(st.integers(0, 8)), "skips")
    start = data.draw(st.integers(0, num_steps), "restored at")
    end = data.draw(st.one_of(st.none(), st.integers(start, num_steps)), "ends before")
    ports = FakePorts(waits={} if end is None else {end: RunFinished()})
    plan = make_plan(num_steps, publish_every=publish_every, checkpoint_every=checkpoint_every, max_skipped_steps=9)
    worker = make_worker(plan, ports, skips=skips.__contains__)
    earlier = {step: [f"g{step}"] for step in range(start)}

    async def whole_run() -> int:
        if start:
            await worker.restore("folder", start, earlier)
        return await worker.run()

    last = asyncio.run(whole_run())
    trained = {step: [] if step in skips else [f"g{step}"] for step in range(start, last)}
    committed, versions, staged, durable = start, [], [], start if start else -1
    for entry, previous in zip(ports.log, [("",), *ports.log], strict=False):
        match entry:
            case ("commit", step, lease_id, dropped):
                assert (step, lease_id) == (committed, f"lease-{step}")
                assert dropped == ({f"g{step}": "loss is nan"} if step in skips else {})
                committed += 1
            case ("stage", *_):
                staged.append(committed)
            case ("announce", version, step):
                assert step == staged[-1]
            case ("publish", version, step):
                assert previous == ("announce", version, step)
                versions.append(version)
            case ("save", _, folder):
                assert folder == f"folder-{committed}"
            case ("complete", step, batches, _):
                assert step <= committed
                assert batches == earlier | {s: ids for s, ids in trained.items() if s < step}
                durable = step
            case ("seal", step):
                assert step == durable - 1
    assert committed == last == (num_steps if end is None else end)
    assert durable == last or last == 0
    assert versions == sorted(set(versions))
    assert ports.entries("publish")[-1][2] == last
    saved = [entry[1] for entry in ports.entries("complete")]
    assert saved == sorted(set(saved))


# -- beside the steps ------------------------------------------------------------------------------------------------


async def test_steps_go_on_while_a_version_is_written_and_a_checkpoint_becomes_durable():
    ports, written, saved, third = FakePorts(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    worker = make_worker(make_plan(3, publish_every=2, checkpoint_every=2), ports)
    ports.ranks[0].before_write = lambda step: written.wait()
    ports.ranks[0].before_saved = saved.wait
    ports.ranks[0].before_step = lambda step: step == 2 and third.set()
    running = asyncio.create_task(worker.run())
    await third.wait()
    assert not {"announce", "publish", "complete", "seal"} & set(ports.names())
    assert ("commit", 1, "lease-1", {}) in ports.log
    written.set()
    saved.set()
    assert await running == 3
    assert ports.entries("complete")[0] == ("complete", 2, {0: ["g0"], 1: ["g1"]}, {"step": 2})  # without step 2
    assert [entry[-1] for entry in ports.entries("publish")] == [2, 3]
    reported = [values["at"] for values in ports.reports]
    assert reported == sorted(reported)  # an earlier step would read as a return to a checkpoint
    assert ports.entries("seal") == [("seal", 1), ("seal", 2)]


async def test_a_second_version_waits_for_the_first():
    """Copies of the weights must not pile up behind a slow disk."""
    ports, written = FakePorts(), asyncio.Event()
    worker = make_worker(make_plan(3), ports)
    ports.ranks[0].before_write = lambda step: written.wait()
    running = asyncio.create_task(worker.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (worker.step, ports.names().count("stage")) == (2, 1)
    written.set()
    assert await running == 3


@pytest.mark.parametrize("box", ["before_write", "before_saved"])
async def test_a_version_or_checkpoint_that_fails_ends_a_run_that_waits_for_a_batch(box):
    """Without the version a batch may never come."""
    ports = FakePorts(waits={1: None})
    worker = make_worker(make_plan(5, checkpoint_every=1), ports)

    async def fail(*_: Any) -> None:
        await ports.leasing.wait()
        raise OSError("no space left on device")

    setattr(ports.ranks[0], box, fail)
    with pytest.raises(OSError, match="no space left"):
        await asyncio.wait_for(worker.run(), 5)
    assert "complete" not in ports.names() or box == "before_write"


async def test_what_was_copied_is_written_whatever_the_next_steps_do(policy_folder, tmp_path):
    trainer = make_trainer(policy_folder)
    rank = LearnerRank(trainer, tmp_path / "versions", incarnation=0)
    await rank.stage_weights("float32", PROBE)
    expected = {name: tensor.clone() for name, tensor in weights(trainer).items()}
    await rank.begin_save(str(tmp_path / "state"))
    await rank.step(batch(0), 0)
    update = await rank.write_version(PolicyVersion(0), 0)
    await rank.finish_save()
    published = load_file(Path(update.path) / "model.safetensors")
    assert all(torch.equal(published[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(published[name], tensor) for name, tensor in weights(trainer).items())
    await rank.load(str(tmp_path / "state"))
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(trainer).items())
    with pytest.raises(RuntimeError, match="no staged weights"):
        await rank.write_version(PolicyVersion(1), 1)
    await rank.close()


# -- ends ------------------------------------------------------------------------------------------------------------


async def test_a_stop_request_ends_the_wait_for_a_batch_with_a_checkpoint():
    ports = FakePorts(waits={1: None})
    worker = make_worker(make_plan(5), ports)
    running = asyncio.create_task(worker.run())
    await ports.leasing.wait()
    await worker.request_stop()
    assert await asyncio.wait_for(running, 5) == 1
    assert ("lease given up", 1) in ports.log
    assert ("complete", 1, {0: ["g0"]}, {"step": 1}) in ports.log


async def test_a_stop_request_lets_the_step_in_flight_finish():
    ports = FakePorts()
    worker = make_worker(make_plan(5), ports)
    ports.ranks[0].before_step = lambda step: asyncio.ensure_future(worker.request_stop())
    assert await worker.run() == 1
    assert ports.names() == [
        "lease", "train", "commit", "stage", "issue", "write", "announce", "publish",
        "begin", "save", "saved", "complete", "seal",
    ]  # fmt: skip


async def test_the_time_limit_ends_the_run_also_while_it_waits():
    ports = FakePorts(waits={2: None})
    async with asyncio.timeout(10):
        assert await make_worker(make_plan(5, max_minutes=0.2 / 60), ports).run() == 2
    assert ("complete", 2, {0: ["g0"], 1: ["g1"]}, {"step": 2}) in ports.log
    assert ("lease given up", 2) in ports.log


async def test_no_step_begins_after_the_time_limit():
    ports = FakePorts()
    assert await make_worker(make_plan(5, max_minutes=1e-9), ports).run() == 0
    assert "lease" not in ports.names()


@pytest.mark.parametrize("error", [StalledError("need 4 groups: 0 ready"), ConnectionError("replay is gone")])
async def test_a_fault_of_the_wait_is_raised_and_nothing_is_written_over(error):
    ports = FakePorts(waits={1: error})
    with pytest.raises(type(error), match=str(error)):
        await make_worker(make_plan(5), ports).run()
    assert "begin" not in ports.names()


async def test_a_failing_rank_commits_nothing():
    ports = FakePorts()
    worker = make_worker(make_plan(5), ports, num_ranks=2)

    def fail(step: int) -> None:
        raise RuntimeError("out of memory")

    ports.ranks[1].before_step = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        await worker.run()
    assert not {"commit", "publish", "begin"} & set(ports.names())


async def test_a_refused_commit_publishes_nothing(monkeypatch):
    ports = FakePorts()

    async def refuse(step: int, lease_id: str, **told: Mapping[str, object]) -> None:
        raise ValueError("the lease expired")

    monkeypatch.setattr(ports, "commit", refuse)
    with pytest.raises(ValueError, match="expired"):
        await make_worker(make_plan(5), ports).run()
    assert not {"issue", "publish", "begin"} & set(ports.names())


# -- skipped steps ---------------------------------------------------------------------------------------------------


async def test_a_skipped_step_drops_its_groups_with_the_reason_and_keeps_them_for_inspection(tmp_path):
    groups = [make_group(group_id="a", scores=(1.0, None)), make_group(group_id="b")]
    ports = FakePorts(groups=lambda step: groups if step == 1 else [make_group(group_id=f"g{step}")])
    worker = make_worker(make_plan(3, skipped_dir=tmp_path / "skipped"), ports, skips=lambda step: step == 1)
    assert await worker.run() == 3
    assert [dropped for *_, dropped in ports.entries("commit")] == [{}, {"a": "loss is nan", "b": "loss is nan"}, {}]
    assert worker.batches == {0: ["g0"], 1: [], 2: ["g2"]}
    assert [step for _, _, step in ports.entries("publish")] == [1, 2, 3]  # the step counts, its weights are as before
    folder = tmp_path / "skipped" / "step-00000001"
    assert ports.events == [
        ("step_skipped", {"step": 1, "reason": "loss is nan", "groups": ["a", "b"], "kept_in": str(folder)})
    ]
    kept = [decode_group(file.read_bytes()) for file in sorted(folder.iterdir())]
    assert [g.group_id for g in kept] == ["a", "b"]
    assert kept[0].scores == [1.0, None]
    np.testing.assert_array_equal(kept[1].trajectories[0].token_ids, groups[1].trajectories[0].token_ids)


async def test_only_the_first_skipped_batches_are_kept(tmp_path):
    steps = 2 * MAX_KEPT_BATCHES
    ports = FakePorts()
    plan = make_plan(steps, skipped_dir=tmp_path, max_skipped_steps=steps)
    await make_worker(plan, ports, skips=lambda step: True).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08d}" for step in range(MAX_KEPT_BATCHES)]
    assert len(ports.events) == steps
    assert ports.events[-1][1]["kept_in"] is None


async def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path):
    ports = FakePorts()
    plan = make_plan(20, max_skipped_steps=2, skipped_dir=tmp_path)
    worker = make_worker(plan, ports, skips=lambda step: step in (1, 2, 4, 5, 6))
    expected = rf"3 steps in a row were skipped \(loss is nan\).* those of step 4\..*{tmp_path}"
    with pytest.raises(TooManySkippedStepsError, match=expected):
        await worker.run()
    assert worker.step == 7
    assert ports.entries("commit")[-1][1] == 6  # what was leased is accounted for
    assert "begin" not in ports.names()


async def test_without_tolerance_the_first_skipped_step_ends_the_run():
    ports = FakePorts()
    with pytest.raises(TooManySkippedStepsError, match="1 steps in a row"):
        await make_worker(make_plan(5, max_skipped_steps=0), ports, skips=lambda step: True).run()


# -- numbers ---------------------------------------------------------------------------------------------------------


async def test_the_numbers_of_a_step():
    live = [make_group(group_id="a", scores=(1.0, None, 0.0)), make_group(group_id="b", scores=(0.5,))]
    expert = make_group(group_id="e", source=Source.EXPERT, scores=(1.0,))
    ports = FakePorts(groups=lambda step: [*live, expert], ages={"a": 1, "b": 3})
    await make_worker(make_plan(1), ports).run()
    (values,) = [r for r in ports.reports if "loss" in r]
    assert values["reward_mean"] == pytest.approx(0.5)  # experts and unscored answers do not count
    assert values["answer_tokens_mean"] == 2.0
    assert (values["policy_age_mean"], values["policy_age_max"], values["age_violations"]) == (2.0, 3.0, 1.0)
    assert (values["policy_age/1"], values["policy_age/3"]) == (1.0, 1.0)
    assert (values["at"], values["step"], values["lease_wait_s"], values["skipped_steps"]) == (1.0, 1.0, 0.25, 0.0)
    assert {name for r in ports.reports for name in r} >= {"publish_s", "checkpoint_s", "train_s"}


# -- one real trainer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("policy"))


class Batches(FakePorts):
    """Deterministic batches by step, real versions and real checkpoints."""

    def __init__(self, root: Path, poisoned: int = -1) -> None:
        super().__init__(groups=lambda step: poisoned_batch() if step == poisoned else batch(step))
        self.store = WeightStore(root / "versions", state_dir=root / "store", keep_versions=2)
        self.saver = RunCheckpointer(root / "checkpoints", {}, keep=2, config_json="{}")


def real_worker(
    folder: Path, root: Path, num_steps: int, *, poisoned: int = -1, **plan: Any
) -> tuple[LearnerWorker, Trainer, Batches]:
    trainer, ports = make_trainer(folder), Batches(root, poisoned)
    rank = LearnerRank(trainer, root / "versions", incarnation=0)
    worker = LearnerWorker(
        make_plan(num_steps, **plan),
        LearnerPorts((rank,), replay=ports, publish=ports.store, checkpoint=ports.saver, report=ports),
    )
    return worker, trainer, ports


async def test_a_restored_learner_reaches_the_same_bits_as_an_undisturbed_one(policy_folder, tmp_path):
    undisturbed, trainer, _ = real_worker(policy_folder, tmp_path / "a", 4)
    await undisturbed.run()

    lost, _, ports = real_worker(policy_folder, tmp_path / "b", 4, checkpoint_every=2)
    ports.waits = {3: ConnectionError("the node is gone")}
    with pytest.raises(ConnectionError):
        await lost.run()
    point = newest_restore_point(tmp_path / "b" / "checkpoints")
    assert point is not None
    assert point.step == 2

    resumed, restored, ports = real_worker(policy_folder, tmp_path / "b", 4)
    await resumed.restore(str(point.folder), point.step, point.batches)
    await resumed.publish()  # as every start does, and what tells the store that the history turned back
    await resumed.run()
    expected, got = weights(trainer), weights(restored)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert restored.steps_done == 4
    assert resumed.batches == undisturbed.batches
    newest = await ports.store.newest()
    assert newest is not None
    assert (newest.version, newest.step) == (5, 4)  # 0 to 2 were issued before the loss
    assert await ports.store.abandoned() == {2}


async def test_a_published_version_is_the_trainers_weights_and_its_probe(policy_folder, tmp_path):
    worker, trainer, ports = real_worker(policy_folder, tmp_path, 1)
    await worker.run()
    newest = await ports.store.newest()
    assert newest is not None
    published, trained = load_file(Path(newest.path) / "model.safetensors"), weights(trainer)
    assert published.keys() == trained.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in trained.items())
    assert newest.probe_token_ids == PROBE
    np.testing.assert_array_equal(newest.probe_logprobs, trainer.probe_logprobs(PROBE))


async def test_a_poisoned_batch_publishes_the_same_weights_again(policy_folder, tmp_path):
    worker, trainer, ports = real_worker(policy_folder, tmp_path, 2, poisoned=1, skipped_dir=tmp_path / "skipped")
    await worker.run()
    newest = await ports.store.newest()
    assert newest is not None
    before, after = (load_file(p / "model.safetensors") for p in sorted((tmp_path / "versions").iterdir()))
    assert newest.version == 1
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    dropped = ports.entries("commit")[1][3]
    assert dropped.keys() == {g.group_id for g in poisoned_batch()}
    assert len(list((tmp_path / "skipped" / "step-00000001").iterdir())) == len(dropped)
    assert trainer.steps_done == 1


async def test_the_event_loop_stays_free_while_a_rank_trains(policy_folder, tmp_path):
    rank = LearnerRank(make_trainer(policy_folder), tmp_path, incarnation=0)
    training = asyncio.create_task(rank.step(batch(0), 0))
    ticks = 0
    while not training.done():
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks >= 3
    await rank.close()


# -- the same path for adapters, into a real engine -------------------------------------------------------------------


def transformers_engine() -> Engine:
    from actors.engines.transformers import TransformersEngine

    return TransformersEngine(EngineConfig(kind="transformers", max_model_len=64, max_num_seqs=4))


def vllm_engine() -> Engine:
    from actors.engines.vllm import VLLMEngine

    return VLLMEngine(
        EngineConfig(
            max_model_len=64, max_num_seqs=4, kv_cache_bytes=64 << 20, options={"enable_lora": True, "max_lora_rank": 8}
        )
    )


@pytest.mark.parametrize("make_engine", [transformers_engine, pytest.param(vllm_engine, marks=pytest.mark.vllm)])
async def test_an_adapter_is_written_activated_and_probed(make_engine, tiny_model_path, tmp_path):
    config = CONFIG.model_copy(update={"lora": LoRAConfig(rank=8, alpha=32.0)})
    trainer = make_trainer(tiny_model_path, config)
    rank = LearnerRank(trainer, tmp_path / "versions", incarnation=0)
    engine = make_engine()
    await engine.start(str(tiny_model_path), PolicyVersion(-1))
    try:
        scores = [await engine.score(PROBE)]
        for version in range(3):
            await rank.stage_weights("float32", PROBE)
            update = await rank.write_version(PolicyVersion(version), version)
            assert update.kind == "adapter"
            result = await activate(engine, update, tolerance=1e-4, clear_cache=True)
            assert result.probe_max_error is not None
            assert result.probe_max_error < 1e-4
            assert engine.version == version
            scores.append(await engine.score(PROBE))
            await rank.step(in_vocabulary(batch(version)), version)
        base, untrained, first, second = (values[1:] for values in scores)
        np.testing.assert_allclose(untrained, base, atol=1e-5)  # an adapter begins as nothing
        assert np.abs(first - base).max() > 1e-3
        assert np.abs(second - first).max() > 1e-3

        # The same tensors under half the scaling: a whole, well-signed version that is not what the learner has.
        adapter_config = trainer.adapter_config()
        assert adapter_config is not None
        wrong = write_version(
            trainer.named_weights(), tmp_path / "wrong", version=PolicyVersion(9), step=3, incarnation=0,
            dtype="float32", probe_token_ids=PROBE, probe_logprobs=trainer.probe_logprobs(PROBE).tolist(),
            kind="adapter", adapter_config={**adapter_config, "lora_alpha": 16.0},
        )  # fmt: skip
        with pytest.raises(ProbeFailedError):
            await activate(engine, wrong, tolerance=1e-4, clear_cache=True)
    finally:
        await engine.close()
        await rank.close()


async def test_a_changed_scaling_beside_intact_tensors_is_found_before_the_engine_sees_it(policy_folder, tmp_path):
    trainer = make_trainer(policy_folder, CONFIG.model_copy(update={"lora": LoRAConfig(rank=2, alpha=4.0)}))
    rank = LearnerRank(trainer, tmp_path, incarnation=0)
    await rank.stage_weights("float32", PROBE)
    update = await rank.write_version(PolicyVersion(0), 0)
    file = Path(update.path) / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": 4.0', '"lora_alpha": 8.0'))
    with pytest.raises(CorruptVersionError, match="adapter_config"):
        await activate(transformers_engine(), update, tolerance=1e-4, clear_cache=True)
    await rank.close()


def in_vocabulary(groups: Sequence[Group], size: int = 256) -> list[Group]:
    """The groups with token ids the pre-trained tiny model knows."""

    def members(group: Group) -> Iterator[Any]:
        for trajectory in group.trajectories:
            yield replace(trajectory, token_ids=trajectory.token_ids % size)

    return [replace(group, trajectories=tuple(members(group))) for group in groups]
