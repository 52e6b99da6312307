"""Prioritised tables: what a group is drawn by, when it is stored and after it was trained on."""

import json

from actors.replay.config import TableConfig
from actors.replay.payloads import Payloads
from actors.replay.state import ReplayState
from actors.replay.tables import Table
from tests.actors.replay.drivers import expert, ids, lease, live, make_core, take


def test_prioritised_tables_draw_by_advantage_first_and_by_what_the_learner_measured_later():
    table = TableConfig(order="prioritised", priority="ratio")
    core = make_core(groups_per_update=4, quotas={"expert": 1}, tables={"expert": table})
    core.preload([expert(f"e{i}") for i in range(8)])
    assert {entry.priority for entry in core.state.entries.values()} == {1.0}
    batch = lease(core)
    first, second, third, fourth = ids(batch)
    core.commit(
        0,
        batch.lease_id,
        {fourth: "nan"},
        measured={
            first: {"ratio": 1e-9},
            second: {"ratio": 9.0, "clipped": 1.0},
            third: {"ratio": float("nan")},
            fourth: {"ratio": 5.0},
            "e-none": {"ratio": 5.0},
        },
    )
    priorities = {group_id: core.state.entries[group_id].priority for group_id in (first, second, third, fourth)}
    assert priorities == {first: 1e-9, second: 9.0, third: 1.0, fourth: 1.0}
    assert core.calls["ignored_priorities"] == 3
    core.preload([expert("new")])
    assert core.state.entries["new"].priority == 9.0  # unknown: the highest, so that it is tried soon
    again = ReplayState(lambda source: Table(table, source, 0), Payloads(0, lambda blob: None))
    again.from_json(json.loads(json.dumps(core.state.to_json())))
    assert [again.entries[g].priority for g in priorities] == list(priorities.values())
    assert again.top_priorities == {"expert": 9.0}


def test_the_first_priority_is_the_mean_advantage_of_the_group():
    core = make_core(tables={"live": TableConfig(order="prioritised")})
    flat, uneven = live(take(core), scores=(1.0, 1.0)), live(take(core), scores=(1.0, 0.0))
    core.put(flat)
    core.put(uneven)
    assert core.state.entries[flat.group_id].priority == 0.0
    assert core.state.entries[uneven.group_id].priority == 0.5
