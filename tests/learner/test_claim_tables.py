"""The tables that claims are tried on: the step is the exact gradient, sampling follows the table, success is exact."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.claims.answers import Answers, Table, group_of, pass_at, sampled_group, train
from learner.config import KLToReference, NegativeLogLikelihood, PolicyGradient, Term
from learner.objective import Objective
from rewards.trajectory import Source


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("shares", [False, True])
def test_a_step_is_the_gradient_of_a_softmax(shares):
    first = np.random.default_rng(0).normal(size=(2, 1, 4))
    table = Table(first, shares=shares)
    tokens = np.array([[2], [0]])
    group = group_of("g", 1, tokens, np.array([1.0, 0.0]), np.zeros((2, 1)), Source.LIVE)
    table.step(Objective([Term(loss=PolicyGradient(), advantage="centered")]), [group], 0, rate=0.3)
    gradient = (0.5 * np.eye(4)[2] - 0.5 * np.eye(4)[0]) / 2  # the parts of the softmax itself cancel
    expected = first + np.array([np.zeros((1, 4)), 0.3 * gradient[None]])
    np.testing.assert_allclose(table.own.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(table.shared.detach().numpy(), 0.3 * gradient[None] * shares, atol=1e-12)


def test_answers_are_drawn_as_the_table_says_and_success_is_theirs():
    logits = np.random.default_rng(1).normal(size=(1, 2, 3))
    right = np.array([[[True, False, True], [False, True, False]]])
    answers, table = Answers(right), Table(logits, shares=False)
    group = sampled_group("g", 0, np.log(softmax(logits)), answers, np.random.default_rng(2), size=20_000)
    p = softmax(logits)[0]
    (success,) = table.success(answers)
    assert success == pytest.approx((p[0, 0] + p[0, 2]) * p[1, 1])
    scores = [t.score for t in group.trajectories]
    assert np.mean(scores) == pytest.approx(success, abs=0.015)
    first = group.trajectories[0]
    assert first.behavior_logprobs[1] == pytest.approx(np.log(p[0, first.token_ids[1]]), abs=1e-6)
    assert pass_at(np.array([0.5, 0.0]), 2) == 0.375


def test_training_ends_when_told_and_reads_a_frozen_reference():
    answers = Answers(np.arange(3) == np.zeros((2, 1, 1)))
    table = Table(np.zeros((2, 1, 3)), shares=False)
    expert = group_of("e", 0, np.array([[0]]), np.ones(1), None, Source.EXPERT)
    terms = (Term(loss=NegativeLogLikelihood(), source="expert"), Term(loss=KLToReference(), source="expert"))
    steps = train(
        table,
        terms,
        answers,
        0,
        steps=50,
        groups=4,
        size=2,
        rate=0.2,
        frozen=[expert],
        frozen_per_step=1,
        until=lambda: bool(table.success(answers)[0] > 0.5),
    )
    assert 1 < steps < 50
    assert table.success(answers)[1] == pytest.approx(1 / 3)
