"""Losses and corrections over sequences, through the real learner: packing must not move them."""

from __future__ import annotations

import pytest

from learner.config import (
    ClippedSurrogate,
    Correction,
    PolicyGradient,
    Rejection,
    SequenceSurrogate,
    SquaredLogRatio,
    Term,
    WeightedPolicyGradient,
)
from rewards.trajectory import Source
from tests.learner.rank_process import CONFIG, make_trainer, weights
from tests.learner.tiny_policy import random_groups

COMPOSED = (
    Term(loss=SequenceSurrogate(clip_low=0.5, clip_high=0.5), aggregation="sequence", advantage="whitened"),
    Term(loss=PolicyGradient(), advantage="shifted", correction=Correction(level="product", high=1.5)),
    Term(loss=SquaredLogRatio(level="product"), weight=0.01, aggregation="constant", aggregation_constant=1.0),
    Term(loss=WeightedPolicyGradient(level="geometric"), advantage="length_weighted"),
    Term(
        loss=ClippedSurrogate(),
        ratio_to="proximal",
        correction=Correction(reject=(Rejection(statistic="k3", over="mean", high=5.0),), max_negative_drift=0.5),
    ),
)


def batch():
    return random_groups([(6, (5, 2, 9)), (9, (12, 3)), (2, (3, 7))], seed=3, source=Source.LIVE)


@pytest.mark.parametrize(("attention", "max_tokens"), [("packed", 16), ("shared_prompt", 16), ("packed", 10_000)])
def test_composed_terms_are_independent_of_layout_and_micro_batch_size(tiny_folder, attention, max_tokens):
    results = []
    for config in (
        CONFIG,
        CONFIG.model_copy(update={"attention": attention, "max_tokens_per_micro_batch": max_tokens}),
    ):
        trainer = make_trainer(tiny_folder, config, COMPOSED)
        results.append((trainer.step(batch(), 0), weights(trainer)))
    (expected, expected_weights), (got, got_weights) = results
    assert not got.skipped
    assert got.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-5)
    assert got.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    for label, metrics in expected.terms.items():
        assert got.terms[label] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
    for name, weight in expected_weights.items():
        assert float((got_weights[name] - weight).detach().abs().max()) < 1e-4, name
