"""Ages and histories when versions mix and a run goes back to a checkpoint."""

import pytest

from actors.ports import StaleEpochError
from actors.replay.records import Status
from rewards.trajectory import PolicyVersion, VersionSpan
from tests.actors.replay.drivers import WORKER, drops, ids, lease, live, make_core, replace_member, store, take, train
from tests.builders import make_group


class TestVersions:
    def test_are_announced_once(self):
        core = make_core()
        core.announce_version(PolicyVersion(0), 0)
        assert core.calls["repeated_versions"] == 1
        with pytest.raises(ValueError, match="version 1 was announced with 3 committed steps, but 0 exist"):
            core.announce_version(PolicyVersion(1), 3)
        train(core, 1)
        with pytest.raises(ValueError, match="version 0 was announced with 1 committed steps, but it was announced wi"):
            core.announce_version(PolicyVersion(0), 1)

    def test_that_mix_in_one_group_count_by_the_oldest(self):
        core = make_core(groups_per_update=1, max_age=1)
        train(core, 1)
        spans = (VersionSpan(3, 4, PolicyVersion(0)), VersionSpan(4, 5, PolicyVersion(1)))
        group = replace_member(live(take(core), version=1), versions=spans)
        core.put(group)
        assert lease(core).ages == {group.group_id: 1}


class TestRollback:
    def test_undoes_commits_after_the_checkpoint_and_voids_leases_and_tickets(self):
        core = make_core(groups_per_update=1, max_age=3)
        batches = train(core, 3)
        (waiting,) = store(core, 3)
        held, stale = take(core), lease(core)
        core.rollback(1, {0: batches[0]})
        assert core.state.steps_committed == 1
        assert core.state.num(Status.READY, "live") == 3
        assert core.put(live(held, version=3)) == "ticket_rollback"
        with pytest.raises(StaleEpochError, match=f"commit of step 3 on lease {stale.lease_id}"):
            core.commit(3, stale.lease_id)
        assert lease(core).epoch == stale.epoch + 1
        assert train(core, 3) == [batches[1], batches[2], [waiting]]

    def test_counts_ages_along_the_surviving_lineage(self):
        core = make_core(groups_per_update=1, max_age=3)
        train(core, 3)
        core.rollback(0, {})
        assert core.state.versions == {0: 0, 1: 0, 2: 0, 3: 0}
        assert list(lease(core).ages.values()) == [0]

    def test_makes_history_what_the_manifest_says(self):
        core = make_core(groups_per_update=2, max_age=3)
        first, second, third = store(core, 0, 0, 0)
        core.commit(0, lease(core).lease_id, {second: "nan"})
        core.rollback(1, {0: [second, "unheard of"]})
        entries = core.state.entries
        assert entries[first].status is Status.READY  # the weights never saw it
        assert entries[second].status is Status.SEALED  # they did, although its block is gone
        assert entries["unheard of"].status is Status.SEALED
        assert core.state.history[0].trained == [second, "unheard of"]
        assert core.state.counters["adopted"] == 1
        assert core.put(make_group(group_id="unheard of", ticket_id="t0-0")) is None
        assert ids(lease(core)) == [first, third]

    def test_behind_the_seal_counts_what_is_lost(self):
        core = make_core(groups_per_update=1, max_age=3)
        train(core, 2)
        core.seal(1)
        core.rollback(0, {})
        assert core.state.num(Status.READY) == 0
        assert drops(core) == {"live/lost_behind_seal": 2}
        assert core.state.sealed_through == -1

    def test_to_where_it_already_is_changes_nothing(self):
        core = make_core()
        core.rollback(0, {})
        batches = train(core, 1)
        core.rollback(1, {0: batches[0]})
        assert core.state.counters["rollbacks"] == 0
        take(core)
        core.rollback(1, {0: batches[0]})
        assert core.state.counters["rollbacks"] == 1

    def test_needs_a_complete_manifest(self):
        core = make_core()
        with pytest.raises(ValueError, match="after 3 steps lacks steps \\[1, 2\\]"):
            core.rollback(3, {0: []})

    def test_does_not_let_a_surplus_of_returned_groups_grow(self):
        core = make_core(groups_per_update=2, max_age=1)
        train(core, 3)
        core.rollback(0, {})
        assert core.state.num(Status.READY, "live") == 6
        assert core.take_ticket(WORKER, 2, 0.0) is None
        train(core, 2)
        assert core.state.num(Status.READY, "live") == 0
        assert drops(core) == {"live/too_old": 2}
