"""What answers make probable: on an engine whose log-probs are known, and through a whole worker."""

import math

import numpy as np
import pytest

from actors.config import LikelihoodConfig
from actors.likelihood import Likelihoods, without_answer
from actors.renderer import Renderer
from rewards.task import Task
from tests.actors.fakes import save_character_tokenizer
from tests.builders import make_group, make_trajectory

TASK = Task(task_id="t", prompt="q", reference="42")


class ScriptedEngine:
    """log p = -1 per character, and `bonus` more on digits once the text holds the cue."""

    def __init__(self, renderer, cue, bonus):
        self.renderer, self.cue, self.bonus, self.calls = renderer, cue, bonus, []

    async def score(self, token_ids, temperature=1.0):
        text = self.renderer.decode(token_ids)
        self.calls.append(text)
        logprobs = np.full(len(token_ids), -1.0, np.float32)
        for i, token in enumerate(token_ids):
            if self.renderer.decode([token]).isdigit() and self.cue in self.renderer.decode(token_ids[:i]):
                logprobs[i] += self.bonus
        return logprobs


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return Renderer(str(save_character_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def answered(renderer, text, **fields):
    return make_trajectory(prompt=renderer.prompt_ids(TASK.messages), answer=renderer.answer_ids(text), **fields)


async def test_a_rationale_earns_the_gain_of_the_reference_minus_its_cost(renderer):
    engine = ScriptedEngine(renderer, "double", 0.5)
    members = tuple(
        answered(renderer, text, index=i, score=0.0) for i, text in enumerate(["double it", "no idea", "", "42 double"])
    )
    group = make_group(scores=[0.0] * 4)
    group = type(group)(**{f: getattr(group, f) for f in group.__slots__} | {"trajectories": members})
    paid = await Likelihoods(engine, renderer, 256).paid(TASK, group, LikelihoodConfig(weight=2.0, cost=0.1))
    assert paid.scores == pytest.approx([2 * 0.5 - 0.1, -0.1, 0.0, 0.9])
    assert [t.verdict.extras["overlap"] for t in paid.trajectories] == [0.0, 0.0, 0.0, 1.0]
    summed = await Likelihoods(engine, renderer, 256).paid(TASK, group, LikelihoodConfig(per_token=False))
    assert [t.verdict.components["likelihood_gain"] for t in summed.trajectories] == pytest.approx([1.0, 0.0, 0.0, 1.0])


async def test_understanding_puts_the_reference_in_place_of_the_donors_answer(renderer):
    engine = ScriptedEngine(renderer, "double", 0.5)
    measured = await Likelihoods(engine, renderer, 256).understood(TASK, answered(renderer, "double it: 17. Done"))
    assert engine.calls[-1].endswith("double it: 42")
    assert measured.verdict.extras["understood"] == pytest.approx(math.exp(-0.5))
    assert measured.score == 1.0


async def test_comprehension_is_the_arithmetic_mean_of_probabilities(renderer):
    engine = ScriptedEngine(renderer, "double", 0.5)
    task = Task(task_id="t", prompt="q", reference="4x")
    measured = await Likelihoods(engine, renderer, 256).understood(task, answered(renderer, "double it: 17"))
    assert measured.verdict.extras["understood"] == pytest.approx((math.exp(-0.5) + math.exp(-1.0)) / 2)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [(r"so \boxed{1} or \boxed{2} then 3", r"so \boxed{1} or "), ("1 and 2, done", "1 and "), ("none", "none")],
)
def test_the_answer_is_the_last_box_or_number(text, reasoning):
    assert without_answer(text) == reasoning


async def test_a_stored_answer_is_as_sure_as_the_policy_is_of_it_now(renderer):
    engine = ScriptedEngine(renderer, "double", -3.0)
    donor = answered(renderer, "double: 4", logprobs=[-0.1] * 10)
    measured = await Likelihoods(engine, renderer, 256).surest(donor)
    assert measured.verdict.extras["logprob_now"] == pytest.approx(-1.3)
    assert (await Likelihoods(engine, renderer, 5).surest(donor)).verdict.extras == {}
