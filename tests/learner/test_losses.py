from __future__ import annotations

import inspect
import math
import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import Loss, LossParams
from learner.losses.imitation import negative_log_likelihood
from learner.losses.regularizers import entropy_bonus, importance_weighted_kl, kl_to_reference
from learner.losses.surrogate import clipped_surrogate
from learner.losses.table import LOSSES
from learner.ratios import MAX_LOG_RATIO
from tests.learner import fixture_f as F

ppo = clipped_surrogate

# name: (loss of the policy's log-probs, value, gradient or None); printed to six decimals
WORKED = {
    "ppo": (
        lambda pi: ppo(pi, F.PROX, F.ADVANTAGES, F.TOKEN),
        -0.18605,
        [0, -0.148164, 0, 0.172142, 0.269972],
    ),
    "ppo, clip-higher": (lambda pi: ppo(pi, F.PROX, F.ADVANTAGES, F.TOKEN, clip_high=0.28), -0.206331, None),
    "ppo on recorded log-probs": (lambda pi: ppo(pi, F.MU, F.ADVANTAGES, F.TOKEN), -0.162669, None),
    "ppo, sequence mean": (
        lambda pi: ppo(pi, F.PROX, F.ADVANTAGES, F.SEQUENCE),
        0.029172,
        [0, -0.12347, 0, 0.215177, 0.337465],
    ),
    "ppo, sign-scaled advantages": (
        lambda pi: ppo(pi, F.PROX, F.flat(0.1, 0.1, 0.1, -1, -1), F.TOKEN),
        0.379297,
        [0, -0.014816, 0, 0.172142, 0.269972],
    ),
    "ppo, dual clip out of reach": (
        lambda pi: ppo(pi, F.PROX, F.ADVANTAGES, F.TOKEN, dual_clip=3.0),
        -0.18605,
        [0, -0.148164, 0, 0.172142, 0.269972],
    ),
    "sft": (lambda pi: negative_log_likelihood(pi, F.TOKEN), 0.94, [-0.2] * 5),
    "chord, expert part": (
        lambda pi: negative_log_likelihood(pi, F.FIRST, token_weight="phi"),
        0.200328,
        [-0.220991 / 3, -0.210476 / 3, -0.173343 / 3, 0, 0],
    ),
    "chord, own part": (
        lambda pi: ppo(pi, F.PROX, F.ADVANTAGES, F.SECOND),
        1.105283,
        [0, 0, 0, 0.301248 / 0.7, 0.472451 / 0.7],
    ),
    "k1": (lambda pi: kl_to_reference(pi, F.REF, F.TOKEN, estimator="k1"), 0.12, [0.2] * 5),
    "k2": (
        lambda pi: kl_to_reference(pi, F.REF, F.TOKEN, estimator="k2"),
        0.04,
        [0.06, -0.04, 0.02, -0.02, 0.1],
    ),
    "k3": (
        lambda pi: kl_to_reference(pi, F.REF, F.TOKEN),
        0.035752,
        [0.051836, -0.044281, 0.019033, -0.021034, 0.078694],
    ),
    "k3+": (
        lambda pi: kl_to_reference(pi, F.REF, F.TOKEN, estimator="k3+"),
        0.035752,
        [0.06, -0.04, 0.02, -0.02, 0.1],
    ),
    "ratio times k3": (
        lambda pi: importance_weighted_kl(pi, F.MU, F.REF, F.TOKEN),
        0.046754,
        [0.06631, -0.032749, 0.032974, -0.016375, 0.149182],
    ),
}


@pytest.mark.parametrize("name", WORKED)
def test_worked_numbers(name):
    function, value, gradient = WORKED[name]
    pi = F.policy()
    loss = function(pi).loss
    assert loss.item() == pytest.approx(value, abs=6e-7)
    if gradient is not None:
        loss.backward()
        torch.testing.assert_close(pi.grad, F.flat(*gradient), atol=8e-7, rtol=0)


def test_entropy_of_worked_logits():
    logits = F.flat(2, 1, 0, -1)
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum()[None].requires_grad_()
    loss = entropy_bonus(entropy, F.flat(1.0)).loss
    assert loss.item() == pytest.approx(-0.947537, abs=5e-7)
    (gradient,) = torch.autograd.grad(loss, entropy)
    assert gradient.tolist() == [-1.0]


def test_dual_clip_bounds_value_and_gradient():
    pi = F.flat(0.0, -1.0).requires_grad_()
    output = ppo(pi, F.flat(-2.0, -1.5), F.flat(-0.5, -0.5), F.flat(0.5, 0.5), dual_clip=3.0)
    assert output.loss.item() == pytest.approx(0.5 * (0.5 * 3.0) + 0.5 * (0.5 * math.exp(0.5)), abs=1e-12)
    (gradient,) = torch.autograd.grad(output.loss, pi)
    torch.testing.assert_close(gradient, F.flat(0.0, 0.25 * math.exp(0.5)))
    assert output.metrics["clip_count"].item() == 1


def test_clip_count_is_of_tokens_without_gradient():
    pi = F.policy()
    output = ppo(pi, F.PROX, F.ADVANTAGES, F.TOKEN)
    output.loss.backward()
    assert output.metrics["clip_count"].item() == (pi.grad == 0).sum().item() == 2


# ----------------------------------------------------------------------- independent formulas, one token at a time


def _ppo_token(pi, mu, a, low, high, dual):
    difference = pi - mu
    r = math.exp(max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, difference)))
    bounded = max(1 - low, min(1 + high, r))
    gain = min(r * a, bounded * a)
    gradient = r * a if gain == r * a and abs(difference) <= MAX_LOG_RATIO else 0.0
    if dual is not None and a < 0 and gain < dual * a:
        gain, gradient = dual * a, 0.0
    return -gain, -gradient


def _nll_token(pi, kind):
    p = math.exp(pi)
    w = {"none": 1.0, "probability": p, "phi": p * (1 - p)}[kind]
    return -w * pi, -w


def _kl_token(pi, ref, estimator):
    d = pi - ref
    return {
        "k1": (d, 1.0),
        "k2": (d * d / 2, d),
        "k3": (math.exp(-d) - 1 + d, 1 - math.exp(-d)),
        "k3+": (math.exp(-d) - 1 + d, d),
    }[estimator]


def _weighted_kl_token(pi, mu, ref):
    q, d = math.exp(pi - mu), pi - ref
    value = q * (math.exp(-d) - 1 + d)
    return value, value + q * (1 - math.exp(-d))


def _random_columns(seed, n=64):
    rng = random.Random(seed)
    draw = lambda low, high: [rng.uniform(low, high) for _ in range(n)]  # noqa: E731
    columns = {"pi": draw(-4, -0.01), "mu": draw(-4, -0.01), "ref": draw(-4, -0.01), "a": draw(-2, 2)}
    columns["scale"] = [0.0 if rng.random() < 0.3 else rng.uniform(0.1, 1.0) / n for _ in range(n)]
    return columns


FORMULAS = {
    "ppo": (
        lambda t: ppo(t["pi"], t["mu"], t["a"], t["scale"], clip_low=0.2, clip_high=0.28),
        lambda c: _ppo_token(c["pi"], c["mu"], c["a"], 0.2, 0.28, None),
    ),
    "ppo dual": (
        lambda t: ppo(t["pi"], t["mu"], t["a"], t["scale"], clip_low=0.3, clip_high=0.2, dual_clip=2.5),
        lambda c: _ppo_token(c["pi"], c["mu"], c["a"], 0.3, 0.2, 2.5),
    ),
    **{
        f"nll {kind}": (
            lambda t, kind=kind: negative_log_likelihood(t["pi"], t["scale"], token_weight=kind),
            lambda c, kind=kind: _nll_token(c["pi"], kind),
        )
        for kind in ("none", "probability", "phi")
    },
    **{
        f"kl {name}": (
            lambda t, name=name: kl_to_reference(t["pi"], t["ref"], t["scale"], estimator=name),
            lambda c, name=name: _kl_token(c["pi"], c["ref"], name),
        )
        for name in ("k1", "k2", "k3", "k3+")
    },
    "weighted kl": (
        lambda t: importance_weighted_kl(t["pi"], t["mu"], t["ref"], t["scale"]),
        lambda c: _weighted_kl_token(c["pi"], c["mu"], c["ref"]),
    ),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", FORMULAS)
def test_agrees_with_the_formula_token_by_token(name, seed):
    function, formula = FORMULAS[name]
    columns = _random_columns(seed)
    tensors = {key: F.flat(*values) for key, values in columns.items()}
    tensors["pi"].requires_grad_()
    loss = function(tensors).loss
    loss.backward()
    tokens = [formula({key: columns[key][i] for key in columns}) for i in range(len(columns["pi"]))]
    value = math.fsum(s * v for s, (v, _) in zip(columns["scale"], tokens, strict=True))
    gradient = F.flat(*(s * g for s, (_, g) in zip(columns["scale"], tokens, strict=True)))
    assert loss.item() == pytest.approx(value, abs=1e-10)
    torch.testing.assert_close(tensors["pi"].grad, gradient, atol=1e-10, rtol=0)


# --------------------------------------------------------------------------------------- properties all losses share


def columns_read(name):
    return set(LOSSES[name].columns)


def trained_column(name):
    return {"entropy_bonus": "entropy", "teacher_divergence": "divergence"}.get(name, "logprobs")


def _evaluate(name, columns):
    """Loss, gradient of every input, metrics; every column asks for a gradient, to see who passes one on."""
    entry = LOSSES[name]
    leaves = {key: columns[key].clone().requires_grad_() for key in entry.columns}
    output = entry.function(**leaves, **_loss_options(name))
    output.loss.backward()
    return output, leaves


REQUIRED: dict[str, dict[str, float]] = {"one_token_rollout": {"draws": 2, "miss_reward": -0.1}}
"""Settings without default."""


def _loss_options(name):
    """Those of REQUIRED that are the function's own and not its statistic's."""
    return {key: value for key, value in REQUIRED.get(name, {}).items() if key not in MODELS[name].statistic_fields}


def _columns_of(seed, n=24):
    c = _random_columns(seed, n)
    names = {"pi": "logprobs", "mu": "behavior_logprobs", "ref": "reference_logprobs", "a": "advantages"}
    columns = {names.get(key, "token_scale"): F.flat(*values) for key, values in c.items()}
    columns["entropy"] = -columns["logprobs"]
    columns["divergence"] = columns["reference_logprobs"].square()
    columns["teacher_logprobs"] = columns["reference_logprobs"].roll(3)
    columns["proximal_logprobs"] = columns["behavior_logprobs"].roll(1)
    columns["sequence_ids"] = torch.arange(n, dtype=torch.float64).div(4, rounding_mode="floor")
    columns["group_ids"] = torch.arange(n, dtype=torch.float64).div(8, rounding_mode="floor")
    columns["picked"] = (torch.arange(n) % 3 == 0).double()
    columns["bound_low"], columns["bound_high"] = torch.full((n,), 0.7).double(), torch.full((n,), 1.3).double()
    columns["baseline"] = columns["advantages"].roll(2)
    columns["mean_entropy"], columns["hits"] = torch.full((n,), 1.2).double(), columns["picked"] / 2
    columns["point"] = torch.full((n,), 0.2).double()
    columns["proxy_logprobs"] = torch.where(torch.arange(n) % 5 == 0, columns["reference_logprobs"], math.nan)
    # an objective scales all tokens of a sequence alike, and their advantage has one sign
    columns["advantages"] = columns["advantages"].abs() * torch.where(columns["sequence_ids"] % 2 == 0, 1.0, -1.0)
    return columns


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_trained_column_carries_gradient(name):
    _, leaves = _evaluate(name, _columns_of(0))
    trained = trained_column(name)
    for key, leaf in leaves.items():
        if key == trained:
            assert leaf.grad is not None
            assert leaf.grad.abs().sum() > 0
        elif key != "token_scale":
            assert leaf.grad is None or not leaf.grad.any(), key


@pytest.mark.parametrize(("kind", "weight"), [("phi", lambda p: p * (1 - p)), ("probability", lambda p: p)])
def test_token_weights_pass_no_gradient(kind, weight):
    """d loss / d pi is -w, not -(w + pi dw/dpi), though w moves with the policy."""
    pi = F.policy()
    (gradient,) = torch.autograd.grad(negative_log_likelihood(pi, F.TOKEN, token_weight=kind).loss, pi)
    torch.testing.assert_close(gradient, -F.TOKEN * weight(F.PI.exp()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 24), padding=st.integers(0, 5))
def test_parts_add_up_whatever_the_order_split_and_padding(name, seed, cut, padding):
    columns = _columns_of(seed)
    whole, leaves = _evaluate(name, columns)
    generator = torch.Generator().manual_seed(seed)
    # tokens of one group or sequence stay together
    unit = 8 if "group_ids" in columns_read(name) else 4 if "sequence_ids" in columns_read(name) else 1
    order = (torch.randperm(24 // unit, generator=generator)[:, None] * unit + torch.arange(unit)).flatten()
    cut -= cut % unit
    junk = torch.full((padding,), math.nan, dtype=torch.float64)
    unselected = torch.zeros(padding, dtype=torch.float64)
    parts = []
    for chosen in (order[:cut], order[cut:]):
        part = {
            key: torch.cat([column[chosen], unselected if key == "token_scale" else junk])
            for key, column in columns.items()
        }
        parts.append((chosen, *_evaluate(name, part)))
    assert sum(output.loss.item() for _, output, _ in parts) == pytest.approx(whole.loss.item(), abs=1e-12)
    for key, leaf in leaves.items():
        if leaf.grad is None or key == "token_scale":
            continue
        joined = torch.empty(24, dtype=torch.float64)
        for chosen, _, part_leaves in parts:
            joined[chosen] = part_leaves[key].grad[: len(chosen)]
            assert not part_leaves[key].grad[len(chosen) :].any()
        torch.testing.assert_close(joined, leaf.grad, atol=1e-12, rtol=0)
    for metric, value in whole.metrics.items():
        values = [output.metrics[metric].item() for _, output, _ in parts]
        joined = max(values) if metric.endswith("_max") else sum(values)
        assert joined == pytest.approx(value.item(), abs=1e-10), metric


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [0, 3])
def test_nothing_selected_is_a_connected_zero(name, n):
    columns = {key: torch.full((n,), math.nan, dtype=torch.float64) for key in _columns_of(0)}
    columns["token_scale"] = torch.zeros(n, dtype=torch.float64)
    output, leaves = _evaluate(name, columns)
    assert output.loss.item() == 0.0
    assert all(value.item() == 0.0 for value in output.metrics.values())
    trained = leaves[trained_column(name)]
    assert trained.grad is not None
    assert trained.grad.tolist() == [0.0] * n


@pytest.mark.parametrize("name", LOSSES)
def test_metrics_are_detached_and_named_by_rule(name):
    output, _ = _evaluate(name, _columns_of(1))
    for metric, value in output.metrics.items():
        assert not value.requires_grad
        assert metric.endswith(("_sum", "_count", "_max"))


def test_nan_in_a_selected_token_is_not_hidden():
    pi = F.PI.clone()
    pi[1] = math.nan
    assert math.isnan(ppo(pi, F.MU, F.ADVANTAGES, F.TOKEN).loss.item())
    assert math.isnan(negative_log_likelihood(pi, F.TOKEN).loss.item())


@pytest.mark.parametrize("name", [n for n, entry in LOSSES.items() if "behavior_logprobs" in entry.columns])
def test_unknown_behavior_is_refused_where_selected(name):
    columns = _columns_of(2)
    columns["behavior_logprobs"][columns["token_scale"].argmax()] = math.nan
    with pytest.raises(ValueError, match=r"behavior_logprobs are unknown .* for 1 of"):
        _evaluate(name, columns)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="token_weight='psi'"):
        negative_log_likelihood(F.PI, F.TOKEN, token_weight="psi")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimator='k4'"):
        kl_to_reference(F.PI, F.REF, F.TOKEN, estimator="k4")


# ------------------------------------------------------------------------- the table and the config models agree

MODELS: dict[str, type[LossParams]] = {
    model.model_fields["name"].default: model for model in get_args(get_args(Loss)[0])
}
COLUMN_OF_NEED = {"scores": "advantages"}
ALWAYS_THERE = {"logprobs", "token_scale", "proximal_logprobs", "sequence_ids", "group_ids"} | {
    "picked",  # those of statistics
    "bound_low",
    "bound_high",
    "baseline",
    "proxy_logprobs",
    "mean_entropy",
    "hits",
    "point",
}
"""Columns nobody declares: every objective has them."""


def test_every_model_has_its_function_and_back():
    assert set(MODELS) == set(LOSSES)
    assert all(entry.function.__name__ == name for name, entry in LOSSES.items())


@pytest.mark.parametrize("name", LOSSES)
def test_settings_have_the_same_names_and_defaults(name):
    signature = inspect.signature(LOSSES[name].function)
    keyword_only = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    required = REQUIRED.get(name, {})
    assert {p for p, default in keyword_only.items() if default is inspect.Parameter.empty} <= set(required)
    assert {**keyword_only, **_loss_options(name)} == MODELS[name](**required).parameters()


@pytest.mark.parametrize("name", LOSSES)
def test_needs_are_the_columns_the_function_takes(name):
    needed = {COLUMN_OF_NEED.get(need, need) for need in MODELS[name].needs}
    assert needed == columns_read(name) - ALWAYS_THERE
