import asyncio

import pytest
import torch

from actors.reward_worker import RewardWorker
from learner.reward_model import RewardModel
from rewards.config import RewardComponent, RewardConfig
from rewards.task import Task
from rewards.verdict import Status

TASK = Task(task_id="t", prompt="What is 2 + 3?", reference="5")


@pytest.fixture(scope="module")
def folder(tiny_model_path, tmp_path_factory):
    """A real model with a head drawn at random: what it prefers does not matter here."""
    folder = tmp_path_factory.mktemp("rm")
    RewardModel.load(tiny_model_path, seed=0).save(folder)
    return folder


def reward(folder, **service):
    service = {"kind": "reward_model", "model": str(folder), "device": "cpu", "max_length": 64, **service}
    return RewardConfig(components={"rm": RewardComponent(verifier="reward_model")}, service=service)


def score(config, answers, task=TASK):
    async def run():
        worker = RewardWorker(config)
        try:
            await worker.start()
            return await worker.score(task, answers, ()), await worker.stats()
        finally:
            await worker.close()

    torch.set_num_threads(1)
    return asyncio.run(run())


def test_answers_that_wait_are_scored_together_and_as_alone(folder):
    answers = ["5", "It is five.", "6", "5", "  "]
    verdicts, stats = score(reward(folder), answers)
    model = RewardModel.load(folder)
    expected = [model.scores([model.encode(TASK.messages, answer)])[0] for answer in answers[:3]]
    assert [v.score for v in verdicts[:3]] == pytest.approx(expected, abs=1e-5)
    assert verdicts[3].score == verdicts[0].score
    assert verdicts[4].status is Status.NO_ANSWER
    assert stats["pool/default/judged"] == 3
    (squashed,), _ = score(reward(folder, squash="sigmoid", with_reference=True), ["5"])
    thoughts, _ = score(reward(folder, think_tag="think"), ["<think>It is six.</think> 5", "<think>5"])
    assert (thoughts[0].score, thoughts[1].status) == (pytest.approx(expected[0], abs=1e-5), Status.NO_ANSWER)
    assert 0 < squashed.score < 1
    assert squashed.score != verdicts[0].score


def test_what_the_model_cannot_see_is_no_number(folder):
    verdicts, _ = score(reward(folder), ["word " * 100])
    assert (verdicts[0].score, verdicts[0].status) == (None, Status.JUDGE_ERROR)
    blind = Task(task_id="t", prompt="What is 2 + 3?")
    verdicts, _ = score(reward(folder, with_reference=True), ["5"], blind)
    assert verdicts[0].status is Status.INVALID_GOLD


def test_a_model_without_a_trained_head_stops_the_start(tiny_model_path):
    with pytest.raises(ValueError, match="noise"):
        score(reward(tiny_model_path), ["5"])
