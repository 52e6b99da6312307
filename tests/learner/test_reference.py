"""The frozen reference in the real learner: which model it is, when it moves, what a checkpoint keeps of it."""

from __future__ import annotations

import pytest
import torch

from learner.config import ClippedSurrogate, KLToReference, LoRAConfig, ResetConfig, Term
from tests.learner.rank_process import CONFIG, batch, make_trainer, weights
from tests.learner.tiny_policy import save_tiny_model

WITH_KL = (Term(loss=ClippedSurrogate()), Term(loss=KLToReference()))


def kl(report) -> float:
    return report.terms["live/kl_to_reference"]["kl_mean"]


def test_a_reset_moves_the_reference_and_forgets_the_moments(tiny_folder):
    config = CONFIG.model_copy(update={"resets": ResetConfig(every=2)})
    trainer = make_trainer(tiny_folder, config, WITH_KL)
    reports = [trainer.step(batch(0), step) for step in range(3)]
    assert [report.reset for report in reports] == [False, False, True]
    assert kl(reports[1]) > 1e-5
    assert kl(reports[2]) == pytest.approx(0.0, abs=1e-6)
    assert {float(state["step"]) for state in trainer.optimizer.state.values()} == {1.0}


def test_a_moved_reference_survives_a_checkpoint(tiny_folder, tmp_path):
    config = CONFIG.model_copy(update={"resets": ResetConfig(at=(1,), optimizer=False)})
    uninterrupted, first = (make_trainer(tiny_folder, config, WITH_KL) for _ in range(2))
    for trainer in (uninterrupted, first):
        for step in range(2):
            trainer.step(batch(step), step)
    first.begin_save(tmp_path / "state").result()
    resumed = make_trainer(tiny_folder, config, WITH_KL)
    resumed.load(tmp_path / "state")
    assert resumed.step(batch(2), 2).terms == uninterrupted.step(batch(2), 2).terms
    after = weights(uninterrupted)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(resumed).items())


def test_the_reference_can_be_another_model(tiny_folder, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    trainer = make_trainer(tiny_folder, CONFIG, WITH_KL, companions={"reference": other})
    assert kl(trainer.step(batch(0), 0)) > 0.1
    adapted = CONFIG.model_copy(update={"lora": LoRAConfig(rank=2)})
    trainer = make_trainer(tiny_folder, adapted, WITH_KL, companions={"reference": other})
    assert kl(trainer.step(batch(0), 0)) > 0.1


def test_a_reference_below_adapters_cannot_move():
    with pytest.raises(ValueError, match="never moves"):
        type(CONFIG)(lora=LoRAConfig(), resets=ResetConfig(every=5))
