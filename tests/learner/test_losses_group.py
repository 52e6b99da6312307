"""Losses over whole groups: worked numbers, each against loops over members, and the promise that groups stay whole."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import (
    ClippedSurrogate,
    ContrastivePolicyGradient,
    GroupPreference,
    GroupRegression,
    OddsRatioPreference,
    OutcomeClassification,
    PairwisePreference,
    ProspectPreference,
    Term,
    TiltedTargetGradient,
)
from learner.losses.table import LOSSES
from learner.packing import split_micro_batches
from rewards.trajectory import Source
from tests.learner import fixture_f as F
from tests.learner.rank_process import CONFIG, make_trainer, weights
from tests.learner.tiny_policy import random_groups

IDS = F.flat(0, 0, 0, 1, 1)
ONE_GROUP = F.flat(0, 0, 0, 0, 0)
SCORES = F.flat(1, 1, 1, 0, 0)


def loss_of(name, columns, **options):
    entry = LOSSES[name]
    return entry.function(**{column: columns[column] for column in entry.columns}, **options).loss


def fixture(pi, advantages, behavior=F.PROX, scale=F.SEQUENCE):
    return {
        "logprobs": pi,
        "behavior_logprobs": behavior,
        "reference_logprobs": F.REF,
        "advantages": advantages,
        "sequence_ids": IDS,
        "group_ids": ONE_GROUP,
        "point": F.flat(*[0.05] * 5),
        "token_scale": scale,
    }


# method: loss name, advantages, token scales, options, value, gradient per token of sequence 1 and 2 (or None)
WORKED = {
    "gvpo": ("group_regression", F.ADVANTAGES / 2, F.SEQUENCE, {}, 0.247506, (-0.04975, 0.04975)),
    "copg": ("contrastive_policy_gradient", SCORES, F.SEQUENCE, {"beta": 0.5}, 1.21, (-1.1, 1.1)),
    "pacs": ("outcome_classification", SCORES, F.SEQUENCE, {}, 0.66846, (-0.487503, 0.487503)),
    "dpo": ("pairwise_preference", SCORES, F.SEQUENCE, {}, 0.703197, None),
    "ipo": ("pairwise_preference", SCORES, F.SEQUENCE, {"form": "squared"}, 26.351111, None),
    "orpo": ("odds_ratio_preference", SCORES, F.SEQUENCE, {}, 1.124048, None),
    "kto, desirable": ("prospect_preference", SCORES, F.FIRST, {}, 0.49625, None),
    "kto, undesirable": ("prospect_preference", SCORES, F.SECOND, {}, 0.508749, None),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name):
    loss, advantages, scale, options, value, gradient = WORKED[name]
    pi = F.policy()
    result = loss_of(loss, fixture(pi, advantages, scale=scale), **options)
    result.backward()
    assert result.item() == pytest.approx(value, abs=6e-7)
    if gradient is not None:
        expected = F.flat(*[gradient[0]] * 3, *[gradient[1]] * 2)
        torch.testing.assert_close(pi.grad, expected, atol=8e-7, rtol=0)


def test_gepo_worked_numbers():
    # winners .4 and .2, losers -.1 and .1, one token each
    ratios = F.flat(0.4, 0.2, -0.1, 0.1)
    columns = {
        "logprobs": ratios - 2.0,
        "reference_logprobs": F.flat(-2, -2, -2, -2),
        "advantages": F.flat(0.5, 0.5, -0.5, -0.5),
        "sequence_ids": F.flat(0, 1, 2, 3),
        "group_ids": F.flat(0, 0, 0, 0),
        "token_scale": F.flat(*[1 / 4] * 4),
    }
    assert loss_of("group_preference", columns).item() == pytest.approx(0.564355, abs=6e-7)


def random_columns(sizes, seed):
    """Groups of the given sizes; each sequence of 1 to 4 tokens, some of them left out; aggregation "sequence"."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    lengths = torch.randint(1, 5, (count,), generator=generator)
    members = torch.repeat_interleave(torch.arange(count), lengths)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[members].double()
    scores = torch.randint(0, 3, (count,), generator=generator)[members] / 2.0

    def nats():
        return -3 * torch.rand(len(members), generator=generator, dtype=torch.float64) - 0.05

    return {
        "logprobs": nats().requires_grad_(),
        "behavior_logprobs": nats(),
        "reference_logprobs": nats(),
        "advantages": scores.double(),
        "sequence_ids": members.double(),
        "group_ids": groups,
        "point": torch.full((len(members),), 0.3, dtype=torch.float64),
        "token_scale": (1.0 / (lengths * count).double())[members],
    }


def sequences(columns, other):
    """Per group a list of (sum of log-ratio, tokens, score, sum of log-probs), from plain loops."""
    found: dict[float, dict[float, list[int]]] = {}
    for n in range(len(columns["logprobs"])):
        group = found.setdefault(columns["group_ids"][n].item(), {})
        group.setdefault(columns["sequence_ids"][n].item(), []).append(n)
    pi = columns["logprobs"]
    base = columns[other] if other else torch.zeros_like(pi)
    return [
        [
            (sum(pi[n] - base[n] for n in at), len(at), columns["advantages"][at[0]], sum(pi[n] for n in at))
            for at in group.values()
        ]
        for group in found.values()
    ]


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def by_loops(name, columns):
    """The mean over sequences of each group's loss, from the papers' formulas; default options."""
    other = "behavior_logprobs" if "behavior_logprobs" in LOSSES[name].columns else "reference_logprobs"
    total, count = torch.zeros((), dtype=torch.float64), 0
    for group in sequences(columns, None if name == "odds_ratio_preference" else other):
        size, count = len(group), count + len(group)
        pairs = [(a, b) for a, b in itertools.permutations(group, 2) if a[2] > b[2]]
        if name == "group_regression" and size > 1:
            mean = sum(float(torch.as_tensor(d).detach()) for d, *_ in group) / size
            total = total + size / (2 * (size - 1)) * sum((0.1 * d - 0.1 * mean - a) ** 2 for d, _, a, _ in group)
        if name == "contrastive_policy_gradient" and size > 1:
            both = itertools.permutations([a - 0.5 * d for d, _, a, _ in group], 2)
            total = total + sum((x - y) ** 2 for x, y in both) / (size - 1)
        if name == "outcome_classification":
            right = sum(float(a) > 0.5 for _, _, a, _ in group)
            for i, (d, _, a, _) in enumerate(group):
                others = [e for j, (e, *_) in enumerate(group) if j != i]
                psi = d - (sum(others) / len(others) if others else 0)
                own = right if a > 0.5 else size - right
                weight = size / (2 * own) if 0 < right < size else 1
                total = total - weight * torch.log(sigmoid(psi) if a > 0.5 else 1 - sigmoid(psi))
        if name == "group_preference":
            winners, losers = [d for d, _, a, _ in group if a > 0], [d for d, _, a, _ in group if a <= 0]
            if winners and losers:
                mean = sum(winners) / len(winners)
                variance = sum((d - mean) ** 2 for d in winners) / len(winners)
                total = total + size * (variance - torch.log(sigmoid(mean - sum(losers) / len(losers))))
        if name == "pairwise_preference" and pairs:
            total = total - size * sum(torch.log(sigmoid(0.1 * (a[0] - b[0]))) for a, b in pairs) / len(pairs)
        if name == "odds_ratio_preference" and pairs:

            def odds(member):
                mean = member[3] / member[1]
                return mean - torch.log(1 - torch.exp(mean))

            values = [-a[3] / a[1] - 0.1 * torch.log(sigmoid(odds(a) - odds(b))) for a, b in pairs]
            total = total + size * sum(values) / len(pairs)
        if name == "prospect_preference":
            total = total + sum(1 - sigmoid(0.1 * (d - 0.3 if a > 0 else 0.3 - d)) for d, _, a, _ in group)
    return total / count


NAMES = (
    "group_regression",
    "contrastive_policy_gradient",
    "outcome_classification",
    "group_preference",
    "pairwise_preference",
    "odds_ratio_preference",
    "prospect_preference",
)


@pytest.mark.parametrize("name", NAMES)
def test_each_equals_loops_over_members_in_value_and_gradient(name):
    for seed, sizes in enumerate([(2,), (4, 1, 3), (5, 2)]):
        columns = random_columns(sizes, seed)
        expected = by_loops(name, columns)
        (wanted,) = torch.autograd.grad(expected, columns["logprobs"])
        got = loss_of(name, columns)
        (gradient,) = torch.autograd.grad(got, columns["logprobs"])
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_left_out_may_be_unknown_and_an_empty_part_stays_connected(name):
    columns = random_columns((3, 2), seed=5)
    nothing = {**columns, "token_scale": torch.zeros_like(columns["token_scale"])}
    empty = loss_of(name, nothing)
    assert empty.item() == 0.0
    assert empty.requires_grad
    padded = {
        key: torch.cat([value.detach(), torch.full((2,), math.nan if "logprobs" in key else 0.0, dtype=torch.float64)])
        for key, value in columns.items()
    }
    padded["logprobs"].requires_grad_()
    assert loss_of(name, padded).item() == pytest.approx(loss_of(name, columns).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss_of(name, padded), padded["logprobs"])
    assert torch.isfinite(gradient).all()
    assert not gradient[-2:].any()


units = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 1), min_size=1, max_size=6)), min_size=1, max_size=12
)


@given(units, st.booleans(), st.integers(1, 25), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_units_are_never_split_and_the_limit_holds_for_more_than_one(content, share_prefixes, max_tokens, num_ranks):
    together = [unit for unit, _ in content]
    tokens = [torch.tensor(sequence).numpy() for _, sequence in content]
    ranks = split_micro_batches(
        tokens, max_tokens=max_tokens, num_ranks=num_ranks, share_prefixes=share_prefixes, together=together
    )
    chunks = [chunk for rank in ranks for chunk in rank]
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(content)))
    assert len({len(rank) for rank in ranks}) == 1
    for unit in set(together):
        assert sum(unit in {together[i] for i in chunk} for chunk in chunks) == 1
    if not share_prefixes:
        for chunk in chunks:
            if len({together[i] for i in chunk}) > 1:
                assert sum(len(tokens[i]) for i in chunk) <= max_tokens


WHOLE_GROUPS = (
    Term(loss=GroupRegression(), aggregation="sequence", advantage="centered", ratio_to="proximal"),
    Term(loss=ContrastivePolicyGradient(beta=0.1), aggregation="sequence", advantage="score"),
    Term(loss=OutcomeClassification(beta=0.1), aggregation="sequence", advantage="score"),
    Term(loss=GroupPreference(), aggregation="sequence", advantage="centered"),
    Term(loss=PairwisePreference(), aggregation="sequence", advantage="score"),
    Term(loss=OddsRatioPreference(), aggregation="sequence", advantage="score"),
    Term(loss=ProspectPreference(), aggregation="sequence", advantage="centered"),
    Term(loss=TiltedTargetGradient(), aggregation="sequence", advantage="score"),
    Term(loss=ClippedSurrogate()),
)


@pytest.mark.parametrize(("attention", "max_tokens"), [("packed", 16), ("shared_prompt", 40)])
def test_groups_stay_whole_through_the_real_learner(tiny_folder, attention, max_tokens):
    groups = random_groups([(6, (5, 2, 9)), (9, (12, 3)), (2, (3, 7, 4, 1))], seed=3, source=Source.LIVE)
    results = []
    for config in (
        CONFIG,
        CONFIG.model_copy(update={"attention": attention, "max_tokens_per_micro_batch": max_tokens}),
    ):
        trainer = make_trainer(tiny_folder, config, WHOLE_GROUPS)
        results.append((trainer.step(groups, 0), weights(trainer)))
    (expected, expected_weights), (got, got_weights) = results
    assert not got.skipped
    assert got.num_micro_batches != expected.num_micro_batches
    for label, metrics in expected.terms.items():
        assert got.terms[label] == pytest.approx(metrics, rel=1e-3, abs=1e-4), label
    for name, weight in expected_weights.items():
        assert float((got_weights[name] - weight).detach().abs().max()) < 1e-4, name
