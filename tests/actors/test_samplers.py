"""Samplers: what a round is made of, on literal ledgers."""

from collections import Counter

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from actors.ledger import LedgerRow, PromptLedger
from actors.ports import Outcome
from actors.samplers.config import AnySampler, CurriculumConfig, StageRule
from actors.samplers.models import best_mixture, next_source, predicted_rates
from actors.samplers.order import bucket_weights, current_stage, make_order
from actors.task_feed import TaskFeed
from rewards.task import Task
from rewards.trajectory import PolicyVersion

HERE = "tests.actors.test_samplers"


def tasks_of(*tags):
    return [Task(task_id=f"t{i}", prompt=f"problem {i}", tags={"domain": tag}) for i, tag in enumerate(tags)]


def ledger_of(rates, *, retired=(), scored=8):
    """One group per rate; None leaves the prompt untried."""
    ledger = PromptLedger()
    for i, rate in enumerate(rates):
        if rate is not None:
            ledger.count(
                Outcome(
                    lease_id="0.0", group_id="g", prompt_id=f"t{i}", num_scored=scored,
                    num_correct=round(rate * scored), mean_score=rate, version=PolicyVersion(0), fate="stored",
                    is_retired=i in retired,
                )
            )  # fmt: skip
    return ledger


def sampler(**fields):
    return TypeAdapter(AnySampler).validate_python(fields)


def drawn(config, rates, num_rounds=200, tasks=None, **ledger):
    tasks = tasks or tasks_of(*[""] * len(rates))
    order, rows = make_order(sampler(**config), tasks, seed=0), ledger_of(rates, **ledger)
    return Counter(position for epoch in range(num_rounds) for position in order(rows, epoch))


def test_a_band_draws_what_is_neither_solved_nor_hopeless():
    counts = drawn({"name": "band", "round_size": 1, "outside": 0.0, "unseen": 0.0}, [0.0, 0.5, 0.75, 1.0, None])
    assert set(counts) == {1, 2}


def test_frequencies_follow_the_weights_of_the_pools():
    counts = drawn({"name": "pools", "round_size": 1, "thresholds": [0.5], "weights": [3, 1]}, [0.0, 1.0], 2000)
    assert 0.70 < counts[0] / 2000 < 0.80


def test_failures_are_drawn_in_proportion_and_solved_prompts_hardly():
    counts = drawn({"name": "priority", "round_size": 1}, [0.0, 0.5, 1.0], 3000)
    assert 0.60 < counts[0] / 3000 < 0.73
    assert counts[2] < 60


def test_bucket_marginals_are_the_density_whatever_the_sizes():
    config = sampler(name="buckets", group_size=8, unseen=0.0)
    rows = ledger_of([0.5] * 6 + [0.25] * 2 + [0.125])
    weights = bucket_weights(config, rows.rows())
    density = np.exp(-0.5 * (np.array([4, 2, 1]) - 4.0) ** 2)
    assert np.allclose([weights[:6].sum(), weights[6:8].sum(), weights[8]], density / density.sum())


def test_retired_prompts_are_probes_only_and_return_when_forgotten():
    counts = drawn({"name": "uniform", "round_size": 10, "reentry": 0.1}, [1.0] + [0.5] * 19, retired=(0,))
    assert 150 < counts[0] <= 200  # one of ten in every round of 200, which is all there is
    assert 0 not in drawn({"name": "uniform", "reentry": 0.0}, [1.0, 0.5], retired=(0,))
    row = LedgerRow(prompt_id="t0", retired=True, last_version=PolicyVersion(3))
    forgotten = Outcome(
        lease_id="0.0", group_id="g", prompt_id="t0", num_scored=4, num_correct=1, mean_score=0.25,
        version=PolicyVersion(4), fate="stored",
    )  # fmt: skip
    assert not row.after(forgotten).retired


def test_a_value_model_finds_mid_difficulty_prompts_it_never_sampled():
    """PCL's claim: words tell the rate, so untried prompts near the target are drawn before the others."""
    words = ["easy", "middling", "hopeless"]
    tasks = [Task(task_id=f"t{i}", prompt=f"a {words[i % 3]} sum") for i in range(60)]
    rates = [[1.0, 0.5, 0.0][i % 3] if i < 30 else None for i in range(60)]
    rows = [ledger_of(rates).row(task.task_id) for task in tasks]
    predicted = predicted_rates(tasks, rows, 256, 1.0)
    assert [float(round(predicted[30 + i], 1)) for i in range(3)] == [1.0, 0.5, 0.0]
    counts = drawn({"name": "nearest", "round_size": 8, "random": 0.0}, rates, 20, tasks=tasks)
    assert {i % 3 for i in counts} == {1}
    assert any(i >= 30 for i in counts)


def test_a_domain_by_its_weight_whatever_its_size():
    tasks = tasks_of(*["a"] * 8, "b", "b")
    counts = drawn({"name": "mixture", "tag": "domain", "weights": {"a": 1, "b": 3}, "round_size": 1}, [None] * 10,
                   2000, tasks=tasks)  # fmt: skip
    assert 0.70 < (counts[8] + counts[9]) / 2000 < 0.80


def test_weak_domains_get_their_share_of_failures():
    tasks = tasks_of("a", "b")
    config = {"name": "mixture", "tag": "domain", "by_failure": True, "round_size": 1}
    counts = drawn(config, [0.75, 0.25], 2000, tasks=tasks)
    assert 0.70 < counts[1] / 2000 < 0.80


def test_the_next_stage_waits_for_rate_and_groups():
    config = sampler(name="stages", tag="domain", order=["easy", "hard"], gate_rate=0.7, gate_groups=2)
    tasks = tasks_of("easy", "easy", "hard")
    assert current_stage(config, tasks, [ledger_of([0.9, None]).row(t.task_id) for t in tasks]) == 0
    assert current_stage(config, tasks, [ledger_of([0.9, 0.2]).row(t.task_id) for t in tasks]) == 0
    assert current_stage(config, tasks, [ledger_of([0.9, 0.8]).row(t.task_id) for t in tasks]) == 1
    assert set(drawn(config.model_dump(), [0.9, 0.8, None], tasks=tasks)) == {2}


def test_mbtl_starts_in_the_middle_and_stops_when_nothing_promises_more():
    points = np.arange(9.0)
    settings = {"slope": 0.05, "exploration": 1.0, "noise": 0.1, "length_scale": 1.0}
    assert next_source(points, [], [], **settings) == 4
    second = next_source(points, [4], [0.9], **settings)
    assert second is not None
    assert second != 4
    assert next_source(points, [4], [0.9], **{**settings, "exploration": 0.0, "slope": 0.0}) is None


def test_the_best_mixture_of_a_known_quadratic_is_recovered():
    """s(w) = 1 - |w - w0|^2 folds into w'Cw on the simplex; six noise-free pilots are enough for three domains."""
    wanted = np.array([0.5, 0.3, 0.2])
    pilots = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.5, 0, 0.5], [0.2, 0.4, 0.4]])
    scores = 1.0 - ((pilots - wanted) ** 2).sum(axis=1)
    assert np.allclose(best_mixture(pilots, scores), wanted, atol=0.05)
    with pytest.raises(ValueError, match="cannot tell 6 coefficients"):
        best_mixture(pilots[:4], scores[:4])


def test_one_prompt_whose_rate_moved_is_chosen_over_constant_ones():
    order = make_order(sampler(name="fixed", explore_rounds=1), tasks_of("", "", ""), seed=0)
    ledger = ledger_of([0.0, 0.0, 1.0])
    assert sorted(order(ledger, 0)) == [0, 1, 2]
    ledger.count(
        Outcome(
            lease_id="0.1", group_id="g", prompt_id="t1", num_scored=8, num_correct=8, mean_score=1.0,
            version=PolicyVersion(1), fate="stored",
        )
    )  # fmt: skip
    assert order(ledger, 1) == [1]


def weights(tasks, rows, epoch, *, only):
    return [float(task.task_id == only) for task in tasks]


def test_a_sampler_of_ones_own():
    config = {"name": "custom", "function": f"{HERE}:weights", "options": {"only": "t2"}}
    assert set(drawn(config, [None] * 4)) == {2}


def test_names_and_bad_parameters():
    assert CurriculumConfig.model_validate({"sampler": "band"}).sampler.name == "band"
    with pytest.raises(ValidationError, match="make 2 pools"):
        sampler(name="pools", thresholds=[0.5], weights=[1])


async def test_a_prompt_climbs_and_falls_with_its_rate(tmp_path):
    feed = TaskFeed(tasks_of(""), seed=0, log_dir=tmp_path, stages=StageRule(highest=2))
    seen = []
    for correct in (8, 8, 8, 4, 0):
        leased = await feed.lease_task("w")
        await feed.finish_task(
            Outcome(
                lease_id=leased.lease_id, group_id="g", prompt_id="t0", num_scored=8, num_correct=correct,
                mean_score=None, version=PolicyVersion(0), fate="stored",
            )
        )  # fmt: skip
        seen.append((await feed.ledger())[0].stage)
    assert seen == [1, 2, 2, 2, 1]
