from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import (
    ClippedSurrogate,
    Correction,
    EntropyBonus,
    GeometricMeanSurrogate,
    ImportanceWeightedKL,
    KLToReference,
    NegativeLogLikelihood,
    PairwisePreference,
    PolicyGradient,
    RatioSurrogate,
    Rejection,
    Schedule,
    SequenceSurrogate,
    ShapedLikelihood,
    SquaredLogRatio,
    Term,
)
from learner.objective import BatchPlan, Objective, join_metrics
from rewards.trajectory import Group, Role, Source
from tests.builders import make_group, make_trajectory
from tests.learner import fixture_f as F

CHORD_MU = Schedule(kind="cosine", start=0.9, end=0.05, steps=200)
CHORD_PHI = Schedule(kind="cosine", start=0.5, end=0.02, steps=400, warmup=200)
LIVE = Term(loss=ClippedSurrogate(), source="live")
EXPERT = Term(loss=NegativeLogLikelihood(token_weight="phi"), source="expert")


def pack(plan: BatchPlan, groups, **token_columns) -> dict[str, torch.Tensor]:
    """Flat columns as a trainer makes them, in float64; `token_columns` hold values of sampled tokens only."""
    sampled = np.concatenate([t.roles == Role.SAMPLED for g in groups for t in g.trajectories])
    columns = {name: torch.from_numpy(np.concatenate(arrays)).double() for name, arrays in plan.columns.items()}
    for name, values in token_columns.items():
        column = torch.full((len(sampled),), math.nan, dtype=torch.float64)
        column[torch.from_numpy(sampled)] = torch.as_tensor(values, dtype=torch.float64)
        columns[name] = column
    columns["logprobs"].requires_grad_()
    return columns


def sampled_gradient(columns, groups) -> torch.Tensor:
    sampled = np.concatenate([t.roles == Role.SAMPLED for g in groups for t in g.trajectories])
    return columns["logprobs"].grad[torch.from_numpy(sampled)]


def two_sources(first: Source, second: Source) -> list[Group]:
    """The fixture's two sequences, each in a group of its own; the scores are the advantages +1 and -1."""
    return [
        make_group(group_id="a", source=first, scores=(1.0,), answers=[(7, 8, 9)]),
        make_group(group_id="b", source=second, scores=(-1.0,), answers=[(7, 8)]),
    ]


# ---------------------------------------------------------------------------------------------------- worked numbers


def test_chord_on_the_fixture():
    groups = two_sources(Source.EXPERT, Source.LIVE)
    mu = Schedule(start=0.3)
    objective = Objective(
        [
            Term(loss=ClippedSurrogate(), source="live", advantage="score", weight=mu.complement()),
            EXPERT.model_copy(update={"weight": mu}),
        ]
    )
    plan = objective.plan(groups)
    columns = pack(plan, groups, logprobs=F.PI, behavior_logprobs=F.PROX)
    loss, metrics = objective.loss(columns, step=0)
    loss.backward()
    assert loss.item() == pytest.approx(0.833797, abs=6e-7)
    expected = F.flat(-0.022099, -0.021048, -0.017334, 0.301248, 0.472451)
    torch.testing.assert_close(sampled_gradient(columns, groups), expected, atol=6e-7, rtol=0)
    report = objective.report(plan, metrics, step=0)
    assert report["live/clipped_surrogate"]["loss"] == pytest.approx(1.105283, abs=6e-7)
    assert report["expert/negative_log_likelihood"]["loss"] == pytest.approx(0.200328, abs=6e-7)
    assert report["expert/negative_log_likelihood"]["weight"] == 0.3
    assert report["live/clipped_surrogate"]["weight"] == pytest.approx(0.7)


def test_streams_have_their_own_denominators():
    groups = two_sources(Source.LIVE, Source.EXPERT)
    objective = Objective(
        [
            Term(loss=ClippedSurrogate(), source="live", advantage="score"),
            Term(loss=NegativeLogLikelihood(), source="expert"),
        ]
    )
    columns = pack(objective.plan(groups), groups, logprobs=F.PI, behavior_logprobs=[*F.PROX[:3], math.nan, math.nan])
    assert objective.loss(columns, 0)[0].item() == pytest.approx(-0.246939, abs=6e-7)


def test_three_terms_on_the_same_tokens():
    """PPO + 0.001 k3 - 0.001 H with a mean entropy of 1.2; advantages of two scores 1, -1 made by `score`."""
    groups = [make_group(scores=(1.0, -1.0), answers=[(7, 8, 9), (7, 8)])]
    objective = Objective(
        [
            Term(loss=ClippedSurrogate(), advantage="score"),
            Term(loss=KLToReference(), weight=0.001),
            Term(loss=EntropyBonus(), weight=0.001),
        ]
    )
    assert objective.needs == {"behavior_logprobs", "scores", "reference_logprobs", "entropy"}
    columns = pack(
        objective.plan(groups),
        groups,
        logprobs=F.PI,
        behavior_logprobs=F.PROX,
        reference_logprobs=F.REF,
        entropy=[1.0, 1.1, 1.2, 1.3, 1.4],
    )
    assert objective.loss(columns, 0)[0].item() == pytest.approx(-0.187214, abs=6e-7)


@pytest.mark.parametrize(
    ("aggregation", "constant", "expected"),
    [("token", None, 3.2), ("sequence", None, 3.5), ("constant", 1.0, 8.0), ("constant", 10.0, 0.8)],
)
def test_aggregations(aggregation, constant, expected):
    """Token losses [1, 2, 3 | 4, 6], made by imitation of log-probs -1, -2, ...; an empty sequence counts nowhere."""
    empty = make_trajectory(group_id="g0", index=2, answer=(4, 5), roles=np.full(5, Role.CONTEXT, dtype=np.int8))
    full = make_group(scores=(1.0, 0.0), answers=[(4, 5, 6), (4, 5)])
    groups = [
        Group(group_id="g0", prompt_id="p", source=Source.LIVE, trajectories=(*full.trajectories, empty)),
    ]
    term = Term(loss=NegativeLogLikelihood(), aggregation=aggregation, aggregation_constant=constant)
    objective = Objective([term])
    plan = objective.plan(groups)
    assert (plan.terms[0].num_tokens, plan.terms[0].num_sequences) == (5, 2)
    columns = pack(plan, groups, logprobs=[-1, -2, -3, -4, -6])
    assert objective.loss(columns, 0)[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ("group_relative", [0.866024, -0.866024, -0.866024, 0.866024]),
        ("centered", [0.5, -0.5, -0.5, 0.5]),
        ("leave_one_out", [0.666667, -0.666667, -0.666667, 0.666667]),
        ("score", [1.0, 0.0, 0.0, 1.0]),
    ],
)
def test_advantages_lie_on_sampled_tokens(advantage, expected):
    plan = Objective([Term(loss=ClippedSurrogate(), advantage=advantage)]).plan([make_group(scores=(1, 0, 0, 1))])
    advantages = plan.terms[0].advantages
    assert advantages is not None
    for array, value in zip(advantages, expected, strict=True):
        np.testing.assert_allclose(array, [0, 0, 0, value, value], atol=6e-7)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (CHORD_PHI, {0: 0.0, 100: 0.25, 200: 0.5, 250: 0.481731, 400: 0.26, 600: 0.02, 5000: 0.02}),
        (CHORD_MU, {0: 0.9, 100: 0.475, 200: 0.05, 201: 0.05}),
        (CHORD_MU.complement(), {0: 0.1, 100: 0.525, 200: 0.95}),
        (Schedule(kind="linear", start=1.0, end=0.0, steps=4), {0: 1.0, 1: 0.75, 4: 0.0, 9: 0.0}),
        (Schedule(kind="step", start=1.0, end=0.5, steps=10), {9: 1.0, 10: 0.5}),
        (Schedule(start=0.1), {0: 0.1, 10**6: 0.1}),
    ],
)
def test_schedules(schedule, values):
    for step, value in values.items():
        assert schedule.at(step) == pytest.approx(value, abs=6e-7)


def test_the_weight_is_that_of_the_step():
    groups = [make_group(source=Source.EXPERT, scores=(1.0,))]
    objective = Objective([Term(loss=NegativeLogLikelihood(), source="expert", weight=CHORD_PHI)])
    columns = pack(objective.plan(groups), groups, logprobs=[-1.0, -3.0])
    for step in (0, 100, 250, 600):
        assert objective.loss(columns, step)[0].item() == pytest.approx(2.0 * CHORD_PHI.at(step))


# ------------------------------------------------------------------------------------------ which tokens, which group


def test_a_term_sees_its_source_only():
    groups = [make_group(scores=(1.0, 0.0)), make_group(group_id="e", source=Source.EXPERT, scores=(1.0,))]
    plan = Objective([LIVE, EXPERT]).plan(groups)
    live, expert = plan.terms
    assert [m.any() for m in live.mask] == [True, True, False]
    assert [m.any() for m in expert.mask] == [False, False, True]
    assert [m.tolist() for m in plan.trained] == [[False] * 3 + [True] * 2] * 3
    assert expert.advantages is None
    assert plan.num_trained_tokens == 6


def test_an_expert_in_the_group_does_not_move_the_baseline():
    own = make_group(scores=(1.0, 0.0, 0.0))
    expert = make_trajectory(group_id="g0", index=3, source=Source.EXPERT, score=1.0)
    mixed = Group(group_id="g0", prompt_id="p", source=Source.LIVE, trajectories=(*own.trajectories, expert))
    alone = Objective([LIVE]).plan([own]).terms[0].advantages
    with_expert = Objective([LIVE]).plan([mixed]).terms[0].advantages
    assert alone is not None
    assert with_expert is not None
    for a, b in zip(alone, with_expert[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not with_expert[3].any()


def test_unscored_answers_are_masked_and_leave_the_statistics():
    plan = Objective([LIVE]).plan([make_group(scores=(1.0, None, 0.0))]).terms[0]
    assert [m.sum() for m in plan.mask] == [2, 0, 2]
    assert (plan.num_tokens, plan.num_sequences) == (4, 2)
    pair = Objective([LIVE]).plan([make_group(scores=(1.0, 0.0))]).terms[0]
    assert plan.advantages is not None
    assert pair.advantages is not None
    np.testing.assert_array_equal(plan.advantages[2], pair.advantages[1])


def test_imitation_needs_no_verdict():
    groups = [make_group(source=Source.EXPERT, scores=(None,))]
    assert Objective([EXPERT]).plan(groups).terms[0].num_tokens == 2


def test_only_sampled_tokens_and_never_the_first_of_a_sequence():
    roles = np.array([Role.SAMPLED, Role.FORCED, Role.SAMPLED, Role.ENVIRONMENT, Role.SAMPLED], dtype=np.int8)
    trajectory = make_trajectory(roles=roles)
    group = Group(group_id="g0", prompt_id="p", source=Source.LIVE, trajectories=(trajectory,))
    plan = Objective([Term(loss=NegativeLogLikelihood())]).plan([group])
    assert plan.terms[0].mask[0].tolist() == [False, False, True, False, True]
    assert trajectory.roles[0] == Role.SAMPLED


def test_constant_groups_count_in_the_denominator():
    informative, constant = make_group(scores=(1.0, 0.0)), make_group(group_id="c", scores=(1.0, 1.0))
    plan = Objective([LIVE]).plan([informative, constant]).terms[0]
    assert plan.num_tokens == 8
    assert plan.advantages is not None
    assert not np.concatenate(plan.advantages[2:]).any()


def test_unknown_behavior_is_refused_by_terms_that_need_it():
    known = make_trajectory(group_id="x", index=0)
    unknown = make_trajectory(group_id="x", index=1, logprobs=(-1.0, math.nan))
    groups = [Group(group_id="x", prompt_id="p", source=Source.LIVE, trajectories=(known, unknown))]
    for loss in (ClippedSurrogate(), ImportanceWeightedKL()):
        with pytest.raises(ValueError, match=r"1 of its tokens have none, in 1 trajectories \(first: \['x/1'\]\)"):
            Objective([Term(loss=loss)]).plan(groups)
    Objective([Term(loss=NegativeLogLikelihood())]).plan(groups)


def test_labels_are_unique():
    objective = Objective([LIVE, LIVE, EXPERT])
    assert objective.labels == (
        "live/clipped_surrogate",
        "live/clipped_surrogate#2",
        "expert/negative_log_likelihood",
    )
    with pytest.raises(ValueError, match="at least one term"):
        Objective([])


def test_repeated_terms_keep_their_metrics_apart():
    groups = [make_group(scores=(1.0, 0.0))]
    objective = Objective([Term(loss=NegativeLogLikelihood()), Term(loss=NegativeLogLikelihood(token_weight="phi"))])
    plan = objective.plan(groups)
    _, metrics = objective.loss(pack(plan, groups, logprobs=[-1.0] * 4), 0)
    first, second = objective.report(plan, metrics, 0).values()
    assert first["token_weight_mean"] == 1.0
    assert second["token_weight_mean"] == pytest.approx(math.exp(-1) * (1 - math.exp(-1)))


# -------------------------------------------------------------------------------------- compositions of whole methods


def test_left_out_answers_leave_the_denominators():
    """NSR: wrong answers alone, as if the right ones had been filtered out before the update."""
    groups = [make_group(scores=(1.0, 0.0, 0.0), answers=[(4, 5, 6), (4, 5), (4,)])]
    plan = Objective([Term(loss=ClippedSurrogate(), advantage="negatives_only")]).plan(groups).terms[0]
    assert [m.sum() for m in plan.mask] == [0, 2, 1]
    assert (plan.num_tokens, plan.num_sequences) == (3, 2)
    assert plan.advantages is not None
    assert [a[3:].tolist() for a in plan.advantages] == [[0, 0, 0], [-1, -1], [-1]]


def test_an_expert_may_move_the_baseline_of_the_group():
    """LUFFY: the expert's success is compared with the policy's own failures, in both of its terms."""
    own = make_group(scores=(0.0, 0.0, 0.0))
    expert = make_trajectory(group_id="g0", index=3, source=Source.EXPERT, score=1.0)
    mixed = Group(group_id="g0", prompt_id="p", source=Source.LIVE, trajectories=(*own.trajectories, expert))
    terms = [
        Term(loss=RatioSurrogate(), advantage="centered", compared_with="group"),
        Term(loss=ShapedLikelihood(), source="expert", advantage="centered", compared_with="group"),
    ]
    live, taught = Objective(terms).plan([mixed]).terms
    assert live.advantages is not None
    assert taught.advantages is not None
    assert [a[-1] for a in live.advantages] == [-0.25] * 3 + [0]
    assert [a[-1] for a in taught.advantages] == [0] * 3 + [0.75]


def test_luffy_sums_tokens_over_the_width():
    groups = two_sources(Source.EXPERT, Source.LIVE)
    width = {"aggregation": "width", "aggregation_constant": 3.0, "advantage": "score"}
    objective = Objective(
        [Term(loss=ShapedLikelihood(), source="expert", **width), Term(loss=RatioSurrogate(), **width)]
    )
    columns = pack(objective.plan(groups), groups, logprobs=F.PI, behavior_logprobs=[*[math.nan] * 3, *F.PROX[3:]])
    loss = objective.loss(columns, 0)[0]
    loss.backward()
    assert loss.item() == pytest.approx(-0.033629, abs=6e-7)
    expected = F.flat(-0.037655, -0.062376, -0.071233, 0.286903, 0.449953)
    torch.testing.assert_close(sampled_gradient(columns, groups), expected, atol=8e-7, rtol=0)


def test_kimi_is_a_score_and_a_square_per_sequence():
    groups = [make_group(scores=(0.5, -0.5), answers=[(7, 8, 9), (7, 8)])]
    sums = {"aggregation": "constant", "aggregation_constant": 1.0}
    objective = Objective(
        [
            Term(loss=PolicyGradient(), advantage="score", **sums),
            Term(loss=SquaredLogRatio(level="product"), weight=0.1, **sums),
        ]
    )
    columns = pack(objective.plan(groups), groups, logprobs=F.PI, behavior_logprobs=F.PROX)
    loss = objective.loss(columns, 0)[0]
    loss.backward()
    assert loss.item() == pytest.approx(0.376563, abs=6e-7)
    torch.testing.assert_close(
        sampled_gradient(columns, groups), F.flat(-0.24, -0.24, -0.24, 0.2575, 0.2575), atol=6e-7, rtol=0
    )


def test_unknown_options_of_an_advantage_are_refused():
    with pytest.raises(ValueError, match=r"'shifted' has no options \['temperature'\].* it has \['shift'\]"):
        Objective([Term(loss=PolicyGradient(), advantage="shifted", advantage_options={"temperature": 1.0})])


# ------------------------------------------------------------------------------------------------- parts of a batch


def chord_batch(seed: int):
    """Live and expert groups of random shape, as flat columns, with the sequence every token belongs to."""
    rng = np.random.default_rng(seed)
    groups = [
        make_group(
            group_id=f"g{i}",
            source=Source.EXPERT if i % 3 == 2 else Source.LIVE,
            scores=[float(s) if s < 3 else None for s in rng.integers(0, 4, size=3)],
            answers=[tuple(range(5, 5 + rng.integers(1, 6))) for _ in range(3)],
        )
        for i in range(6)
    ]
    objective = Objective(
        [
            Term(loss=ClippedSurrogate(), aggregation="sequence", weight=CHORD_MU.complement()),
            Term(loss=NegativeLogLikelihood(token_weight="phi"), source="expert", weight=CHORD_MU),
            Term(loss=EntropyBonus(), aggregation="constant", aggregation_constant=64.0, weight=0.01),
            Term(loss=SequenceSurrogate(clip_high=0.5), aggregation="sequence", advantage="whitened"),
            Term(
                loss=GeometricMeanSurrogate(),
                ratio_to="proximal",
                correction=Correction(level="product", reject=(Rejection(statistic="k3", over="mean", high=1.0),)),
            ),
        ]
    )
    plan = objective.plan(groups)
    num_sampled = sum(t.num_sampled_tokens for g in groups for t in g.trajectories)
    columns = pack(
        plan,
        groups,
        logprobs=rng.uniform(-3, -0.1, num_sampled),
        behavior_logprobs=rng.uniform(-3, -0.1, num_sampled),
        proximal_logprobs=rng.uniform(-3, -0.1, num_sampled),
        entropy=rng.uniform(0, 3, num_sampled),
    )
    lengths = [len(t.token_ids) for g in groups for t in g.trajectories]
    return objective, plan, columns, np.repeat(np.arange(len(lengths)), lengths)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), num_parts=st.integers(1, 8))
def test_micro_batches_add_up_to_the_batch(seed, num_parts):
    objective, plan, columns, sequence = chord_batch(seed)
    whole, whole_metrics = objective.loss(columns, step=30)
    whole.backward()
    gradient = columns["logprobs"].grad

    rng = np.random.default_rng(seed)
    part_of = rng.integers(0, num_parts, size=sequence.max() + 1)  # some parts may be empty
    total, joined_gradient, parts = 0.0, torch.zeros_like(gradient), []
    for part in range(num_parts):
        chosen = torch.from_numpy(rng.permutation(np.flatnonzero(part_of[sequence] == part)))
        micro_batch = {name: column.detach()[chosen] for name, column in columns.items()}
        micro_batch["logprobs"].requires_grad_()
        loss, metrics = objective.loss(micro_batch, step=30)
        loss.backward()
        joined_gradient[chosen] = micro_batch["logprobs"].grad
        total += loss.item()
        parts.append(metrics)
    assert total == pytest.approx(whole.item(), abs=1e-12)
    torch.testing.assert_close(joined_gradient, gradient, atol=1e-12, rtol=0)
    report, whole_report = (objective.report(plan, m, 30) for m in (join_metrics(parts), whole_metrics))
    for label, values in whole_report.items():
        assert report[label] == pytest.approx(values, abs=1e-9)


def test_an_empty_micro_batch_is_a_connected_zero_with_all_metrics():
    objective, _, columns, _ = chord_batch(0)
    _, metrics = objective.loss(columns, 0)
    nothing = {name: column.detach()[:0] for name, column in columns.items()}
    logprobs = nothing["logprobs"] = nothing["logprobs"].requires_grad_()
    loss, empty = objective.loss(nothing, 0)
    loss.backward()
    assert loss.item() == 0.0
    assert logprobs.grad is not None
    assert empty.keys() == metrics.keys()
    assert all(value.item() == 0.0 for value in empty.values())


def test_tokens_no_term_uses_may_hold_anything():
    objective, plan, columns, _ = chord_batch(1)
    trained = torch.from_numpy(np.concatenate(plan.trained))
    clean = objective.loss(columns, 0)[0].item()
    for junk in (math.nan, math.inf, -math.inf):
        spoiled = {
            name: column if "/" in name or name == "sequence_ids" else torch.where(trained, column.detach(), junk)
            for name, column in columns.items()
        }
        spoiled["logprobs"].requires_grad_()
        loss, metrics = objective.loss(spoiled, 0)
        loss.backward()
        assert loss.item() == clean
        assert torch.isfinite(spoiled["logprobs"].grad).all()
        assert all(math.isfinite(value.item()) for value in metrics.values())


def test_a_term_without_tokens_contributes_zero():
    groups = [make_group(scores=(1.0, 0.0))]
    objective = Objective([LIVE, EXPERT])
    plan = objective.plan(groups)
    loss, metrics = objective.loss(pack(plan, groups, logprobs=[-1.0] * 4, behavior_logprobs=[-1.0] * 4), 0)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    report = objective.report(plan, metrics, 0)["expert/negative_log_likelihood"]
    assert report == {
        "weight": 1.0,
        "num_tokens": 0.0,
        "num_sequences": 0.0,
        "loss": 0.0,
        "nll_mean": 0.0,
        "token_weight_mean": 0.0,
    }


def test_a_term_of_weight_zero_is_measured_but_cannot_spoil_the_step():
    groups = [make_group(scores=(1.0, 0.0))]
    objective = Objective([LIVE, Term(loss=NegativeLogLikelihood(), weight=CHORD_PHI)])  # weight 0 at step 0
    columns = pack(objective.plan(groups), groups, logprobs=[-math.inf, -1, -1, -1], behavior_logprobs=[-1.0] * 4)
    loss, metrics = objective.loss(columns, step=0)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(columns["logprobs"].grad).all()
    assert metrics["live/negative_log_likelihood/loss"].item() == math.inf
    assert objective.loss(columns, step=1)[0].item() == math.inf


def test_report_of_the_fixture():
    groups = [make_group(scores=(1.0, -1.0), answers=[(7, 8, 9), (7, 8)])]
    objective = Objective([Term(loss=ClippedSurrogate(), advantage="score")])
    plan = objective.plan(groups)
    _, metrics = objective.loss(pack(plan, groups, logprobs=F.PI, behavior_logprobs=F.PROX), 0)
    report = objective.report(plan, metrics, 0)["live/clipped_surrogate"]
    ratios = np.array([1.221403, 0.740818, 1.349859, 0.860708, 1.349859])
    expected = {
        "loss": -0.18605,
        "weight": 1.0,
        "num_tokens": 5,
        "num_sequences": 2,
        "clip_fraction": 2 / 5,
        "ratio_mean": ratios.mean(),
        "mismatch_mean": (0.2 + 0.3 + 0.3 + 0.15 + 0.3) / 5,
        "mismatch_max": 0.3,
        "chi2": (ratios**2).mean() - 1,
        "effective_sample_fraction": ratios.sum() ** 2 / (5 * (ratios**2).sum()),
    }
    assert report == pytest.approx(expected, abs=1e-6)


def test_a_missing_column_is_named():
    groups = [make_group(scores=(1.0, 0.0))]
    objective = Objective([LIVE])
    columns = pack(objective.plan(groups), groups, logprobs=[-1.0] * 4)
    with pytest.raises(ValueError, match=r"needs the columns \['behavior_logprobs'\]"):
        objective.loss(columns, 0)


# -------------------------------------------------------------------------------------------- pairs across sources


def test_an_expert_answer_is_preferred_to_own_ones():
    """DPO on the fixture, sequence 1 as the expert's, sequence 2 as an own answer that scored as well: .703197."""
    term = Term(
        loss=PairwisePreference(),
        source="expert",
        against="live",
        aggregation="sequence",
        advantage="source_over_other",
    )
    group = make_group(group_id="g", scores=(1.0, 1.0), answers=[(7, 8, 9), (7, 8)])
    expert, own = group.trajectories
    groups = [replace(group, trajectories=(replace(expert, source=Source.EXPERT, versions=None), own))]
    objective = Objective([term])
    columns = pack(objective.plan(groups), groups, logprobs=F.PI, reference_logprobs=F.REF)
    loss, _ = objective.loss(columns, 0)
    assert loss.item() == pytest.approx(0.703197, abs=6e-7)
    choosy = term.model_copy(update={"advantage_options": {"reject_below": 1.0}})
    plan = Objective([choosy]).plan(groups).terms[0]
    assert [bool(mask.any()) for mask in plan.mask] == [True, False]


def test_a_second_source_needs_a_loss_that_compares():
    with pytest.raises(ValueError, match="against='live' puts answers of two sources side by side"):
        Term(loss=PolicyGradient(), source="expert", against="live")
    with pytest.raises(ValueError, match="name another source"):
        Term(loss=PairwisePreference(), against="live")


def test_a_term_for_right_members_is_silent_on_a_group_without_any():
    """KEPO's gate: nothing to learn from a teacher where all are wrong, and later only on the one right answer."""
    objective = Objective([Term(loss=NegativeLogLikelihood(), members="right")])
    wrong, rescued = make_group(group_id="a", scores=[0.0, 0.0]), make_group(group_id="b", scores=[0.0, 1.0, 0.0])
    assert objective.plan([wrong]).num_trained_tokens == 0
    (term,) = objective.plan([wrong, rescued]).terms
    assert [bool(mask.any()) for mask in term.mask] == [False, False, False, True, False]
    assert (term.num_tokens, term.num_sequences) == (2, 1)
