"""Rows of the fault matrix that the graph of one process can show; docs/faults.md says where the others are."""

from __future__ import annotations

import pytest

from tests.faults.graph import Graph, Kill, checked, events

IN_TURN = {"num_workers": 1, "concurrent_groups": 1, "max_age": 0}
"""Strictly on-policy with one group at a time: which groups make a batch does not depend on who was faster."""


async def test_replies_that_are_lost_make_calls_run_twice_and_change_nothing(folder, renderer):
    calm = Graph(folder / "calm", renderer, **IN_TURN)
    lossy = Graph(folder / "lossy", renderer, lost_replies=0.25, **IN_TURN)
    await checked(calm)
    await checked(lossy)
    assert lossy.num_lost_replies > 15, "the fault did not fire"
    assert lossy.losses == calm.losses


@pytest.mark.parametrize("victim", ["replay", "tasks", "weights", "rollout-0"])
async def test_losses_are_those_of_a_calm_run_to_the_bit(folder, renderer, victim):
    calm = Graph(folder / "calm", renderer, **IN_TURN)
    await checked(calm)
    struck = Graph(folder / "struck", renderer, [Kill(calm.points * i // 5, victim) for i in (1, 2, 3, 4)], **IN_TURN)
    await checked(struck)
    assert len(struck.fired) >= 3, "the faults did not fire"
    assert struck.losses == calm.losses


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({"ignore_updates": True}, "does not run these weights"),
        ({"fail_updates": True}, "failed half-way"),
        ({"keep_cache": True}, "prefix cache"),
    ],
)
async def test_an_engine_that_fails_or_does_not_take_its_weights_is_replaced_and_serves_nothing(
    folder, renderer, faults, told
):
    dying = {"faults": {"die_after_tokens": 30}}
    graph = Graph(folder, renderer, engine_faults={"rollout-1": [dying, {"faults": faults}]})
    await checked(graph)
    lost = [line["error"] for line in events(folder, "rollout_lost")]
    assert len(lost) == 2, "the faults did not fire"
    assert "scripted fault" in lost[0]
    assert told in lost[1]


async def test_log_probs_no_honest_engine_reports_are_refused_and_counted(folder, renderer):
    faults = {"nan_logprobs_every": 5, "wrong_length_every": 7}
    graph = Graph(folder, renderer, engine_faults={"rollout-0": [{"faults": faults}]})
    summary = await checked(graph)
    assert any("missing_logprobs" in reason for reason in summary["drops"]), summary["drops"]


async def test_a_straggler_costs_its_own_groups_only(folder, renderer):
    graph = Graph(folder, renderer, engine_faults={"rollout-1": [{"tokens_per_s": 20.0}]}, num_steps=8)
    summary = await checked(graph)
    stored = {name: summary["workers"][name].get("groups_stored", 0.0) for name in ("rollout-0", "rollout-1")}
    assert stored["rollout-0"] > 2 * stored["rollout-1"], stored
