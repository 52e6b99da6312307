"""Columns made of all tokens of an update: worked numbers on the fixture, loops over tokens, and the real learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing

from learner import statistics
from learner.config import ClippedSurrogate, Term
from learner.logprobs import vocabulary_measures
from learner.losses.updatewide import (
    covariance_clipped_surrogate,
    covariance_penalty_surrogate,
    moment_clipped_surrogate,
    optimal_baseline_gradient,
    protected_surrogate,
    quotient_clipped_surrogate,
)
from learner.statistics import UpdateTokens
from tests.learner import fixture_f as F
from tests.learner.rank_process import (
    CONFIG,
    WHOLE_UPDATE_TERMS,
    batch,
    make_trainer,
    run_whole_update_terms,
    weights,
)

WHOLE_UPDATE_TERMS_ON_OWN_PAST = [term.model_copy(update={"source": "own_past"}) for term in WHOLE_UPDATE_TERMS]

BAPO = {"target": 0.5, "low": 0.6, "low_max": 0.8, "high": 1.2, "high_max": 2.0, "increment": 0.05}


def tokens(**changes) -> UpdateTokens:
    """The fixture as one update, ratios to the policy at its start."""
    values = {
        "logprobs": F.PI.numpy(),
        "behavior_logprobs": F.PROX.numpy(),
        "advantages": F.ADVANTAGES.numpy(),
        "sequence_ids": np.array([0, 0, 0, 1, 1]),
        "group_ids": np.zeros(5, np.int64),
        "measures": {},
    }
    return UpdateTokens(**{**values, **changes})


def columns(made) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(values, np.float64)) for name, values in made.items()}


def test_covariances_of_the_fixture_pick_its_tokens():
    # 0.432, -0.208, -0.448, -0.528, 0.192
    assert statistics.covariance_top(tokens(), 0, share=2e-4)["picked"].tolist() == [1, 0, 0, 0, 0]
    assert statistics.covariance_top(tokens(), 0, share=0.4)["picked"].tolist() == [1, 0, 0, 0, 1]
    assert statistics.covariance_band(tokens(), 0, share=0.4, low=0.1, high=0.5)["picked"].tolist() == [1, 0, 0, 0, 1]
    assert statistics.covariance_band(tokens(), 0, share=0.4, low=0.1, high=0.4)["picked"].tolist() == [0, 0, 0, 0, 1]
    assert not statistics.covariance_band(tokens(), 0, share=1.0, low=1.0, high=5.0)["picked"].any()


def test_the_random_share_depends_on_the_step_alone():
    many = tokens(
        logprobs=np.linspace(-3, 0, 500),
        advantages=np.linspace(-2, 2, 500),
        behavior_logprobs=np.zeros(500),
    )
    draws = [statistics.covariance_band(many, step, share=0.05, low=0.01, high=9.0)["picked"] for step in (3, 3, 4)]
    assert [draw.sum() for draw in draws] == [25, 25, 25]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_clip_cov_and_kl_cov_on_the_fixture():
    ratio = (F.PI - F.PROX).exp()
    picked = F.flat(1, 0, 0, 0, 0)
    pi = F.policy()
    loss = covariance_clipped_surrogate(pi, F.PROX, F.ADVANTAGES, F.flat(0, 1, 0, 0, 0), F.TOKEN)
    loss.loss.backward()
    # as PPO, -0.18605, without token 2 of sequence 1
    assert loss.loss.item() == pytest.approx(-0.18605 + 0.148164, abs=1.1e-6)
    torch.testing.assert_close(pi.grad, F.flat(0, 0, 0, 0.172142, 0.269972), atol=8e-7, rtol=0)
    pi = F.policy()
    loss = covariance_penalty_surrogate(pi, F.PROX, F.ADVANTAGES, picked, F.TOKEN).loss
    loss.backward()
    assert loss.item() == pytest.approx(float((-ratio * F.ADVANTAGES).mean() + 0.2 / 5), abs=1e-10)
    torch.testing.assert_close(pi.grad, (-ratio * F.ADVANTAGES + picked) / 5, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("target", "low", "high"),
    # Q(.6, 1.2) = 1.42082; a larger low only lowers it: Q(.8, 1.2) is the same, then high grows up to r = 1.35
    [(1.42, 0.6, 1.2), (1.43, 0.8, 1.25), (9.0, 0.8, 2.0)],
)
def test_bapo_bounds_of_the_fixture(target, low, high):
    made = statistics.quotient_bounds(tokens(), 0, **{**BAPO, "target": target})
    assert made["bound_low"] == pytest.approx(np.full(5, low))
    assert made["bound_high"] == pytest.approx(np.full(5, high))


def test_bapo_without_bad_tokens_keeps_its_bounds():
    made = statistics.quotient_bounds(tokens(advantages=np.ones(5)), 0, **BAPO)
    assert (made["bound_low"][0], made["bound_high"][0]) == (0.6, 1.2)


def test_bapo_loss_is_ppo_with_these_bounds():
    pi = F.policy()
    loss = quotient_clipped_surrogate(pi, F.PROX, F.ADVANTAGES, F.flat(*[0.8] * 5), F.flat(*[1.2] * 5), F.TOKEN).loss
    loss.backward()
    assert loss.item() == pytest.approx(-0.18605, abs=6e-7)
    torch.testing.assert_close(pi.grad, F.flat(0, -0.148164, 0, 0.172142, 0.269972), atol=8e-7, rtol=0)


def test_m2po_worked_numbers():
    made = columns(statistics.moment_bounds(tokens(), 0, budget=0.04))
    assert made["bound_low"][0].item() == pytest.approx(1 - 0.181269, abs=1e-6)
    assert made["bound_high"][0].item() == pytest.approx(1.221403, abs=1e-6)
    pi = F.policy()
    loss = moment_clipped_surrogate(pi, F.PROX, F.ADVANTAGES, made["bound_low"], made["bound_high"], F.TOKEN).loss
    loss.backward()
    assert loss.item() == pytest.approx(-0.194611, abs=6e-7)
    torch.testing.assert_close(pi.grad, F.flat(0, -0.148164, 0, 0.172142, 0.269972), atol=8e-7, rtol=0)


@pytest.mark.parametrize(("budget", "bounds"), [(0.06, (0.0, np.inf)), (0.01, (1.0, 1.0))])
def test_m2po_within_and_far_beyond_the_budget(budget, bounds):
    """Below the budget nothing is bounded; beyond the smallest square every harmful step is."""
    made = statistics.moment_bounds(tokens(), 0, budget=budget)
    assert (made["bound_low"][0], made["bound_high"][0]) == bounds


def test_optimal_token_baseline():
    """The first position of two answers: W = 0.3 and 1.1, scores 1 and 0; the second answer ends there."""
    probabilities = np.array([0.6, 0.5, 0.2])
    mine = UpdateTokens(
        logprobs=np.log(probabilities),
        behavior_logprobs=np.full(3, np.nan),
        advantages=np.array([1.0, 1.0, 0.0]),
        sequence_ids=np.array([0, 0, 1]),
        group_ids=np.zeros(3, np.int64),
        measures={"squared_mass": np.array([0.5, 0.4, 0.5])},
    )
    baseline = statistics.optimal_token_baseline(mine, 0)["baseline"]
    assert baseline == pytest.approx([0.214286, 1.0, 0.214286], abs=6e-7)
    pi = torch.from_numpy(mine.logprobs).requires_grad_()
    loss = optimal_baseline_gradient(pi, F.flat(1, 1, 0), torch.from_numpy(baseline), F.flat(1, 1, 1)).loss
    (gradient,) = torch.autograd.grad(loss, pi)
    torch.testing.assert_close(gradient, F.flat(0.214286 - 1, 0, 0.214286), atol=8e-7, rtol=0)


def test_baselines_stay_within_their_group_and_position():
    rng = np.random.default_rng(0)
    lengths, groups = [3, 1, 2, 4, 2], [0, 0, 1, 1, 1]
    total = sum(lengths)
    mine = UpdateTokens(
        logprobs=-rng.random(total) - 0.1,
        behavior_logprobs=np.zeros(total),
        advantages=np.repeat(rng.random(5), lengths),
        sequence_ids=np.repeat(np.arange(5), lengths),
        group_ids=np.repeat(groups, lengths),
        measures={"squared_mass": 0.9 + rng.random(total)},
    )
    growth = 1 - 2 * np.exp(mine.logprobs) + mine.measures["squared_mass"]
    ends = np.cumsum(lengths)
    expected = []
    for own in range(5):
        for place in range(lengths[own]):
            siblings = [i for i in range(5) if groups[i] == groups[own] and lengths[i] > place]
            starts = [ends[i] - lengths[i] for i in siblings]
            w = [growth[s : s + place + 1].sum() for s in starts]
            expected.append(sum(x * mine.advantages[s] for x, s in zip(w, starts, strict=True)) / sum(w))
    assert statistics.optimal_token_baseline(mine, 0)["baseline"] == pytest.approx(expected, abs=1e-10)


def test_lp_reg_worked_numbers():
    """Proxy ln .090031 of a token at ln .08: k3 .007259, its gradient -.125382; a likelier token is left alone."""
    pi = torch.tensor([0.08, 0.6], dtype=torch.float64).log().requires_grad_()
    proxy = torch.tensor([0.088947 / 0.987963, float("nan")], dtype=torch.float64).log()
    base = pi.detach().clone()
    plain = protected_surrogate(pi, base, F.flat(-1, -1), torch.full_like(proxy, float("nan")), F.flat(1, 1)).loss
    loss = protected_surrogate(pi, base, F.flat(-1, -1), proxy, F.flat(1, 1)).loss
    (gradient,) = torch.autograd.grad(loss - plain, pi)
    assert (loss - plain).item() == pytest.approx(0.007259, abs=1e-6)
    torch.testing.assert_close(gradient, F.flat(-0.125382, 0), atol=5e-6, rtol=0)


def test_only_unlikely_bad_tokens_near_the_largest_are_protected():
    probabilities = np.array([0.01, 0.02, 0.03, 0.5, 0.6, 0.7, 0.04, 0.3])
    mine = tokens(
        logprobs=np.log(probabilities),
        advantages=np.array([-1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0]),
        measures={"largest_logprob": np.log(np.array([0.9] + [0.4] * 7)), "kept_mass": np.full(8, 0.8)},
    )
    proxy = statistics.low_probability(mine, 0, share=0.5, min_ratio=0.02)["proxy_logprobs"]
    # the lowest half are 0, 1, 2, 6: 0 lies below .02 of .9, 2 is good
    assert np.flatnonzero(np.isfinite(proxy)).tolist() == [1, 6]
    assert proxy[[1, 6]] == pytest.approx(np.log(np.array([0.02, 0.04]) / 0.8))
    assert np.isnan(statistics.low_probability(mine, 0, share=0.2, min_ratio=0.02)["proxy_logprobs"]).all()


def test_the_reference_point_is_the_mean_over_sequences():
    """The fixture's sums of log-ratios to the reference are .2 and .4."""
    mine = tokens(reference_logprobs=F.REF.numpy())
    assert statistics.prospect_point(mine, 0, reference_point=None)["point"] == pytest.approx(np.full(5, 0.3))
    worse = tokens(reference_logprobs=F.REF.numpy() + 1.0)
    assert statistics.prospect_point(worse, 0, reference_point=None)["point"].tolist() == [0.0] * 5
    assert statistics.prospect_point(mine, 0, reference_point=0.05)["point"].tolist() == [0.05] * 5


def test_measures_of_the_vocabulary():
    hidden, weight = torch.randn(7, 5), 3 * torch.randn(11, 5)
    probabilities = (hidden @ weight.T / 0.7).double().softmax(1)
    measures = vocabulary_measures(hidden, weight, floor=0.1, temperature=0.7, chunk_tokens=3)
    largest = probabilities.amax(1)
    kept = torch.where(probabilities >= 0.1 * largest[:, None], probabilities, 0.0).sum(1)
    entropy = -(probabilities * probabilities.log()).sum(1)
    expected = torch.stack([probabilities.square().sum(1), largest.log(), kept, entropy])
    torch.testing.assert_close(measures.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def one_rank(tiny_folder):
    trainer = make_trainer(tiny_folder, CONFIG, WHOLE_UPDATE_TERMS)
    return trainer.step(batch(0), 0), weights(trainer)


def assert_same(terms, got_weights, one_rank):
    report, expected = one_rank
    assert not report.skipped
    for label, metrics in report.terms.items():
        assert terms[label] == pytest.approx(metrics, rel=1e-3, abs=1e-4), label
    for name, weight in expected.items():
        assert float((got_weights[name] - weight).detach().abs().max()) < 1e-4, name


def test_statistics_do_not_depend_on_micro_batches(tiny_folder, one_rank):
    config = CONFIG.model_copy(update={"attention": "packed", "max_tokens_per_micro_batch": 30})
    trainer = make_trainer(tiny_folder, config, WHOLE_UPDATE_TERMS)
    report = trainer.step(batch(0), 0)
    assert report.num_micro_batches > one_rank[0].num_micro_batches
    assert report.terms["live/protected_surrogate"]["protected_fraction"] > 0
    assert_same(report.terms, weights(trainer), one_rank)


def test_an_update_without_tokens_of_a_statistics_term(tiny_folder):
    trainer = make_trainer(tiny_folder, CONFIG, [Term(loss=ClippedSurrogate()), *WHOLE_UPDATE_TERMS_ON_OWN_PAST])
    report = trainer.step(batch(0), 0)
    assert not report.skipped
    assert {report.terms[label]["loss"] for label in report.terms if label.startswith("own_past")} == {0.0}


@pytest.mark.multi_rank
def test_statistics_span_the_ranks(tiny_folder, one_rank, tmp_path):
    out = tmp_path / "ranks.pt"
    torch.multiprocessing.spawn(run_whole_update_terms, (2, tiny_folder, out), nprocs=2)
    result = torch.load(out)
    assert_same(result.pop("terms"), result, one_rank)
