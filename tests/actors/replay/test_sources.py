"""Where groups other than fresh ones come from: the policy's own past, other runs, files."""

import json
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from actors.config import ReplayConfig
from actors.replay.config import ImportConfig, TableConfig
from actors.replay.imports import ImportedDataError, check_needs, imported_groups
from actors.replay.limiter import may_collect, rebased, usable
from rewards.trajectory import PolicyVersion, Source
from tests.actors.replay.drivers import drops, ids, lease, live, make_core, store, take, train

HALF = {"quotas": {"own_past": "1/2"}, "groups_per_update": 2, "max_age": 1}


class Letters:
    """Text to tokens, one per letter."""

    def prompt_ids(self, messages):
        return [ord(c) for message in messages for c in message["content"]]

    def answer_ids(self, text):
        return [ord(c) for c in text] + [0]


def put(core, *scores, version=0):
    group = live(take(core), scores=scores, version=version)
    assert core.put(group) is None
    return group


def step(core, *groups_scores):
    """One step over groups with these scores; the batch."""
    version = max(core.state.versions)
    for scores in groups_scores:
        put(core, *scores, version=version)
    batch = lease(core)
    core.commit(batch.step, batch.lease_id)
    core.announce_version(PolicyVersion(version + 1), batch.step + 1)
    return batch


class TestOwnPast:
    def test_right_answers_of_trained_groups_come_back_as_recorded(self):
        core = make_core(**HALF)
        first = step(core, (1.0, 0.0), (0.0, 0.0))
        assert first.shortfall == {"own_past": 1}  # nothing is there yet, and fresh groups fill in
        second = step(core, (0.0, 0.0))
        origin, past = first.groups[0], next(g for g in second.groups if g.source is Source.OWN_PAST)
        assert past.group_id == f"past:{origin.group_id}"
        assert [t.score for t in past.trajectories] == [1.0]
        assert {t.source for t in past.trajectories} == {Source.OWN_PAST}
        np.testing.assert_array_equal(past.trajectories[0].behavior_logprobs, origin.trajectories[0].behavior_logprobs)
        assert past.trajectories[0].versions == origin.trajectories[0].versions
        assert past.group_id not in second.ages

    def test_mixed_leaves_out_groups_without_a_wrong_answer(self):
        core = make_core(**HALF, tables={"own_past": TableConfig(collect="mixed")})
        step(core, (1.0, 1.0), (1.0, 0.0))
        assert core.state.num_ready()["own_past"] == 1

    def test_a_dropped_group_and_a_second_use_leave_nothing(self):
        core = make_core(**HALF, max_uses={"live": 2, "own_past": 1})
        put(core, 1.0, 0.0)
        put(core, 1.0, 0.0)
        batch = lease(core)
        core.commit(0, batch.lease_id, {ids(batch)[0]: "nan"})
        assert core.state.counters["accepted"] == 3
        core.announce_version(PolicyVersion(1), 1)
        again = lease(core)
        assert sorted(ids(again)) == sorted([ids(batch)[1], f"past:{ids(batch)[1]}"])
        core.commit(1, again.lease_id)
        assert core.state.counters["accepted"] == 3

    def test_a_crash_before_the_commit_neither_loses_nor_doubles(self, tmp_path, monkeypatch):
        core = make_core(tmp_path, **HALF)
        put(core, 1.0, 0.0)
        put(core, 1.0, 0.0)
        batch = lease(core)
        record = core._record
        monkeypatch.setattr(
            core, "_record", lambda event, *a: record(event, *a) if event["kind"] != "committed" else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            core.commit(0, batch.lease_id)
        again = make_core(tmp_path, **HALF)
        assert again.state.num_ready() == {"live": 2, "own_past": 2}
        fresh = lease(again)
        again.commit(0, fresh.lease_id)
        assert again.state.counters["accepted"] == 4

    def test_ages_out_by_its_own_bound(self):
        core = make_core(**HALF, tables={"own_past": TableConfig(max_age=1, order="lifo")})
        step(core, (1.0, 0.0), (1.0, 0.0))
        step(core, (0.0, 0.0))
        assert drops(core) == {"own_past/too_old": 1}
        assert core.state.num_ready()["own_past"] == 0


class TestReuseRule:
    def test_both_sides_of_the_inequality(self):
        table = TableConfig(min_groups=2, uses_per_insert=Fraction(3), slack=Fraction(4))
        assert usable(table, 1, 0, 1) == 0
        assert [usable(table, 2, sampled, 2) for sampled in (0, 3, 4, 5)] == [4, 1, 0, 0]
        assert [may_collect(table, inserted, 0, 5) for inserted in (2, 3)] == [True, False]
        assert may_collect(table, 9, 0, 1)

    def test_trainings_stay_within_slack_of_the_wanted_ratio(self):
        table = TableConfig(uses_per_insert=Fraction(1, 2), slack=Fraction(2))
        core = make_core(**HALF, tables={"own_past": table}, max_uses={"own_past": 9})
        for number in range(40):
            while (batch := core.lease(number, 0.0)) is None:
                put(core, 1.0, 0.0, version=number)
            core.commit(number, batch.lease_id)
            core.announce_version(PolicyVersion(number + 1), number + 1)
            row = core.state.reuse["own_past"]
            assert abs(row.sampled - row.inserted * Fraction(1, 2)) <= 2
        assert core.state.reuse["own_past"].sampled > 5

    def test_the_reason_names_side_and_amount(self):
        table = TableConfig(min_groups=3)
        core = make_core(**HALF, tables={"own_past": table})
        put(core, 1.0, 0.0)
        assert core.shortage(0) == (
            "need 2 live groups: 1 ready, 0 running; own_past waits for 3 more groups (min_groups 3)"
        )

    def test_a_changed_rule_begins_without_debts(self, tmp_path):
        old = TableConfig(uses_per_insert=Fraction(8), slack=Fraction(99))
        core = make_core(tmp_path, **HALF, tables={"own_past": old})
        step(core, (1.0, 0.0), (1.0, 0.0))
        step(core, (1.0, 0.0))
        assert core.state.reuse["own_past"].inserted >= 2
        new = TableConfig(uses_per_insert=Fraction(1), slack=Fraction(2), min_groups=1)
        again = make_core(tmp_path, **HALF, tables={"own_past": new})
        size = again.state.num_open("own_past")
        assert again.state.reuse["own_past"] == rebased(new, size)
        assert usable(new, size, size - 1, size) == 2
        third = make_core(tmp_path, **HALF, tables={"own_past": new})
        assert third.state.reuse == again.state.reuse

    def test_a_rule_that_could_block_both_sides_is_refused(self):
        with pytest.raises(ValidationError, match="collecting and training would block each other"):
            TableConfig(uses_per_insert=Fraction(3), slack=Fraction(2))
        with pytest.raises(ValidationError, match="only own_past has those"):
            ReplayConfig(tables={"expert": TableConfig(min_groups=1)})


class TestImports:
    def test_another_runs_cache_comes_without_age_and_with_its_log_probs(self, tmp_path):
        run = tmp_path / "run"
        other = make_core(run / "state" / "replay", groups_per_update=2, max_age=3, journal_bytes=1)
        train(other)
        other.seal(0)
        other.snapshot()  # the journal begins anew; trained groups have left the disk or lie in closed files
        stored = store(other, 1, 1)
        groups = list(imported_groups(ImportConfig(path=str(run)), Letters()))
        found = {group.group_id.rpartition(":")[2]: group for group in groups}
        assert set(stored) <= set(found)
        group = found[stored[0]]
        assert (group.source, group.oldest_version, group.ticket_id) == (Source.OTHER_RUN, None, None)
        assert np.isfinite(group.trajectories[0].behavior_logprobs[group.trajectories[0].sampled_mask]).all()
        core = make_core(groups_per_update=2, quotas={"other_run": "1/2"})
        core.preload(groups)
        core.preload(imported_groups(ImportConfig(path=str(run)), Letters()))
        assert core.state.num_ready() == {"other_run": len(groups)}

    def test_rows_of_a_file_become_groups_and_what_is_unknown_stays_unknown(self, tmp_path):
        rows = [
            {"prompt": "1+1", "response": "2", "score": 1.0, "source": "teacher", "prompt_id": "sum"},
            {"prompt": "1+1", "token_ids": [9, 8], "logprobs": [-0.5, None], "score": 0.0, "source": "teacher"},
            {"prompt": "2+2", "response": "4", "source": "expert"},
            {"prompt": [{"role": "user", "content": "3"}], "response": "3", "source": "teacher"},
        ]
        path = tmp_path / "traces.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        groups = list(imported_groups(ImportConfig(path=str(path), source="teacher"), Letters()))
        assert (groups[0].prompt_id, groups[0].scores) == ("sum", [1.0, 0.0])
        text, tokens = groups[0].trajectories
        assert list(text.token_ids) == [ord("1"), ord("+"), ord("1"), ord("2"), 0]
        assert np.isnan(text.behavior_logprobs).all()
        assert list(tokens.token_ids[3:]) == [9, 8]
        assert tokens.behavior_logprobs[3] == -0.5
        assert np.isnan(tokens.behavior_logprobs[4])
        assert len(groups) == 2
        right = ImportConfig(path=str(path), source="teacher", only_right=True)
        assert [g.scores for g in imported_groups(right, Letters())] == [[1.0]]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 1: not JSON"),
            ('{"prompt": "x"}', "line 1: a row needs `prompt`"),
            ('{"prompt": "x", "response": "ab", "logprobs": [0]}', "1 log-probs for 3 tokens"),
            ('{"prompt": "x", "response": "a", "source": "expert"}', "no group that could be used"),
        ],
    )
    def test_a_bad_file_is_refused_with_its_line(self, tmp_path, line, message):
        path = tmp_path / "rows.jsonl"
        path.write_text(line)
        with pytest.raises(ImportedDataError, match=message):
            list(imported_groups(ImportConfig(path=str(path)), Letters()))

    def test_what_a_term_needs_is_asked_of_every_group(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"prompt": "x", "response": "a"}')
        (group,) = imported_groups(ImportConfig(path=str(path)), Letters())
        check_needs(group, frozenset(), str(path))
        with pytest.raises(ImportedDataError, match="no log-probs and no scores, which a term on source"):
            check_needs(group, {"behavior_logprobs", "scores"}, str(path))

    def test_an_import_needs_a_quota(self):
        with pytest.raises(ValidationError, match=r"count as 'other_run', which has no quota"):
            ReplayConfig(imports=(ImportConfig(path="x"),))
