"""The specification's numbers, from the rules themselves: what is kept, what it costs, what a donor is worth."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import pytest

from actors.finisher import Finisher
from actors.ports import LeasedTask
from actors.rules.actions import Drop, Grow, Redo
from learner.config import PolicyGradient, Term
from learner.objective import Objective
from orchestrator.load_config import load_run_config
from rewards.task import Task
from rewards.trajectory import Source
from tests.builders import make_group, make_trajectory

LEASED = LeasedTask(lease_id="0.0", task=Task(task_id="t", prompt="p"))


def chances(n, u):
    """Probability of each number of right answers among n."""
    return [comb(n, k) * u**k * (1 - u) ** (n - k) for k in range(n + 1)]


def scored(n, k):
    return make_group(scores=[1.0] * k + [0.0] * (n - k))


@pytest.mark.parametrize(("n", "expected"), [(8, 0.077), (64, 0.474), (512, 0.994)])
def test_more_answers_make_a_group_informative(n, expected):
    """BroRL at u = 0.01: the share of groups that dynamic sampling keeps is 1 - u^n - (1 - u)^n."""
    finisher = Finisher(["drop_constant"])
    kept = [k for k in {0, 1, n - 1, n} if not isinstance(finisher.decide(scored(n, k), LEASED).action, Drop)]
    assert sorted(kept) == [1, n - 1]
    p = chances(n, 0.01)
    assert sum(p[1:n]) == pytest.approx(1 - 0.01**n - 0.99**n)
    assert sum(p[1:n]) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("recipe", "expected"), [("brorl", 0.149), ("dars_et", 0.476), ("dars_hw", 0.726)])
def test_dars_makes_hard_prompts_informative(recipe, expected):
    """At u = 0.02 and 8 answers: a group is informative once it has a right and a wrong answer, grown or not."""
    finisher = Finisher(load_run_config(recipe).rollout.rules)
    informative = 0.0
    for k, p in enumerate(chances(8, 0.02)):
        action = finisher.decide(scored(8, k), LEASED).action
        if isinstance(action, Grow):
            later = chances(action.num, 0.02)
            informative += p * sum(q for j, q in enumerate(later) if 0 < k + j < 8 + action.num)
        elif not isinstance(action, Drop):
            informative += p
    assert informative == pytest.approx(expected, abs=1e-3)


def test_ghpo_costs_what_its_stages_fail():
    """n (1 + sum over stages of the product of (1 - p_j)^n so far), for p = 0.05, 0.1, 0.2, 0.4."""
    finisher, rates = Finisher(load_run_config("ghpo").rollout.rules), [0.05, 0.1, 0.2, 0.4]
    expected, reached = 0.0, 1.0
    for stage, p in enumerate(rates):
        expected += 8 * reached
        wrong = replace(scored(8, 0), history={"redo": stage} if stage else {})
        assert isinstance(finisher.decide(wrong, LEASED).action, Redo) is (stage < 3)
        assert not isinstance(finisher.decide(replace(scored(8, 1), history=wrong.history), LEASED).action, Redo)
        reached *= (1 - p) ** 8
    assert expected == pytest.approx(8 * (1 + 0.95**8 + (0.95 * 0.9) ** 8 + (0.95 * 0.9 * 0.8) ** 8))


@pytest.mark.parametrize(
    ("recipe", "right", "donor", "own"),
    [
        ("luffy", 0, 7 / 8, -1 / 8),
        ("luffy", 8, 0.0, 0.0),
        ("rlep", 0, 1 - 2 / 10, -2 / 10),
        ("rlep", 8, 0.0, 0.0),
        ("ampo", 0, 1 - 2 / 8, -2 / 8),
    ],
)
def test_what_a_donor_is_worth_in_its_group(recipe, right, donor, own):
    """Right donors among 8 own answers: all wrong, or all right, where they are worth exactly nothing."""
    rules = [rule for rule in load_run_config(recipe).rollout.rules if rule != "drop_constant"]
    (source,) = {rule["source"] for rule in rules if not isinstance(rule, str) and "source" in rule}
    donors = tuple(make_trajectory(group_id="d", index=i, source=Source(source), score=1.0) for i in range(2))
    donors = donors[:1] if recipe == "luffy" else donors
    group = Finisher(rules).decide(scored(8, right), replace(LEASED, donors={source: donors})).group
    for of, expected in (("live", own), (source, donor)):
        term = Term(loss=PolicyGradient(), source=of, advantage="centered", compared_with="group")
        (plan,) = Objective([term]).plan([group]).terms
        assert plan.advantages is not None
        values = [float(a[m][0]) for a, m in zip(plan.advantages, plan.mask, strict=True) if m.any()]
        assert values == pytest.approx([expected] * len(values))
        assert len(values) == sum(t.source == of for t in group.trajectories) > 0
