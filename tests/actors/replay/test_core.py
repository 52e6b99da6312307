"""Each rule of the replay cache, with literal groups."""

import numpy as np
import pytest

from actors.ports import StaleEpochError
from actors.replay.records import InvariantError, Status
from rewards.trajectory import PolicyVersion, Source, VersionSpan
from tests.actors.replay.drivers import (
    WORKER,
    drops,
    expert,
    ids,
    lease,
    live,
    make_core,
    replace_member,
    store,
    take,
    train,
)
from tests.builders import make_group


class TestTickets:
    def test_are_granted_up_to_the_bound_and_then_refused_with_numbers(self):
        core = make_core(groups_per_update=2, max_age=1)
        tickets = [take(core) for _ in range(4)]
        assert core.take_ticket(WORKER, 2, 0.0) is None
        assert core.admission().reason == (
            "0 live groups accepted + 4 running reach the bound of 4 = (max_age 1 + 0 steps committed + 1) x fresh "
            "groups per update; waiting for step 0 to be committed or a group to be dropped"
        )
        assert len({t.ticket_id for t in tickets}) == 4

    def test_ask_for_weights_young_enough_for_the_step_they_supply(self):
        core = make_core(groups_per_update=2, max_age=1)
        assert [take(core).min_step for _ in range(4)] == [0, 0, 0, 0]
        strict = make_core(groups_per_update=2, max_age=0)
        assert [take(strict).min_step for _ in range(2)] == [0, 0]
        train(core := make_core(groups_per_update=1, max_age=1), 3)
        assert [take(core).min_step for _ in range(2)] == [2, 3]

    def test_committed_steps_make_room_for_as_many_groups_as_they_took(self):
        core = make_core(groups_per_update=2, max_age=0)
        store(core, 0, 0)
        assert core.admission().due is None
        lease(core)
        assert core.admission().due is None
        core.commit(0, lease(core).lease_id)
        assert core.admission().due == 1
        take(core), take(core)
        assert "2 live groups accepted + 2 running reach the bound of 4" in core.admission().reason

    def test_returned_ones_can_be_issued_again(self):
        core = make_core(groups_per_update=1, max_age=0)
        ticket = take(core)
        assert core.take_ticket(WORKER, 2, 0.0) is None
        core.return_ticket(ticket.ticket_id, "dropped:constant")
        assert take(core).ticket_id != ticket.ticket_id
        assert core.state.ticket_fates == {"dropped:constant": 1}

    def test_returned_twice_count_once(self):
        core = make_core()
        ticket = take(core)
        core.return_ticket(ticket.ticket_id, "failed")
        core.return_ticket(ticket.ticket_id, "failed")
        core.return_ticket("never-issued", "failed")
        assert core.state.ticket_fates == {"failed": 1}
        assert core.calls["late_ticket_returns"] == 2

    def test_of_silent_workers_come_back_in_the_order_they_were_taken(self):
        core = make_core(groups_per_update=4, ticket_timeout_s=10.0)
        first, second = take(core, now=0.0), take(core, now=3.0)
        assert core.next_deadline() == 10.0
        core.expire(9.9)
        assert len(core.state.tickets) == 2
        core.expire(10.0)
        assert list(core.state.tickets) == [second.ticket_id]
        assert core.next_deadline() == 13.0
        assert core.put(live(first)) == "ticket_expired"
        core.expire(13.0)
        assert core.state.ticket_fates == {"expired": 2}
        assert core.next_deadline() is None

    def test_are_not_issued_when_the_quotas_leave_nothing_to_live_rollouts(self):
        core = make_core(quotas={"expert": "1"})
        assert core.take_ticket(WORKER, 2, 0.0) is None
        assert "no group is needed" in core.admission().reason


class TestPut:
    def test_stores_a_group_and_closes_its_ticket(self):
        core = make_core()
        (group_id,) = store(core, 0)
        assert core.state.entries[group_id].status is Status.READY
        assert not core.state.tickets
        assert core.state.ticket_fates == {"stored": 1}

    def test_of_the_same_group_again_changes_nothing(self):
        core = make_core()
        group = live(take(core))
        assert core.put(group) is None
        assert core.put(group) is None
        assert core.state.counters["accepted"] == 1
        assert core.calls["repeated_puts"] == 1

    def test_of_another_group_under_a_known_id_is_an_error(self):
        core = make_core()
        ticket = take(core)
        core.put(live(ticket, scores=(1.0, 0.0)))
        with pytest.raises(ValueError, match=f"g-{ticket.ticket_id} is known with another payload"):
            core.put(live(ticket, scores=(0.0, 1.0)))
        assert core.state.counters["accepted"] == 1

    def test_needs_a_ticket_of_its_own(self):
        core = make_core()
        ticket = take(core)
        assert core.put(make_group(group_id="no ticket")) == "unknown_ticket"
        assert core.put(make_group(group_id="a", ticket_id=ticket.ticket_id)) is None
        assert core.put(make_group(group_id="b", ticket_id=ticket.ticket_id)) == "unknown_ticket"
        assert drops(core) == {"live/unknown_ticket": 2}

    @pytest.mark.parametrize(
        ("fault", "fields"),
        [
            ("missing_logprobs", {"behavior_logprobs": np.array([np.nan] * 4 + [-1], np.float32)}),
            ("infinite_logprobs", {"behavior_logprobs": np.array([np.nan] * 3 + [-1, -np.inf], np.float32)}),
            ("positive_logprobs", {"behavior_logprobs": np.array([np.nan] * 3 + [-1, 0.5], np.float32)}),
            ("no_versions", {"versions": None}),
            ("version_gap", {"versions": (VersionSpan(3, 4, PolicyVersion(0)),)}),
            ("unknown_version", {"versions": (VersionSpan(3, 5, PolicyVersion(7)),)}),
            ("not_live", {"source": Source.EXPERT}),
        ],
    )
    def test_refuses_what_no_honest_engine_produces(self, fault, fields):
        core = make_core()
        group = live(take(core))
        broken = replace_member(group, **fields)
        assert core.put(broken) == fault
        assert core.put(broken) == fault  # a worker may repeat the call
        assert drops(core) == {f"live/{fault}": 1}
        assert core.state.drops[f"live/{fault}/<=16 tokens"] == 1
        assert core.state.ticket_fates == {f"refused:{fault}": 1}
        assert core.state.counters["accepted"] == 0

    @pytest.mark.parametrize(("scores", "reason"), [((None, 1.0), "unscored"), ((1.0, 0.0), None), ((1.0,), None)])
    def test_refuses_groups_with_too_few_scores(self, scores, reason):
        core = make_core()
        assert core.put(live(take(core), scores=scores)) == reason

    def test_refuses_groups_too_old_for_any_batch(self):
        core = make_core(groups_per_update=1, max_age=1)
        late, just_in_time = take(core), take(core)
        core.return_ticket(just_in_time.ticket_id, "failed")
        train(core, 2)
        just_in_time = take(core)
        assert core.put(live(late, version=0)) == "too_old"
        assert core.put(live(just_in_time, version=1)) is None
        assert drops(core) == {"live/too_old": 1}

    def test_of_something_json_cannot_hold_is_an_error_that_changes_nothing(self):
        core = make_core()
        ticket = take(core)
        with pytest.raises(ValueError, match="cannot be written"):
            core.put(live(ticket, tags={"when": object()}))
        assert list(core.state.tickets) == [ticket.ticket_id]


class TestPreload:
    def test_is_idempotent(self):
        core = make_core(quotas={"expert": "1/2"})
        groups = [expert("e0"), expert("e1")]
        core.preload(groups)
        core.preload(groups)
        assert core.state.num(Status.READY, "expert") == 2
        assert core.calls["repeated_preloads"] == 2

    def test_stores_nothing_when_one_group_is_wrong(self):
        core = make_core(quotas={"expert": "1/2"})
        with pytest.raises(ValueError, match="of source 'teacher', which no batch takes \\(quotas: expert\\)"):
            core.preload([expert("e0"), expert("t0", Source.TEACHER)])
        with pytest.raises(ValueError, match="of source 'live', which no batch takes"):
            core.preload([expert("e0"), make_group(group_id="g")])
        with pytest.raises(ValueError, match="e0 is known with another payload"):
            core.preload([expert("e0"), expert("e0", scores=(0.5, 0.5))])
        assert core.state.counters["accepted"] == 0


class TestLease:
    def test_waits_until_the_batch_is_full_and_says_what_is_missing(self):
        core = make_core(groups_per_update=3, max_age=0)
        store(core, 0)
        take(core)
        assert core.lease(0, 0.0) is None
        assert core.shortage(0) == "need 3 live groups: 1 ready, 1 running"

    def test_repeated_returns_the_same_batch(self):
        core = make_core(groups_per_update=2, max_age=1)
        store(core, 0, 0, 0, 0)
        first = lease(core)
        again = lease(core)
        assert (again.lease_id, ids(again)) == (first.lease_id, ids(first))
        assert core.state.counters["leases"] == 1

    def test_gives_back_the_groups_exactly_as_they_were_put(self):
        core = make_core(groups_per_update=1)
        group = live(take(core), answers=[(4, 5, 6), (7,)], tags={"coverage": "covered"})
        core.put(group)
        (given,) = lease(core).groups
        assert given.tags == {"coverage": "covered"}
        for ours, theirs in zip(given.trajectories, group.trajectories, strict=True):
            np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
            np.testing.assert_array_equal(ours.behavior_logprobs, theirs.behavior_logprobs)
            assert (ours.versions, ours.verdict) == (theirs.versions, theirs.verdict)

    def test_never_holds_a_group_past_max_age(self):
        core = make_core(groups_per_update=1, max_age=2)
        train(core, 5)  # version v was published after v steps
        tickets = [take(core) for _ in range(3)]
        for ticket, version in zip(tickets, (3, 4, 5), strict=True):
            assert core.put(live(ticket, version=version)) is None
        assert lease(core).ages == {f"g-{tickets[0].ticket_id}": 2}
        core.commit(5, lease(core).lease_id)
        core.announce_version(PolicyVersion(6), 6)
        assert lease(core).ages == {f"g-{tickets[1].ticket_id}": 2}

    def test_is_preceded_by_the_eviction_of_groups_no_batch_may_take_any_more(self):
        core = make_core(groups_per_update=1, max_age=0, max_uses={"live": 2})
        (group_id,) = store(core, 0)
        core.commit(0, lease(core).lease_id)
        assert core.state.entries[group_id].status is Status.EVICTED
        assert drops(core) == {"live/too_old": 1}
        assert core.state.history[0].trained == [group_id]
        assert core.live_demand() == [1]
        assert take(core).min_step == 1

    def test_takes_the_stalest_of_the_least_used_groups_first(self):
        core = make_core(groups_per_update=1, max_age=2)
        train(core, 1)
        young, old = (live(take(core), version=v) for v in (1, 0))
        core.put(young)
        core.put(old)
        assert ids(lease(core)) == [old.group_id]

    def test_fills_what_a_frozen_source_lacks_with_live_groups_and_reports_it(self):
        core = make_core(groups_per_update=2, max_age=0, quotas={"expert": "1/2"}, max_uses={"expert": 1})
        core.preload([expert("e0")])
        assert core.live_demand() == [1]
        store(core, 0)
        batch = lease(core)
        assert (ids(batch)[0], batch.shortfall) == ("e0", {})
        assert list(batch.ages) == ids(batch)[1:]
        core.commit(0, batch.lease_id)
        assert core.live_demand() == [2]
        core.announce_version(PolicyVersion(1), 1)
        store(core, 1, 1)
        assert lease(core).shortfall == {"expert": 1}

    def test_looks_ahead_to_the_step_at_which_a_frozen_source_runs_dry(self):
        core = make_core(groups_per_update=2, max_age=2, quotas={"expert": "1/2"}, max_uses={"expert": 1})
        core.preload([expert("e0"), expert("e1")])
        assert core.live_demand() == [1, 1, 2]
        store(core, 0)
        lease(core)
        assert core.live_demand() == [1, 1, 2]

    def test_counts_what_it_holds_not_what_was_planned(self):
        core = make_core(groups_per_update=2, max_age=0, quotas={"expert": "1/2"})
        store(core, 0, 0)
        assert lease(core).shortfall == {"expert": 1}
        core.preload([expert("e0")])  # too late for this batch
        assert core.live_demand() == [2]
        assert core.take_ticket(WORKER, 2, 0.0) is None

    def test_waits_for_frozen_groups_when_there_are_no_live_ones(self):
        core = make_core(groups_per_update=2, quotas={"expert": "1"})
        core.preload([expert("e0")])
        assert core.lease(0, 0.0) is None
        assert core.shortage(0) == "need 2 expert groups: 1 ready"
        core.preload([expert("e1")])
        assert sorted(ids(lease(core))) == ["e0", "e1"]

    def test_hands_out_every_frozen_group_once_per_pass(self):
        core = make_core(groups_per_update=2, quotas={"expert": "1"})
        core.preload([expert(f"e{i}") for i in range(6)])
        batches = train(core, 6)
        first, second = ([g for batch in half for g in batch] for half in (batches[:3], batches[3:]))
        assert sorted(first) == sorted(second) == [f"e{i}" for i in range(6)]
        assert first != second

    def test_lets_frozen_groups_that_arrive_late_join_the_pass_the_others_are_in(self):
        core = make_core(groups_per_update=1, quotas={"expert": "1"})
        core.preload([expert("e0"), expert("e1")])
        train(core, 6)
        core.preload([expert("late")])
        assert train(core, 1) == [["late"]]  # the others are through with this pass
        assert [train(core, 3).count(["late"]) for _ in range(3)] == [1, 1, 1]

    def test_of_a_committed_step_is_stale_and_of_a_later_one_an_error(self):
        core = make_core()
        train(core, 2)
        with pytest.raises(StaleEpochError, match="lease of step 1, but 2 steps are committed"):
            core.lease(1, 0.0)
        with pytest.raises(ValueError, match="lease of step 3, but only 2 steps are committed"):
            core.lease(3, 0.0)

    def test_expires_and_returns_its_groups_in_their_old_order(self):
        core = make_core(groups_per_update=2, max_age=1, lease_timeout_s=5.0, ticket_timeout_s=1000.0)
        group_ids = store(core, 0, 0, 0)
        late = lease(core, now=0.0)
        core.expire(4.9)
        assert core.state.lease is not None
        core.expire(5.0)
        assert core.state.num(Status.LEASED) == 0
        fresh = lease(core, now=6.0)
        assert ids(fresh) == ids(late) == group_ids[:2]
        assert fresh.lease_id != late.lease_id
        with pytest.raises(StaleEpochError, match=f"commit of step 0 on lease {late.lease_id}, but the outstanding"):
            core.commit(0, late.lease_id)
        core.commit(0, fresh.lease_id)
        assert core.calls["late_commits"] == 1

    def test_asked_for_again_starts_its_time_anew(self):
        core = make_core(groups_per_update=1, lease_timeout_s=5.0)
        store(core, 0)
        lease(core, now=0.0)
        lease(core, now=4.0)
        core.expire(8.9)
        assert core.state.lease is not None

    def test_that_would_break_the_age_bound_stops_the_run(self):
        core = make_core(groups_per_update=1, max_age=0)
        store(core, 0)
        core.state.versions[0] = -1  # a fault in the books
        core._sweep = lambda: None  # and a sweep that misses it
        with pytest.raises(InvariantError, match="above max_age 0 were about to be handed out"):
            core.lease(0, 0.0)


class TestCommit:
    def test_is_idempotent(self):
        core = make_core()
        store(core, 0, 0)
        batch = lease(core)
        core.commit(0, batch.lease_id)
        core.commit(0, batch.lease_id)
        assert core.state.steps_committed == 1
        assert core.calls["repeated_commits"] == 1

    def test_evicts_dropped_groups_with_their_reason_and_frees_their_place(self):
        core = make_core(groups_per_update=2, max_age=0)
        first, second = store(core, 0, 0)
        core.commit(0, lease(core).lease_id, {second: "nan"})
        assert core.state.entries[first].status is Status.COMMITTED
        assert core.state.entries[second].status is Status.EVICTED
        assert core.state.history[0].trained == [first]
        assert drops(core) == {"live/nan": 1}
        assert core.live_demand() == [2]
        assert [take(core).min_step for _ in range(2)] == [1, 1]

    def test_refuses_groups_and_steps_that_are_not_of_its_lease(self):
        core = make_core()
        store(core, 0, 0)
        batch = lease(core)
        with pytest.raises(ValueError, match="drops \\['stranger'\\], which are not in lease"):
            core.commit(0, batch.lease_id, {"stranger": "nan"})
        with pytest.raises(ValueError, match="is for step 0, not 1"):
            core.commit(1, batch.lease_id)
        with pytest.raises(StaleEpochError, match="outstanding one is"):
            core.commit(0, "l0-0-99")
        core.commit(0, batch.lease_id)
        with pytest.raises(StaleEpochError, match="the outstanding one is none"):
            core.commit(1, "l0-0-99")

    def test_lets_a_group_be_used_as_often_as_its_budget_says(self):
        core = make_core(groups_per_update=1, max_age=9, max_uses={"live": 2})
        (group_id,) = store(core, 0)
        core.commit(0, lease(core).lease_id)
        assert core.state.entries[group_id].status is Status.READY
        assert ids(lease(core)) == [group_id]
        core.commit(1, lease(core).lease_id)
        assert core.state.entries[group_id].status is Status.COMMITTED
        assert core.lease(2, 0.0) is None


class TestSeal:
    def test_lets_spent_groups_leave_memory_and_forgets_them_one_seal_later(self):
        core = make_core(groups_per_update=1, max_age=0)
        ((first,), (second,)) = train(core, 2)
        assert set(core.state.payloads) == {first, second}
        core.seal(0)
        assert core.state.entries[first].status is Status.SEALED
        assert set(core.state.payloads) == {second}
        core.seal(1)
        assert first not in core.state.entries
        assert core.state.entries[second].status is Status.SEALED
        assert core.state.num(Status.SEALED) == 2

    def test_is_idempotent_and_needs_a_commit(self):
        core = make_core()
        train(core, 1)
        core.seal(0)
        core.seal(0)
        assert core.calls["repeated_seals"] == 1
        with pytest.raises(ValueError, match="seal of step 1, but only 1 steps are committed"):
            core.seal(1)

    def test_keeps_groups_that_may_be_used_again(self):
        core = make_core(groups_per_update=1, quotas={"expert": "1"})
        core.preload([expert("e0")])
        train(core, 1)
        core.seal(0)
        assert core.state.entries["e0"].status is Status.READY
        assert train(core, 1) == [["e0"]]

    def test_never_forgets_what_a_resumed_run_would_preload_again(self):
        core = make_core(groups_per_update=1, quotas={"expert": "1/2"}, max_uses={"expert": 1})
        core.preload([expert("e0")])
        batches = train(core, 6)
        for step in range(6):
            core.seal(step)
        core.preload([expert("e0")])
        assert core.state.num(Status.READY, "expert") == 0
        assert sum("e0" in batch for batch in batches + train(core, 2)) == 1


def test_stats_name_levels_and_counters():
    core = make_core(groups_per_update=2, max_age=1, quotas={"expert": "1/2"})
    core.preload([expert("e0"), expert("e1")])
    train(core, 1)
    store(core, 1)
    take(core)
    core.put(make_group(group_id="x"))
    stats = core.stats()
    assert {k: v for k, v in stats.items() if v} == {
        "steps_committed": 1,
        "lease_epoch": 1,
        "groups_accepted": 4,
        "groups_refused": 1,
        "tickets_issued": 3,
        "tickets_outstanding": 1,
        "leases": 1,
        "held_bytes": sum(len(core.state.payloads.get(name) or b"") for name in core.state.payloads),
        "memory_bytes": core.state.payloads.memory_bytes,
        "groups/ready/live": 1,
        "groups/committed/live": 1,
        "groups/ready/expert": 2,
        "dropped/live/unknown_ticket/<=16 tokens": 1,
        "tickets/stored": 2,
        "leased_age/0": 1,
    }


def test_books_that_do_not_balance_stop_the_run():
    core = make_core()
    core.state.counters["accepted"] += 1
    with pytest.raises(InvariantError, match="1 groups were accepted, but their states are"):
        take(core)
