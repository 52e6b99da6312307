from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.sharding import init_ranks
from tests.learner.rank_process import CONFIG, TERMS, batch, make_trainer, spawn_ranks, weights

STEPS = range(3)


@pytest.fixture(scope="module")
def two_ranks(tiny_folder, tmp_path_factory) -> tuple[dict, Path]:
    """What rank 0 of two saw over three steps and a poisoned one, and the folder with its checkpoint."""
    folder = tmp_path_factory.mktemp("two-ranks")
    spawn_ranks(2, tiny_folder, folder / "seen.pt", folder / "checkpoint", STEPS)
    return torch.load(folder / "seen.pt", weights_only=True), folder


@pytest.fixture(scope="module")
def one_rank(tiny_folder):
    trainer = make_trainer(tiny_folder)
    reports = [trainer.step(batch(step), step) for step in STEPS]
    return trainer, reports, weights(trainer)


@pytest.mark.multi_rank
def test_two_ranks_train_like_one(two_ranks, one_rank):
    seen, _ = two_ranks
    _, reports, expected = one_rank
    assert [float(seen[f"loss/{i}"]) for i in STEPS] == pytest.approx([r.loss for r in reports], abs=1e-4)
    assert [float(seen[f"norm/{i}"]) for i in STEPS] == pytest.approx([r.grad_norm for r in reports], rel=1e-3)
    assert seen["trained"].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(seen["trained"][name], tensor, atol=1e-4, rtol=0)


@pytest.mark.multi_rank
def test_metrics_span_the_ranks(two_ranks, one_rank):
    seen, _ = two_ranks
    _, reports, _ = one_rank
    expected = {f"{t}/{m}": v for t, ms in reports[-1].terms.items() for m, v in ms.items()}
    assert seen["terms"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.multi_rank
def test_a_poisoned_step_is_skipped_on_all_ranks(two_ranks):
    seen, _ = two_ranks
    assert bool(seen["skipped"])
    for name, tensor in seen["trained"].items():
        assert torch.equal(seen["after_poison"][name], tensor)


@pytest.mark.multi_rank
def test_probe_and_export_gather_all_shards(two_ranks, one_rank):
    seen, folder = two_ranks
    trainer, _, _ = one_rank
    expected = torch.from_numpy(trainer.probe_logprobs([1, 2, 3, 4, 5]))
    torch.testing.assert_close(seen["probe"], expected, atol=1e-3, rtol=0, equal_nan=True)
    exported = dict(AutoModelForCausalLM.from_pretrained(folder / "exported").named_parameters())
    for name, tensor in seen["trained"].items():
        assert torch.equal(exported[name], tensor)


@pytest.mark.multi_rank
def test_a_checkpoint_of_two_ranks_continues_on_one(two_ranks, one_rank, tiny_folder):
    seen, folder = two_ranks
    trainer = make_trainer(tiny_folder, CONFIG, TERMS)
    trainer.load(folder / "checkpoint")
    assert trainer.steps_done == len(STEPS)
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, seen["trained"][name])
    undisturbed, _, _ = one_rank
    resumed, expected = trainer.step(batch(3), 3), undisturbed.step(batch(3), 3)
    assert resumed.loss == pytest.approx(expected.loss, abs=1e-4)
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(trainer)[name], tensor, atol=2e-4, rtol=0)


def test_several_ranks_need_a_meeting_place():
    with pytest.raises(ValueError, match="init_method"):
        init_ranks(0, 2, None)
