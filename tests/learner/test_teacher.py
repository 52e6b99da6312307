"""Distillation: divergences over the vocabulary against whole tables, worked numbers, and the real learner."""

from __future__ import annotations

import pytest
import torch

from learner import logprobs
from learner.config import OnPolicyDistillation, SquaredLogRatio, TeacherConfig, TeacherDivergence, Term
from learner.logprobs import vocabulary_divergence
from learner.losses.distillation.functions import on_policy_distillation
from learner.losses.regularizers import squared_log_ratio
from tests.learner import fixture_f as F
from tests.learner.rank_process import CONFIG, batch, make_trainer, weights
from tests.learner.tiny_policy import save_tiny_model

WITH_TEACHER = CONFIG.model_copy(update={"teacher": TeacherConfig(model="another")})
TERMS = (
    Term(loss=OnPolicyDistillation()),
    Term(loss=SquaredLogRatio(), weight=2e-3),
    Term(loss=TeacherDivergence(mixture=0.3), source="expert"),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return {"teacher": save_tiny_model(tmp_path_factory.mktemp("teacher"), seed=1)}


@pytest.mark.parametrize(("mixture", "expected"), [(0.0, 0.657205), (0.5, 0.155752), (1.0, 0.69484)])
def test_worked_divergences(mixture, expected):
    logits = torch.tensor([[0.0, 1, 2]]), torch.tensor([[1.0, 1, 0]])
    one = torch.eye(3)
    assert vocabulary_divergence(logits[0], one, logits[1], one, mixture=mixture).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_divergence_equals_whole_tables(monkeypatch, mixture):
    monkeypatch.setattr(logprobs, "MAX_CPU_TILE_ELEMENTS", 7 * 40)  # several tiles, the last one ragged
    generator = torch.Generator().manual_seed(0)
    hidden, theirs = (torch.randn(7, size, generator=generator) for size in (16, 12))
    weight, their_weight = (torch.randn(*shape, generator=generator) for shape in ((203, 16), (210, 12)))
    hidden.requires_grad_(), weight.requires_grad_()
    scale = torch.linspace(0.1, 1, 7)
    got = vocabulary_divergence(hidden, weight, theirs, their_weight, mixture=mixture, temperature=0.7)
    gradients = torch.autograd.grad((got * scale).sum(), (hidden, weight))

    own = (hidden.double() @ weight.double().T / 0.7).log_softmax(-1)
    other = (theirs.double() @ their_weight[:203].double().T / 0.7).log_softmax(-1)

    def kl(one, two):
        return (one.exp() * (one - two)).sum(1)

    joint = (mixture * other.exp() + (1 - mixture) * own.exp()).log()
    expected = {0.0: lambda: kl(other, own), 1.0: lambda: kl(own, other)}.get(
        mixture, lambda: mixture * kl(other, joint) + (1 - mixture) * kl(own, joint)
    )()
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, whole in zip(gradients, torch.autograd.grad((expected * scale).sum(), (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, whole, atol=3e-5, rtol=1e-4)


def test_divergence_of_a_certain_policy_is_finite():
    hidden = torch.tensor([[300.0, 0, 0]], requires_grad=True)
    divergence = vocabulary_divergence(hidden, torch.eye(3), torch.tensor([[0.0, 1, 2]]), torch.eye(3), mixture=0.0)
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_worked_numbers_of_on_policy_distillation():
    pi = F.policy()
    distilled = on_policy_distillation(pi, F.MU, F.REF, F.TOKEN).loss
    loss = distilled + 2e-3 * squared_log_ratio(pi, F.MU, torch.zeros(5), F.TOKEN).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.199443, abs=6e-7)
    expected = F.flat(0.06635, -0.032829, 0.033174, -0.016455, 0.149342)
    torch.testing.assert_close(pi.grad, expected, atol=8e-7, rtol=0)


def test_a_token_whose_probability_fell_far_is_left_out():
    pi = F.policy()
    loss = on_policy_distillation(pi, F.MU, F.REF, F.TOKEN, max_fall=0.05)
    loss.loss.backward()
    assert loss.metrics["clip_count"] == 2
    assert (pi.grad == 0).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("max_tokens", [16, 10_000])
def test_result_is_independent_of_packing(tiny_folder, teacher, max_tokens):
    other = WITH_TEACHER.model_copy(update={"max_tokens_per_micro_batch": max_tokens, "attention": "packed"})
    results = []
    for config in (WITH_TEACHER, other):
        trainer = make_trainer(tiny_folder, config, TERMS, companions=teacher)
        results.append((trainer.step(batch(0), 0), weights(trainer)))
    (expected, expected_weights), (got, got_weights) = results
    assert got.loss == pytest.approx(expected.loss, rel=1e-4)
    assert expected.grad_norm > 0.01
    assert got.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    assert all((got_weights[n] - w).detach().abs().max() < 1e-4 for n, w in expected_weights.items())


def test_the_policy_comes_nearer_to_its_teacher(tiny_folder, teacher):
    trainer = make_trainer(tiny_folder, WITH_TEACHER, TERMS[2:], companions=teacher)
    distances = [trainer.step(batch(0), step).terms["expert/teacher_divergence"]["kl_mean"] for step in range(15)]
    assert distances[-1] < 0.7 * distances[0]


def test_without_a_teacher_the_terms_are_refused(tiny_folder):
    with pytest.raises(ValueError, match=r"divergence.*learner\.teacher"):
        make_trainer(tiny_folder, CONFIG, TERMS)
