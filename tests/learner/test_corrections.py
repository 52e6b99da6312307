from __future__ import annotations

import math
import random

import pytest
import torch
from pydantic import ValidationError

from learner.config import (
    ClippedSurrogate,
    Correction,
    GeometricMeanSurrogate,
    NegativeLogLikelihood,
    PolicyGradient,
    Rejection,
    SequenceSurrogate,
    Term,
)
from learner.corrections import correction_weights
from learner.objective import Objective
from rewards.trajectory import Group, Source
from tests.builders import make_trajectory
from tests.learner import fixture_f as F

IDS = F.flat(0, 0, 0, 1, 1)
RHO = [0.904837, 1.105171, 1.221403, 0.951229, 1.105171]


def weights(correction, **columns):
    values = {
        "logprobs": F.PI,
        "proximal_logprobs": F.PROX,
        "behavior_logprobs": F.MU,
        "sequence_ids": IDS,
        "mask": torch.ones(5, dtype=torch.bool),
        "advantages": F.ADVANTAGES,
    }
    return correction_weights(correction, **(values | columns))


# method: (correction, weights on the fixture)
WORKED = {
    "decoupled ppo": (Correction(transform="identity"), RHO),
    "tis, tokens": (Correction(high=1.1), [0.904837, 1.1, 1.1, 0.951229, 1.1]),
    "tis, sequences": (Correction(level="product", high=1.1), [1.1] * 3 + [1.051271] * 2),
    "geometric": (Correction(transform="identity", level="geometric"), [1.068939] * 3 + [1.025315] * 2),
    "icepop": (Correction(transform="band", low=0.92, high=1.15), [0, 1.105171, 0, 0.951229, 1.105171]),
    "clamp from below": (Correction(low=1.0, high=1.2), [1.0, 1.105171, 1.2, 1.0, 1.105171]),
    "mask alone": (
        Correction(transform="one", reject=(Rejection(statistic="ratio", low=0.92, high=1.15),)),
        [0, 1, 0, 1, 1],
    ),
    "mis, mean k3": (
        Correction(transform="one", reject=(Rejection(statistic="k3", over="mean", high=0.005),)),
        [0] * 3 + [1] * 2,
    ),
    "mis, all k3": (
        Correction(transform="one", reject=(Rejection(statistic="k3", over="all", high=0.006),)),
        [0] * 3 + [1] * 2,
    ),
    "mis, no k3 too large": (
        Correction(transform="one", reject=(Rejection(statistic="k3", over="all", high=0.03),)),
        [1] * 5,
    ),
    "mis, sum of k2": (
        Correction(transform="one", reject=(Rejection(statistic="k2", over="sum", high=0.01),)),
        [0] * 3 + [1] * 2,
    ),
    "geometric filter, token weights": (
        Correction(transform="identity", reject=(Rejection(statistic="ratio", over="mean", low=0.95, high=1.05),)),
        [0, 0, 0, 0.951229, 1.105171],
    ),
    "both must hold": (
        Correction(
            transform="one",
            reject=(
                Rejection(statistic="ratio", low=1.0, high=9.0),
                Rejection(statistic="k3", over="mean", high=0.005),
            ),
        ),
        [0, 0, 0, 0, 1],
    ),
    "opsm keeps all": (Correction(transform="one", max_negative_drift=0.1), [1] * 5),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name):
    correction, expected = WORKED[name]
    torch.testing.assert_close(weights(correction), F.flat(*expected), atol=6e-7, rtol=0)


def test_the_statistics_of_the_fixture_are_where_the_bounds_say():
    """Mean k3 0.01047 and 0.0032, largest 0.021403 and 0.005171."""
    for over, values in (("mean", (0.01047, 0.0032)), ("all", (0.021403, 0.005171))):
        for high, kept in ((values[0] * 1.001, 5), (values[0] * 0.999, 2), (values[1] * 0.999, 0)):
            rejection = Rejection(statistic="k3", over=over, high=high)
            assert weights(Correction(transform="one", reject=(rejection,))).sum().item() == kept


def test_drift_drops_negative_sequences_only():
    """Mean of behaviour minus current log-prob: -0.133333 and -0.1; turned around, both are beyond 0.05."""
    correction = Correction(transform="one", max_negative_drift=0.05)
    turned = weights(correction, logprobs=F.MU, behavior_logprobs=F.PI)
    assert turned.tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="looks at the sign of advantages"):
        weights(correction, advantages=None)


def test_a_ratio_bound_is_on_proximal_over_behaviour():
    """The direction matters: on its inverse 0.9 would keep other tokens."""
    kept = weights(Correction(transform="one", reject=(Rejection(statistic="ratio", low=0.0, high=1.0),)))
    assert kept.tolist() == [1, 0, 0, 1, 0]


def test_nothing_outside_the_mask_is_read():
    mask = torch.tensor([True, True, False, True, True])
    spoiled = {
        name: torch.where(mask, column, math.nan)
        for name, column in {"proximal_logprobs": F.PROX, "behavior_logprobs": F.MU, "sequence_ids": IDS}.items()
    }
    result = weights(Correction(transform="identity", level="product"), mask=mask, **spoiled)
    torch.testing.assert_close(result, F.flat(1.0, 1.0, 0.0, 1.051271, 1.051271), atol=6e-7, rtol=0)
    with pytest.raises(ValueError, match="behavior_logprobs are unknown"):
        weights(Correction(), behavior_logprobs=torch.full((5,), math.nan, dtype=torch.float64))


# ------------------------------------------------------------------------------------------------- inside a term


def fixture_groups():
    """The fixture as records, with its behaviour log-probs and scores 1 and -1 that `score` takes as advantages."""
    members = tuple(
        make_trajectory(index=i, answer=answer, score=score, logprobs=logprobs)
        for i, (answer, score, logprobs) in enumerate(
            [((7, 8, 9), 1.0, F.MU[:3].tolist()), ((7, 8), -1.0, F.MU[3:].tolist())]
        )
    )
    return [Group(group_id="g0", prompt_id="p", source=Source.LIVE, trajectories=members)]


def evaluate(term, *, proximal=F.PROX):
    groups = fixture_groups()
    objective = Objective([term])
    plan = objective.plan(groups)
    trained = torch.cat([torch.from_numpy(mask) for mask in plan.trained])
    columns = {
        name: torch.cat([torch.from_numpy(a) for a in arrays])[trained].double()
        for name, arrays in plan.columns.items()
    }
    pi = F.policy()
    columns |= {"logprobs": pi, "behavior_logprobs": F.MU}
    if proximal is not None:
        columns["proximal_logprobs"] = proximal
    loss, metrics = objective.loss(columns, 0)
    loss.backward()
    return loss.item(), pi.grad, objective.report(plan, metrics, 0)[objective.labels[0]]


def decoupled(correction):
    return Term(loss=ClippedSurrogate(), advantage="score", ratio_to="proximal", correction=correction)


def test_decoupled_ppo():
    loss, gradient, report = evaluate(decoupled(Correction(transform="identity")))
    assert loss == pytest.approx(-0.211933, abs=6e-7)
    torch.testing.assert_close(gradient, F.flat(0, -0.163746, 0, 0.163746, 0.298365), atol=8e-7, rtol=0)
    distances = {name.removeprefix("correction/"): v for name, v in report.items() if name.startswith("correction/")}
    assert distances == pytest.approx(
        {
            "token_weight_mean": sum(RHO) / 5,
            "clip_fraction": 0.0,
            "ratio_mean": sum(RHO) / 5,
            "mismatch_mean": 0.11,
            "mismatch_max": 0.2,
            "chi2": 0.13164,
            "effective_sample_fraction": 0.988334,
        },
        abs=1e-6,
    )


def test_dropped_tokens_stay_in_the_denominator():
    loss, _, report = evaluate(decoupled(Correction(transform="band", low=0.9, high=1.15)))
    assert loss == pytest.approx(0.081204, abs=6e-7)
    assert report["num_tokens"] == 5
    assert report["correction/clip_fraction"] == pytest.approx(0.2)


def test_truncated_importance_sampling():
    assert evaluate(decoupled(Correction(high=1.1)))[0] == pytest.approx(-0.183426, abs=6e-7)


def test_without_proximal_log_probs_the_update_starts_at_the_policy_itself():
    """r = 1 in value, and the gradient is that of the weighted score function."""
    correction = Correction(high=1.1)
    loss, gradient, _ = evaluate(decoupled(correction), proximal=None)
    w = (F.PI - F.MU).exp().clamp(max=1.1)
    assert loss == pytest.approx(-(w * F.ADVANTAGES).mean().item(), abs=1e-6)
    torch.testing.assert_close(gradient, -w * F.ADVANTAGES / 5, atol=1e-7, rtol=0)
    score = Term(loss=PolicyGradient(), advantage="score", correction=correction)
    torch.testing.assert_close(evaluate(score, proximal=None)[1], gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_formula_on_random_sequences(seed):
    rng = random.Random(seed)
    lengths = [rng.randint(1, 6) for _ in range(10)]
    prox = [[rng.uniform(-2, 0) for _ in range(n)] for n in lengths]
    mu = [[rng.uniform(-2, 0) for _ in range(n)] for n in lengths]
    expected = []
    for p, m in zip(prox, mu, strict=True):
        d = [x - y for x, y in zip(p, m, strict=True)]
        k3 = [math.exp(x) - 1 - x for x in d]
        stays = sum(k3) / len(k3) <= 0.4 and max(k3) <= 2.0
        weight = max(0.3, min(1.7, math.exp(sum(d))))
        expected += [weight if stays else 0.0] * len(d)
    correction = Correction(
        level="product",
        low=0.3,
        high=1.7,
        reject=(Rejection(statistic="k3", over="mean", high=0.4), Rejection(statistic="k3", over="all", high=2.0)),
    )
    n = sum(lengths)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))  # packing order does not matter
    columns = {
        "proximal_logprobs": F.flat(*(x for row in prox for x in row)),
        "behavior_logprobs": F.flat(*(x for row in mu for x in row)),
        "sequence_ids": F.flat(*(float(i) for i, k in enumerate(lengths) for _ in range(k))),
        "mask": torch.ones(n, dtype=torch.bool),
    }
    shuffled = {name: column[order] for name, column in columns.items()}
    result = weights(correction, logprobs=shuffled["proximal_logprobs"], advantages=None, **shuffled)
    torch.testing.assert_close(result, F.flat(*expected)[order], atol=1e-10, rtol=0)


# -------------------------------------------------------------------------------------------------- what is refused

MASK = Correction(transform="band", low=0.5, high=2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": ClippedSurrogate(), "correction": MASK}, "twice: set ratio_to='proximal'"),
        ({"loss": SequenceSurrogate(), "ratio_to": "proximal", "correction": MASK}, "drops single tokens"),
        ({"loss": GeometricMeanSurrogate(), "ratio_to": "proximal", "correction": MASK}, "drops single tokens"),
        ({"loss": NegativeLogLikelihood(), "ratio_to": "proximal"}, "forms no ratio"),
        ({"loss": NegativeLogLikelihood(), "correction": Correction(max_negative_drift=0.1)}, "reads none: drop it"),
    ],
)
def test_parts_that_do_not_fit(fields, message):
    with pytest.raises(ValidationError, match=message):
        Term(**fields)


def test_bounds_in_the_wrong_order():
    with pytest.raises(ValidationError, match=r"low=3\.0 lies above high=2\.0"):
        Correction(low=3.0)


def test_needs_of_a_term():
    proximal = Term(loss=ClippedSurrogate(), ratio_to="proximal")
    assert proximal.needs == {"scores"}
    assert proximal.model_copy(update={"correction": Correction()}).needs == {"scores", "behavior_logprobs"}
