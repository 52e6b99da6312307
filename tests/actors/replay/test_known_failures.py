"""Ways in which replay buffers of other systems lost, starved or repeated data, each as a regression test."""

from fractions import Fraction

import numpy as np
import pytest

from actors.ports import StaleEpochError
from actors.replay.config import TableConfig
from actors.replay.limiter import may_collect, usable
from actors.replay.records import Status
from rewards.trajectory import PolicyVersion, Source
from tests.actors.replay.drivers import WORKER, drops, expert, ids, lease, live, make_core, store, take, train


def test_filtered_groups_release_their_capacity():
    """Groups dropped by a filter once kept their place for ever, until nobody could start one."""
    core = make_core(groups_per_update=2, max_age=1)
    for _ in range(100):
        core.return_ticket(take(core).ticket_id, "dropped:constant")
    assert len([take(core) for _ in range(4)]) == 4
    assert core.take_ticket(WORKER, 2, 0.0) is None


def test_refused_groups_release_their_capacity():
    core = make_core(groups_per_update=2, max_age=1)
    for _ in range(100):
        assert core.put(live(take(core), scores=(None, None))) == "unscored"
    assert len([take(core) for _ in range(4)]) == 4


def test_dropped_groups_are_replenished():
    """Groups dropped after acceptance were once not replaced, and the pipeline drained."""
    core = make_core(groups_per_update=2, max_age=1)
    for step in range(20):
        version = max(core.state.versions)
        while core.lease(step, 0.0) is None:
            store(core, version)
        batch = lease(core)
        core.commit(step, batch.lease_id, dict.fromkeys(ids(batch), "nan"))
        core.announce_version(PolicyVersion(version + 1), step + 1)
    assert core.state.num(Status.EVICTED) == 40
    assert len(core.state.tickets) + core.state.num_open("live") <= 4


def test_a_restart_causes_no_burst(tmp_path):
    """A counter of accepted groups that starts at zero lets workers oversupply by everything already trained."""
    core = make_core(tmp_path, groups_per_update=2, max_age=1)
    train(core, 10)
    store(core, 10)
    again = make_core(tmp_path, groups_per_update=2, max_age=1)
    granted = 0
    while again.take_ticket(WORKER, 2, 0.0) is not None:
        granted += 1
    assert granted == 3  # one group is ready, and the bound is (max_age + 1) x 2
    assert "21 live groups accepted + 3 running reach the bound of 24" in again.admission().reason


def test_slow_groups_are_not_starved_by_fast_ones():
    """Discarding what arrives late, or serving it last, trains on short answers only."""
    core = make_core(groups_per_update=2, max_age=1)
    slow, slow_trained = None, 0
    for step in range(30):
        slow, arriving = take(core), slow
        while (fast := core.take_ticket(WORKER, 2, 0.0)) is not None:
            core.put(live(fast, version=step))
        if arriving is not None:  # it took one step longer than the others
            core.put(live(arriving, version=step - 1))
        batch = lease(core)
        slow_trained += arriving is not None and f"g-{arriving.ticket_id}" in ids(batch)
        core.commit(step, batch.lease_id)
        core.announce_version(PolicyVersion(step + 1), step + 1)
    assert slow_trained == 29
    assert drops(core) == {}


def test_preloading_does_not_jam_admission():
    """An offline preload once counted as inserts, so that the limiter waited for samples that never came."""
    core = make_core(groups_per_update=2, max_age=0, quotas={"expert": "1/2"})
    core.preload([expert(f"e{i}") for i in range(500)])
    assert core.admission().due == 0
    train(core, 5)
    assert core.state.num(Status.READY, "expert") == 500


def test_imports_do_not_jam_a_rule_for_reuse():
    """A limiter that counted preloaded groups as inserts let nothing in or out until they were used up (reverb 134)."""
    table = TableConfig(uses_per_insert=Fraction(1), slack=Fraction(2), min_groups=1)
    core = make_core(groups_per_update=2, quotas={"own_past": "1/2"}, tables={"own_past": table})
    core.preload([expert(f"p{i}", Source.OWN_PAST) for i in range(50)])
    row = core.state.reuse["own_past"]
    assert may_collect(table, row.inserted, row.sampled, 50)
    assert usable(table, row.inserted, row.sampled, 50) == 1
    batches = train(core, 4)
    assert sum(name.startswith("p") for batch in batches for name in batch) >= 1
    assert row.inserted > 0  # right answers of live groups went in beside them


def test_priorities_of_a_lease_that_is_gone_change_nothing():
    """A learner that was too slow once changed the priority of groups that others had trained on since (ray 6534)."""
    table = TableConfig(order="prioritised", priority="ratio")
    core = make_core(groups_per_update=1, quotas={"expert": 1}, tables={"expert": table}, lease_timeout_s=1.0)
    core.preload([expert("e0")])
    slow = lease(core, now=0.0)
    core.expire(2.0)
    quick = lease(core, now=2.0)
    core.commit(0, quick.lease_id, measured={"e0": {"ratio": 0.25}})
    with pytest.raises(StaleEpochError):
        core.commit(0, slow.lease_id, measured={"e0": {"ratio": 9.0}})
    assert core.state.entries["e0"].priority == 0.25


def test_a_consumer_that_dies_between_fetch_and_training_loses_nothing():
    """Marking groups consumed when they are fetched loses them with the consumer."""
    core = make_core(groups_per_update=2, max_age=1, lease_timeout_s=10.0)
    group_ids = store(core, 0, 0)
    assert ids(lease(core, now=0.0)) == group_ids  # the first learner dies here
    core.expire(10.0)
    second = lease(core, now=11.0)
    assert ids(second) == group_ids
    core.commit(0, second.lease_id)
    assert core.state.history[0].trained == group_ids


def test_a_batch_being_read_survives_the_removal_of_its_groups(tmp_path):
    """A slot that was freed and filled again while someone read it once gave other tokens."""
    core = make_core(tmp_path, groups_per_update=1, max_age=0)
    core.put(live(take(core), answers=[(11, 12), (13, 14)]))
    batch = lease(core)
    core.commit(0, batch.lease_id)
    core.announce_version(PolicyVersion(1), 1)
    core.seal(0)
    core.snapshot()
    core.put(live(take(core), version=1, answers=[(21, 22), (23, 24)]))
    (group,) = batch.groups
    np.testing.assert_array_equal(group.trajectories[0].token_ids, [1, 2, 3, 11, 12])
    with pytest.raises(ValueError, match="read-only"):
        group.trajectories[0].token_ids[0] = 99


def test_a_late_call_does_not_touch_what_took_the_old_place():
    """An update addressed to a slot once hit whatever had moved in; here every call names its lease and ticket."""
    core = make_core(groups_per_update=1, max_age=0, lease_timeout_s=1.0, ticket_timeout_s=50.0)
    old_ticket = take(core, now=0.0)
    core.expire(50.0)
    (group_id,) = store(core, 0)
    core.return_ticket(old_ticket.ticket_id, "failed")
    old_lease = lease(core, now=60.0)
    core.expire(61.0)
    new_lease = lease(core, now=62.0)
    with pytest.raises(StaleEpochError):
        core.commit(0, old_lease.lease_id, {group_id: "nan"})
    assert core.state.entries[group_id].status is Status.LEASED
    core.commit(0, new_lease.lease_id)
    assert core.state.history[0].trained == [group_id]


def test_stored_groups_are_there_after_a_restart(tmp_path):
    """A buffer outside the checkpoint forgets what was sampled but not yet trained on."""
    core = make_core(tmp_path, groups_per_update=2, max_age=1)
    group_ids = store(core, 0, 0, 0)
    again = make_core(tmp_path, groups_per_update=2, max_age=1)
    assert ids(lease(again)) == group_ids[:2]


def test_every_refusal_says_what_is_missing():
    """A client that blocks without a diagnosis costs its operator a day."""
    core = make_core(groups_per_update=2, max_age=0, quotas={"expert": "1/2"})
    take(core)
    assert core.lease(0, 0.0) is None
    assert core.shortage(0) == "need 2 live groups: 0 ready, 1 running"  # no expert is there, so live ones fill in
    take(core)
    assert "0 live groups accepted + 2 running reach the bound of 2" in core.admission().reason
