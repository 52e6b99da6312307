import copy
import math

import pytest
import torch

from learner.config import OptimizerConfig
from learner.losses.reward import (
    bradley_terry,
    correctness_cross_entropy,
    implicit_step_rewards,
    step_advantages,
    trajectory_preference,
)
from learner.reward_model import RewardModel, TooLongError, length_batches
from learner.reward_trainer import RewardTrainer, RewardTraining, report_on
from rewards.preferences import PreferencePair


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


class TestLosses:
    def test_bradley_terry_worked_examples(self):
        assert bradley_terry(tensor(2.0), tensor(0.5), num_pairs=1).loss.item() == pytest.approx(0.2014, abs=1e-4)
        margin = bradley_terry(tensor(2.0), tensor(0.5), num_pairs=1, margin=torch.ones(1))
        assert margin.loss.item() == pytest.approx(0.4741, abs=1e-4)
        assert bradley_terry(tensor(3.0), tensor(1.0), num_pairs=1).loss.item() == pytest.approx(0.1269, abs=1e-4)
        centred = bradley_terry(tensor(2.0), tensor(0.5), num_pairs=1, centring=0.1).loss.item()
        assert centred == pytest.approx(0.2014 + 0.1 * 2.5**2, abs=1e-4)

    def test_pieces_of_a_batch_add_up_and_gradients_are_right(self):
        chosen, rejected = tensor(0.3, -1.0, 2.0), tensor(0.1, 0.4, 2.0)

        def loss(a, b):
            return bradley_terry(a, b, num_pairs=3, centring=0.05, margin=torch.tensor([0.0, 0.5, 0.1])[: len(a)]).loss

        assert torch.autograd.gradcheck(loss, (chosen, rejected))
        whole = bradley_terry(chosen, rejected, num_pairs=3)
        parts = [bradley_terry(chosen[i : i + 1], rejected[i : i + 1], num_pairs=3) for i in range(3)]
        assert sum(part.loss for part in parts).item() == pytest.approx(whole.loss.item())
        assert whole.metrics["pair_accuracy"].item() == pytest.approx(1.5 / 3)

    def test_correctness(self):
        output = correctness_cross_entropy(tensor(2.0, 0.0), torch.tensor([1, 0]), num_samples=2)
        assert output.loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)

    def test_implicit_steps_worked_example(self):
        logprobs = torch.log(tensor(0.30, 0.10))
        steps = implicit_step_rewards(logprobs, torch.log(tensor(0.25, 0.20)), torch.tensor([0, 1]))
        assert steps.tolist() == pytest.approx([0.0091, -0.0347], abs=1e-4)
        better, worse = 0.05 * tensor(0.7, 0.5), 0.05 * tensor(-0.8)
        assert trajectory_preference(better, worse, num_pairs=1).loss.item() == pytest.approx(0.6444, abs=1e-4)

    def test_step_advantages_add_episode_and_step_in_deviations(self):
        found = step_advantages(tensor(1.0, 0.0), tensor(0.2, 0.4, 0.2, 0.4), torch.tensor([0, 0, 1, 1]), weight=0.5)
        assert found.tolist() == pytest.approx([0.5, 1.5, -1.5, -0.5])
        assert step_advantages(tensor(1.0, 1.0), tensor(0.0, 0.0), torch.tensor([0, 1])).tolist() == [0.0, 0.0]


def test_batches_hold_like_lengths_within_the_budget():
    batches = length_batches([5, 50, 6, 7, 200], 21)
    assert batches == [[0, 2, 3], [1], [4]]


def pair(number, *, chosen=None, rejected="I do not know it.", **fields):
    prompt = ({"role": "user", "content": f"Calculate {number} + 2."},)
    return PreferencePair(
        pair_id=str(number), messages=prompt, chosen=chosen or f"It is {number + 2}.", rejected=rejected, **fields
    )


@pytest.fixture(scope="module")
def fresh(tiny_model_path):
    return RewardModel.load(tiny_model_path, seed=0, max_length=128)


@pytest.fixture(autouse=True)
def _one_thread():
    """More do not help matrices this small, and wait for each other where cores are busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def model(fresh):
    return copy.deepcopy(fresh)


class TestModel:
    def test_scores_depend_on_nothing_but_the_answer(self, model):
        texts = ["5", "It is five.", "I do not know, and will not guess."]
        encoded = [model.encode(pair(3).messages, text) for text in texts]
        alone = [model.scores([ids])[0] for ids in encoded]
        assert model.scores(encoded) == pytest.approx(alone, abs=1e-5)
        assert model.scores(encoded[::-1], batch_tokens=1) == pytest.approx(alone[::-1], abs=1e-5)
        assert len({round(score, 4) for score in alone}) == 3

    def test_the_reference_is_read_where_there_is_one(self, model):
        messages = pair(3).messages
        text = model.tokenizer.decode(model.encode(messages, "5", reference="five"))
        assert "Reference answer: five" in text
        assert text.index("five") < text.index("assistant")

    def test_a_long_answer_is_refused_not_cut(self, model):
        with pytest.raises(TooLongError, match="max_length=128"):
            model.encode(pair(3).messages, "word " * 200)

    def test_a_model_without_a_trained_head_does_not_judge(self, tiny_model_path):
        with pytest.raises(ValueError, match="noise"):
            RewardModel.load(tiny_model_path)


class TestTrainer:
    def test_a_step_does_not_depend_on_how_the_batch_is_cut(self, model):
        pairs = [pair(1), pair(2, chosen="4"), pair(3, rejected="I will think about it for a long while.", margin=0.5)]
        weights = []
        for batch_tokens in (16, 16_384):
            trained = copy.deepcopy(model)
            trainer = RewardTrainer(RewardTraining(batch_tokens=batch_tokens, centring=0.1), trained)
            report = trainer.step(trainer.encode(pairs)[0])
            assert not report.skipped
            weights.append((report.loss, report.grad_norm, trained.model.score.weight.detach().clone()))
        assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-5)
        assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-4)
        assert not torch.equal(weights[0][2], model.model.score.weight)

    def test_it_learns_a_preference_that_holds_for_new_prompts_and_survives_the_disk(self, model, tmp_path):
        config = RewardTraining(pairs_per_step=8, num_epochs=3, optimizer=OptimizerConfig(learning_rate=3e-3))
        trainer = RewardTrainer(config, model)
        train, left_out = trainer.encode([*(pair(n) for n in range(16)), pair(99, rejected="long " * 200)])
        assert left_out == 1
        losses = [report.loss for report in trainer.train(train)]
        assert len(losses) == 6
        assert losses[-1] < 0.3 < losses[0]
        new, _ = trainer.encode([pair(n) for n in range(40, 48)])
        report = trainer.evaluate(new)
        assert report.accuracy.estimate.value == 1.0
        assert report.brier < 0.1
        model.save(tmp_path / "rm")
        again = RewardModel.load(tmp_path / "rm")
        assert again.scores([new[0].chosen]) == pytest.approx(model.scores([new[0].chosen]), abs=1e-5)

    def test_a_loss_that_is_no_number_changes_nothing(self, model):
        trainer = RewardTrainer(RewardTraining(), model)
        before = model.model.score.weight.detach().clone()
        report = trainer.step(trainer.encode([pair(1, margin=float("nan"))])[0])
        assert report.skipped
        assert trainer.steps_done == 0
        assert torch.equal(before, model.model.score.weight)


def test_a_report_tells_a_liking_for_length_from_a_liking_for_quality():
    pairs = [pair(1, chosen="a" * 10, rejected="b" * 50), pair(2, chosen="a" * 10, rejected="b" * 10, source="x")]
    pairs += [pair(3, chosen="a" * 60, rejected="b" * 20)]
    by_length = report_on(pairs, [len(p.chosen) for p in pairs], [len(p.rejected) for p in pairs], left_out=2)
    assert (by_length.longer_preferred, by_length.longer_chosen) == (1.0, 0.5)
    assert by_length.accuracy.estimate.value == pytest.approx(0.5)
    assert by_length.length_matched.value == 0.5
    assert by_length.by_source["x"].value == 0.5
    assert by_length.left_out == 2
    sure = report_on(pairs, [100.0] * 3, [0.0] * 3)
    assert (sure.brier, sure.calibration_error) == pytest.approx((0.0, 0.0))
