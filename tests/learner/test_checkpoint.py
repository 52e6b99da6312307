import json
import shutil

import pytest
import torch

from learner.checkpoint import (
    CorruptCheckpointError,
    begin_save,
    newest_checkpoint,
    publish_checkpoint,
    verify_checkpoint,
)
from learner.config import LoRAConfig
from tests.learner.rank_process import CONFIG, batch, make_trainer, weights


def assert_bit_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_training_equals_uninterrupted_bit_for_bit(tiny_folder, tmp_path):
    uninterrupted = make_trainer(tiny_folder)
    for step in range(4):
        uninterrupted.step(batch(step), step)

    first = make_trainer(tiny_folder)
    for step in range(2):
        first.step(batch(step), step)
    first.begin_save(tmp_path / "state").result()
    resumed = make_trainer(tiny_folder)
    resumed.load(tmp_path / "state")
    assert resumed.steps_done == 2
    for step in range(2, 4):
        resumed.step(batch(step), step)
    assert_bit_equal(weights(resumed), weights(uninterrupted))


def test_saving_before_the_first_step_changes_nothing(tiny_folder, tmp_path):
    saved, plain = make_trainer(tiny_folder), make_trainer(tiny_folder)
    saved.begin_save(tmp_path / "state").result()
    for trainer in (saved, plain):
        trainer.step(batch(0), 0)
    assert_bit_equal(weights(saved), weights(plain))


def test_training_goes_on_while_a_checkpoint_is_written(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder)
    trainer.step(batch(0), 0)
    expected = weights(trainer)
    saving = begin_save(trainer, tmp_path / "state")
    trainer.step(batch(1), 1)
    saving.result()
    restored = make_trainer(tiny_folder)
    restored.load(tmp_path / "state")
    assert_bit_equal(weights(restored), expected)


def test_lora_state_is_small_and_resumes(tiny_folder, tmp_path):
    config = CONFIG.model_copy(update={"lora": LoRAConfig(rank=2)})
    trainer = make_trainer(tiny_folder, config)
    trainer.step(batch(0), 0)
    trainer.begin_save(tmp_path / "state").result()
    resumed = make_trainer(tiny_folder, config)
    resumed.load(tmp_path / "state")
    assert_bit_equal(weights(resumed), weights(trainer))


def test_state_of_another_model_is_refused(tiny_folder, tmp_path):
    make_trainer(tiny_folder, CONFIG.model_copy(update={"lora": LoRAConfig(rank=2)})).begin_save(
        tmp_path / "state"
    ).result()
    with pytest.raises(CorruptCheckpointError, match="another model or adapter"):
        make_trainer(tiny_folder).load(tmp_path / "state")
    with pytest.raises(CorruptCheckpointError, match="no readable learner state"):
        make_trainer(tiny_folder).load(tmp_path / "nowhere")


def published(directory, step, text="weights"):
    building = directory / f"step-{step:08d}.tmp"
    (building / "ranks").mkdir(parents=True)
    (building / "ranks" / "shard").write_text(f"{text} {step}")
    target = directory / f"step-{step:08d}"
    publish_checkpoint(building, target, {"step": step})
    return target


def test_a_published_checkpoint_verifies_and_is_the_latest(tmp_path):
    published(tmp_path, 3)
    newest = published(tmp_path, 10)
    assert verify_checkpoint(newest) == {"step": 10}
    assert (tmp_path / "LATEST").read_text() == newest.name
    assert newest_checkpoint(tmp_path) == (newest, {"step": 10})
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("fault", ["cut", "flipped", "missing", "no manifest", "half manifest"])
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_chosen(tmp_path, fault):
    previous, damaged = published(tmp_path, 1), published(tmp_path, 2)
    shard, manifest = damaged / "ranks" / "shard", damaged / "manifest.json"
    if fault == "cut":
        shard.write_text(shard.read_text()[:-1])
    elif fault == "flipped":
        shard.write_text("Weights 2")
    elif fault == "missing":
        shard.unlink()
    elif fault == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(CorruptCheckpointError, match="step-00000002"):
        verify_checkpoint(damaged)
    assert newest_checkpoint(tmp_path) == (previous, {"step": 1})


def test_an_unfinished_folder_is_never_chosen(tmp_path):
    previous = published(tmp_path, 1)
    shutil.copytree(previous, tmp_path / "step-00000002.tmp")
    assert newest_checkpoint(tmp_path) == (previous, {"step": 1})


def test_no_intact_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    folder = published(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["ranks/shard"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpointError, match="digest differs"):
        newest_checkpoint(tmp_path)
