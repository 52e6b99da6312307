"""The audit says yes to what happened once, and names what did not."""

import json

import pytest

from actors.config import ReplayConfig
from actors.replay.core import ReplayCore
from actors.replay.log import Journal, ReplayLog, read_journal, read_json, write_json
from orchestrator.audit import audit_run
from rewards.trajectory import PolicyVersion, Source
from tests.actors.replay.drivers import write_checkpoint
from tests.builders import make_group

OPENED = {"kind": "opened", "boot": 1, "epoch": 1, "max_age": 1, "groups_per_update": 1}
VERSION = {"kind": "version", "version": 0, "step": 0}


def issued(ticket):
    return {"kind": "issued", "ticket": ticket, "worker": "w", "size": 2, "due": 0, "min_step": 0}


def put(group, ticket, oldest=0, budget=1):
    return {
        "kind": "put", "group": group, "source": "live", "digest": "", "ticket": ticket, "oldest": oldest, "tokens": 9,
        "budget": budget, "blob": None,
    }  # fmt: skip


def leased(lease, step, *groups, age=0):
    return {
        "kind": "leased", "lease": lease, "step": step, "epoch": 1, "groups": list(groups),
        "ages": dict.fromkeys(groups, age), "shortfall": {},
    }  # fmt: skip


def committed(lease, **dropped):
    return {"kind": "committed", "lease": lease, "dropped": dropped}


def version(number, step):
    return {"kind": "version", "version": number, "step": step}


def rolled_back(step, batches):
    return {"kind": "rolled_back", "step": step, "epoch": 2, "batches": batches}


TRAINED = [OPENED, VERSION, issued("t0"), put("g0", "t0"), leased("l0", 0, "g0"), committed("l0")]
STORED = [OPENED, VERSION, issued("t0"), put("g0", "t0")]


def write_run(run_dir, events):
    folder = run_dir / "state" / "replay"
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl", fsync="never")
    for event in events:
        journal.append(event)
    journal.close()
    return run_dir


def findings(run_dir):
    return [(finding.rule, finding.message) for finding in audit_run(run_dir).findings]


def trained_run(run_dir, num_steps=4, checkpoint=3):
    """A real cache that trained, with a checkpoint, expert data, drops, and groups and tickets left over."""
    config = ReplayConfig(groups_per_update=2, max_age=1, quotas={"expert": "1/2"})
    core = ReplayCore(config, log=ReplayLog(run_dir / "state" / "replay", fsync="never"))
    core.preload([make_group(group_id=f"e{i}", source=Source.EXPERT) for i in range(3)])
    core.announce_version(PolicyVersion(0), 0)
    manifest = {}
    for step in range(num_steps):
        for _ in range(2):
            ticket = core.take_ticket("w", 2, 0.0)
            if ticket is not None:
                core.put(_sampled(ticket, step))
        batch = core.lease(step, 0.0)
        dropped = {batch.groups[1].group_id: "nan"} if step == 1 else {}
        core.commit(step, batch.lease_id, dropped)
        core.announce_version(PolicyVersion(step + 1), step + 1)
        manifest[step] = [g.group_id for g in batch.groups if g.group_id not in dropped]
        if step + 1 == checkpoint:
            core.snapshot()
            write_checkpoint(run_dir / "checkpoints", step + 1, manifest)
            core.seal(step)
    core.put(_sampled(core.take_ticket("w", 2, 0.0), num_steps, scores=(None, None)))
    core.take_ticket("w", 2, 0.0)
    core.lease(num_steps, 0.0)
    return core


def _sampled(ticket, step, **fields):
    name = f"g-{ticket.ticket_id}"
    return make_group(group_id=name, ticket_id=ticket.ticket_id, policy_version=step, **fields)


class TestHonestRuns:
    def test_every_group_and_ticket_is_accounted_for(self, tmp_path):
        trained_run(tmp_path)
        report = audit_run(tmp_path)
        assert report.findings == ()
        assert report.ok
        assert dict(report.groups) == {
            ("live", "committed", ""): 1,
            ("live", "sealed", ""): 2,
            ("live", "leased", ""): 1,
            ("live", "evicted", "nan"): 1,
            ("live", "refused", "unscored"): 1,
            ("expert", "ready", ""): 2,
            ("expert", "leased", ""): 1,
        }
        assert report.tickets == {"stored": 5, "refused:unscored": 1, "outstanding": 1}
        assert (report.steps_committed, report.checkpoint_step) == (4, 3)
        assert report.max_age == 1
        assert max(report.ages) <= 1
        assert sum(report.ages.values()) == 5

    def test_the_report_is_readable(self, tmp_path):
        trained_run(tmp_path)
        assert audit_run(tmp_path).lines() == [
            f"audit of {tmp_path}",
            "steps    4 committed, checkpoint after 3",
            "tickets  7 issued: 1 outstanding, 1 refused:unscored, 5 stored",
            "ages     5 live groups handed out, oldest 1, bound 1",
            "  source  state      reason    groups",
            "  expert  leased               1",
            "  expert  ready                2",
            "  live    committed            1",
            "  live    evicted    nan       1",
            "  live    leased               1",
            "  live    refused    unscored  1",
            "  live    sealed               2",
            "ok       every ticket and group is accounted for, none trained on beyond its budget",
        ]

    def test_a_killed_run_is_in_order_before_and_after_it_resumes(self, tmp_path):
        core = trained_run(tmp_path)
        journal = tmp_path / "state" / "replay" / "journal.jsonl"
        journal.write_bytes(journal.read_bytes() + b"deadbeef {torn")
        assert findings(tmp_path) == []
        manifest = {
            int(k): v for k, v in json.loads((tmp_path / "checkpoints/step-00000003/batches.json").read_text()).items()
        }
        again = ReplayCore(core.config, log=ReplayLog(tmp_path / "state" / "replay", fsync="never"))
        again.rollback(3, manifest)
        report = audit_run(tmp_path)
        assert report.ok, report.lines()
        assert (report.steps_committed, report.tickets["restart"]) == (3, 1)
        assert report.groups["live", "ready", ""] == 2

    def test_reuse_within_the_budget_is_no_violation(self, tmp_path):
        reused = [
            OPENED, VERSION, issued("t0"), put("g0", "t0", budget=2), leased("a", 0, "g0"), committed("a"),
            leased("b", 1, "g0", age=1), committed("b"),
        ]  # fmt: skip
        assert findings(write_run(tmp_path, reused)) == []

    def test_training_again_after_a_rollback_is_no_violation(self, tmp_path):
        again = [*TRAINED, rolled_back(0, {}), leased("l1", 0, "g0"), committed("l1")]
        assert findings(write_run(tmp_path, again)) == []

    def test_groups_known_from_a_manifest_alone_are_counted(self, tmp_path):
        report = audit_run(write_run(tmp_path, [*TRAINED, rolled_back(1, {"0": ["lost"]})]))
        assert report.ok
        assert dict(report.groups) == {("live", "ready", ""): 1, ("unknown", "sealed", ""): 1}

    def test_a_folder_without_a_journal_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no replay journal, so there is nothing to audit"):
            audit_run(tmp_path)


VIOLATIONS = {
    "issued twice": ([OPENED, issued("t0"), issued("t0")], "ticket", "t0 was issued twice"),
    "beyond the bound": (
        [OPENED, issued("t0"), issued("t1"), issued("t2")], "ticket", "t2: 0 live groups + 3 running exceed 2",
    ),
    "returned twice": (
        [OPENED, issued("t0"), *[{"kind": "returned", "ticket": "t0", "reason": "failed"}] * 2],
        "ticket", "t0 became 'failed', but it was 'failed'",
    ),
    "two groups on one ticket": ([*STORED, put("g1", "t0")], "ticket", "t0 became 'stored', but it was 'stored'"),
    "a ticket from nowhere": ([OPENED, VERSION, put("g0", "t9")], "ticket", "t9 became 'stored', but it was 'never"),
    "accepted twice": ([*STORED, issued("t1"), put("g0", "t1")], "state", "g0 was accepted twice"),
    "no ticket": ([OPENED, VERSION, put("g0", None)], "state", "live group g0: ticket None"),
    "unknown version": ([OPENED, issued("t0"), put("g0", "t0", oldest=5)], "state", "unknown version 5"),
    "leased unknown": ([OPENED, leased("l0", 0, "g9")], "state", "g9 was leased for step 0, but it was never accepted"),
    "leased while leased": ([*STORED, leased("a", 0, "g0"), leased("b", 0, "g0")], "state", "step 0 while leased"),
    "leased when evicted": (
        [*STORED, {"kind": "evicted", "groups": ["g0"], "reason": "too_old"}, leased("a", 0, "g0")],
        "state", "g0 was leased for step 0 while evicted (too_old)",
    ),
    "leased without return": (
        [*STORED, leased("a", 0, "g0"), leased("b", 0, "g0")], "batch", "b was handed out after a",
    ),
    "wrong step": ([*STORED, leased("a", 3, "g0")], "batch", "lease a is for step 3, but 0 steps are committed"),
    "short batch": (
        [{**OPENED, "groups_per_update": 2}, *STORED[1:], leased("a", 0, "g0")],
        "batch", "lease a holds 1 groups (2 make a batch)",
    ),
    "trained twice": (
        [*TRAINED, leased("l1", 1, "g0", age=1), committed("l1")],
        "budget", "g0 was trained on at steps [0, 1], its budget is 1",
    ),
    "leased when spent": (
        [*TRAINED, leased("l1", 1, "g0", age=1)], "budget", "g0 was leased for step 1 after its uses [0]",
    ),
    "too old": (
        [*STORED, issued("t1"), put("g1", "t1"), leased("a", 0, "g0"), committed("a"),
         {"kind": "opened", "boot": 2, "epoch": 2, "max_age": 0, "groups_per_update": 1}, leased("b", 1, "g1", age=1)],
        "age", "g1 was handed out at step 1 with age 1 > 0",
    ),
    "age not as recorded": ([*STORED, leased("a", 0, "g0", age=1)], "age", "recorded age 1, by its versions 0"),
    "commit of nothing": ([*STORED, committed("a")], "batch", "commit of lease a, but None was out"),
    "commit of another": ([*STORED, leased("a", 0, "g0"), committed("b")], "batch", "commit of lease b, but a was out"),
    "dropped stranger": (
        [*STORED, leased("a", 0, "g0"), committed("a", g7="nan")], "batch", "dropped groups it did not hold: ['g7']",
    ),
    "evicted without reason": (
        [*STORED, {"kind": "evicted", "groups": ["g0"], "reason": ""}], "state", "g0 was evicted without a reason",
    ),
    "evicted while leased": (
        [*STORED, leased("a", 0, "g0"), {"kind": "evicted", "groups": ["g0"], "reason": "too_old"}],
        "state", "g0 was evicted as 'too_old' while leased",
    ),
    "returned no lease": (
        [OPENED, {"kind": "lease_returned", "reason": "expired"}], "batch", "but none was outstanding",
    ),
    "sealed too early": ([OPENED, {"kind": "sealed", "step": 0}], "batch", "seal of step 0: 0 committed"),
    "version twice": ([*TRAINED, version(0, 1)], "version", "version 0 was announced twice"),
    "version ahead": ([OPENED, version(1, 4)], "version", "version 1 claims 4 steps, 0 are committed"),
    "sealed, not saved": (
        [*TRAINED, {"kind": "sealed", "step": 0}], "manifest", "0 are sealed, but 0 are in a checkpoint",
    ),
    "unknown event": ([OPENED, {"kind": "vanished"}], "journal", "event 2 cannot be followed"),
    "event without fields": ([OPENED, {"kind": "leased"}], "journal", "event 2 cannot be followed (KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violations_are_found_and_named(tmp_path, name):
    events, rule, message = VIOLATIONS[name]
    found = findings(write_run(tmp_path, events))
    assert any(found_rule == rule and message in text for found_rule, text in found), found
    lines = audit_run(tmp_path).lines()
    assert any(line.startswith("FAILED") for line in lines)


class TestManifest:
    def test_that_disagrees_with_the_journal_is_found(self, tmp_path):
        write_run(tmp_path, TRAINED)
        write_checkpoint(tmp_path / "checkpoints", 1, {0: ["g1"]})
        assert (
            "manifest",
            "step 0 trained on different groups: the manifest has ['g1'], the journal ['g0']",
        ) in findings(tmp_path)

    def test_that_lacks_a_step_is_found(self, tmp_path):
        write_run(tmp_path, TRAINED)
        write_checkpoint(tmp_path / "checkpoints", 1, {})
        assert any("the manifest has None" in text for _, text in findings(tmp_path))

    def test_ahead_of_the_journal_is_found(self, tmp_path):
        write_run(tmp_path, TRAINED)
        write_checkpoint(tmp_path / "checkpoints", 2, {0: ["g0"], 1: ["g1"]})
        assert findings(tmp_path) == [("manifest", "the checkpoint contains 2 steps, the journal 1")]

    def test_of_a_damaged_checkpoint_is_not_believed(self, tmp_path):
        write_run(tmp_path, TRAINED)
        write_checkpoint(tmp_path / "checkpoints", 1, {0: ["g0"]})
        (tmp_path / "checkpoints" / "step-00000001" / "batches.json").write_text("{}")
        ((rule, text),) = findings(tmp_path)
        assert (rule, "no intact checkpoint" in text) == ("manifest", True)


class TestSnapshot:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.update(steps_committed=9), "steps committed: the cache has 9, the journal gives 3"),
            (lambda state: state["counters"].update(tickets_issued=99), "issued tickets: the cache has 99"),
            (lambda state: state["tickets"].update(ghost={}), "outstanding tickets: the cache has ['ghost']"),
            (lambda state: state["entries"][0].update(status="sealed"), "the cache has sealed"),
            (lambda state: state["entries"][0].update(uses=[7]), "[7], the journal gives ready"),
            (lambda state: state["entries"].pop(0), "but the cache has forgotten it"),
            (
                lambda state: state["entries"].append({**state["entries"][0], "group_id": "new"}),
                "never accepted: ['new']",
            ),
            (lambda state: state["history"]["1"].update(trained=[]), "history: the cache has"),
            (lambda state: state["versions"].update({"0": 1}), "versions: the cache has"),
            (lambda state: state.update(lease={"lease_id": "x"}), "lease: the cache has x, the journal gives None"),
        ],
    )
    def test_that_differs_from_the_journal_is_found(self, tmp_path, change, message):
        trained_run(tmp_path)
        path = tmp_path / "state" / "replay" / "snapshot.json"
        snapshot = read_json(path)
        change(snapshot["state"])
        write_json(path, snapshot)
        found = findings(tmp_path)
        assert any(rule == "snapshot" and message in text for rule, text in found), found

    def test_of_another_journal_is_found(self, tmp_path):
        trained_run(tmp_path)
        path = tmp_path / "state" / "replay" / "snapshot.json"
        write_json(path, {**read_json(path), "position": 12})
        assert findings(tmp_path) == [("snapshot", "taken at byte 12, where no event of the journal ends")]


def test_missing_and_damaged_blocks_of_groups_still_needed_are_found(tmp_path):
    trained_run(tmp_path)
    (block,) = (tmp_path / "state" / "replay" / "blocks").glob("live-*.blk")
    body = bytearray(block.read_bytes())
    body[-10] ^= 1  # of the group that is leased
    block.write_bytes(body)
    ((rule, text),) = findings(tmp_path)
    assert (rule, text.startswith("the packed block of leased group g-t1-")) == ("block", True)
    block.unlink()
    assert {rule for rule, _ in findings(tmp_path)} == {"block"}
    assert len(findings(tmp_path)) == 2  # the committed one and the leased one


def test_damage_inside_the_journal_is_found(tmp_path):
    trained_run(tmp_path)
    journal = tmp_path / "state" / "replay" / "journal.jsonl"
    positions = [position for _, position in read_journal(journal)]
    body = bytearray(journal.read_bytes())
    body[positions[-3] + 20] ^= 1
    journal.write_bytes(body)
    assert ("journal", True) in [(rule, "begins a damaged event" in text) for rule, text in findings(tmp_path)]


def test_a_long_list_of_violations_is_cut_for_the_terminal(tmp_path):
    write_run(tmp_path, [OPENED, *[{"kind": "lease_returned", "reason": "expired"}] * 60])
    report = audit_run(tmp_path)
    assert len(report.findings) == 60
    assert report.lines()[-1] == "  and 10 more"
