import itertools
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors import feed_state
from actors.feed_state import read_ledger
from actors.ledger import LedgerRow, PromptLedger
from actors.ports import LeasedTask, Outcome
from actors.replay.log import CorruptLogError
from actors.task_feed import TaskFeed, uniform_order
from rewards.task import Task
from rewards.trajectory import PolicyVersion
from tests.builders import make_trajectory


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tasks_of(count):
    return [Task(task_id=f"task-{i}", prompt=f"problem {i}") for i in range(count)]


def make_feed(log_dir, *, num_tasks=5, seed=0, clock=None, **settings):
    return TaskFeed(tasks_of(num_tasks), seed=seed, log_dir=Path(log_dir), clock=clock or Clock(), **settings)


def outcome_of(leased: LeasedTask, *, correct=1, scored=2, version=0, group="g", fate="stored") -> Outcome:
    return Outcome(
        lease_id=leased.lease_id,
        group_id=group,
        prompt_id=leased.task.task_id,
        num_scored=scored,
        num_correct=correct,
        mean_score=correct / scored if scored else None,
        version=PolicyVersion(version),
        fate=fate,
    )


async def lease_many(feed, count, worker="w"):
    return [await feed.lease_task(worker) for _ in range(count)]


def cut_end(path):
    path.write_bytes(path.read_bytes()[:-5])


def names(leases):
    return [leased.task.task_id for leased in leases]


# -- the stream -------------------------------------------------------------------------------------------------------


async def test_every_epoch_is_another_permutation_and_index_counts_on(tmp_path):
    leases = await lease_many(make_feed(tmp_path, num_tasks=8), 24)
    epochs = [names(leases[i : i + 8]) for i in (0, 8, 16)]
    assert all(sorted(epoch) == sorted(names(leases[:8])) == [f"task-{i}" for i in range(8)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [leased.index for leased in leases] == list(range(24))
    assert {leased.attempt for leased in leases} == {0}
    assert len({leased.lease_id for leased in leases}) == 24


async def test_the_stream_depends_on_the_seed_and_on_nothing_else(tmp_path):
    streams = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        feed = make_feed(tmp_path / name, num_tasks=16, seed=seed)
        streams.append([])
        for step in range(40):
            leased = await feed.lease_task(f"{name}-{step % 3}")
            streams[-1].append(leased.task.task_id)
            if step % (2 if name == "a" else 3) == 0:
                await feed.finish_task(outcome_of(leased, correct=step % 2))
    assert streams[0] == streams[1] != streams[2]


async def test_an_order_of_ones_own_sees_the_ledger_when_its_epoch_begins(tmp_path):
    def unsolved(ledger: PromptLedger, epoch: int):
        return [i for i in range(4) if ledger.row(f"task-{i}").successes == 0]

    feed = make_feed(tmp_path, num_tasks=4, order=unsolved)
    first = await lease_many(feed, 4)
    assert names(first) == ["task-0", "task-1", "task-2", "task-3"]
    for leased in first[:2]:
        await feed.finish_task(outcome_of(leased, correct=1))
    assert names(await lease_many(feed, 3)) == ["task-2", "task-3", "task-2"]


def test_the_uniform_order_leaves_out_retired_prompts():
    ledger = PromptLedger.from_json({"columns": ["prompt_id", "retired"], "rows": [["task-1", True]]})
    order = uniform_order(tasks_of(4), seed=0)
    assert sorted(order(ledger, 0)) == [0, 2, 3]
    assert [i for i in order(PromptLedger(), 0) if i != 1] == order(ledger, 0)


@pytest.mark.parametrize(("positions", "message"), [([], "names no task"), ([0, 5, -1], r"names tasks \[5, -1\]")])
async def test_an_order_that_leads_nowhere_is_refused(tmp_path, positions, message):
    with pytest.raises(ValueError, match=message):
        await make_feed(tmp_path, order=lambda ledger, epoch: positions).lease_task("w")


def test_no_tasks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one task"):
        make_feed(tmp_path, num_tasks=0)


# -- leases and outcomes ----------------------------------------------------------------------------------------------


async def test_an_outcome_is_counted_once(tmp_path):
    feed = make_feed(tmp_path)
    leased = await feed.lease_task("w")
    for _ in range(3):
        await feed.finish_task(outcome_of(leased, correct=1, scored=2, version=7))
    assert await feed.ledger() == [
        LedgerRow(
            prompt_id=leased.task.task_id,
            groups=1,
            attempts=2,
            successes=1,
            last_rate=0.5,
            last_version=PolicyVersion(7),
            history=(0.5,),
        )
    ]
    stats = await feed.stats()
    assert (stats["outcomes"], stats["outcomes_repeated"], stats["tasks_leased"]) == (1, 2, 0)


async def test_a_lease_tells_what_is_known_of_the_prompt(tmp_path):
    feed = make_feed(tmp_path, num_tasks=1)
    first = await feed.lease_task("w")
    assert first.row == LedgerRow(prompt_id="task-0")
    await feed.finish_task(outcome_of(first, correct=2))
    assert (await feed.lease_task("w")).row == (await feed.ledger())[0]
    assert (await feed.ledger())[0].successes == 2


async def test_a_silent_workers_task_is_leased_again_before_anything_new(tmp_path):
    clock = Clock()
    feed = make_feed(tmp_path, clock=clock, lease_timeout_s=10.0)
    silent = await feed.lease_task("silent")
    clock.now += 6
    busy = await feed.lease_task("busy")
    clock.now += 3.9
    assert (await feed.lease_task("busy")).index == 2
    clock.now += 0.1
    again = await feed.lease_task("busy")
    assert (again.index, again.attempt, again.task) == (silent.index, 1, silent.task)
    assert again.lease_id != silent.lease_id
    await feed.finish_task(outcome_of(busy))
    clock.now += 10  # only what is still out is overdue: the one of index 2, and the repeated one
    assert [leased.index for leased in await lease_many(feed, 3)] == [0, 2, 3]


async def test_a_lost_workers_tasks_are_leased_again_oldest_first(tmp_path):
    feed = make_feed(tmp_path, num_tasks=10)
    leases = [await feed.lease_task("ab"[i % 2]) for i in range(6)]
    await feed.finish_task(outcome_of(leases[2]))
    await feed.release_worker("a")
    await feed.release_worker("a")
    assert [(leased.index, leased.attempt) for leased in await lease_many(feed, 3, "c")] == [(0, 1), (4, 1), (6, 0)]
    stats = await feed.stats()
    assert (stats["leases_lapsed"], stats["tasks_leased"]) == (2, 6)


async def test_a_late_outcome_counts_and_saves_the_repetition(tmp_path):
    feed = make_feed(tmp_path)
    late = await feed.lease_task("w")
    await feed.release_worker("w")
    await feed.finish_task(outcome_of(late))
    assert (await feed.lease_task("w")).index == 1
    assert (await feed.stats())["outcomes_late"] == 1
    assert [row.groups for row in await feed.ledger()] == [1]


async def test_a_late_outcome_beside_the_repetition_counts_both(tmp_path):
    """Both are real attempts, whose groups may both be trained on; but nobody needs a third."""
    feed = make_feed(tmp_path)
    late = await feed.lease_task("w")
    await feed.release_worker("w")
    again = await feed.lease_task("v")
    await feed.finish_task(outcome_of(late, group="g1"))
    await feed.release_worker("v")
    assert (await feed.lease_task("w")).index == 1
    await feed.finish_task(outcome_of(again, group="g2"))
    await feed.finish_task(outcome_of(again, group="g2"))
    assert [row.groups for row in await feed.ledger()] == [2]


async def test_lapsed_leases_are_not_remembered_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(feed_state, "MAX_LAPSED", 3)
    feed = make_feed(tmp_path, num_tasks=20)
    leases = await lease_many(feed, 5)
    await feed.release_worker("w")
    for leased in leases:
        await feed.finish_task(outcome_of(leased))
    stats = await feed.stats()
    assert (stats["outcomes"], stats["outcomes_repeated"]) == (3, 2)
    assert [leased.index for leased in await lease_many(feed, 3)] == [0, 1, 5]


@pytest.mark.parametrize("lease_id", ["0.1", "1.0", "nonsense", ""])
async def test_an_outcome_of_no_lease_of_ours_is_refused(tmp_path, lease_id):
    feed = make_feed(tmp_path)
    leased = await feed.lease_task("w")
    with pytest.raises(ValueError, match="never handed out"):
        await feed.finish_task(replace(outcome_of(leased), lease_id=lease_id))


async def test_an_outcome_of_another_prompt_is_refused(tmp_path):
    feed = make_feed(tmp_path)
    leased = await feed.lease_task("w")
    with pytest.raises(ValueError, match="falsify"):
        await feed.finish_task(replace(outcome_of(leased), prompt_id="task-other"))
    await feed.finish_task(outcome_of(leased))
    assert len(await feed.ledger()) == 1


# -- restarts ---------------------------------------------------------------------------------------------------------


async def test_a_restarted_feed_goes_on_where_the_last_one_stopped(tmp_path):
    undisturbed, feed = make_feed(tmp_path / "a"), make_feed(tmp_path / "b")
    for step in range(14):
        one, other = await undisturbed.lease_task("w"), await feed.lease_task("w")
        assert (one.task, one.index, one.row) == (other.task, other.index, other.row)
        await undisturbed.finish_task(outcome_of(one, correct=step % 3))
        await feed.finish_task(outcome_of(other, correct=step % 3))
        if step == 3:
            await feed.snapshot()
        if step % 4 == 3:
            feed = make_feed(tmp_path / "b", seed=0)
    assert await feed.ledger() == await undisturbed.ledger() == read_ledger(tmp_path / "b")
    assert await feed.stats() == await undisturbed.stats()


async def test_workers_that_outlive_the_feed_keep_their_leases(tmp_path):
    clock = Clock()
    leased = await make_feed(tmp_path, clock=clock).lease_task("w")
    clock.now += 500
    feed = make_feed(tmp_path, clock=clock, lease_timeout_s=600)
    clock.now += 599  # the silence of the feed is not the worker's
    assert (await feed.lease_task("v")).index == 1
    await feed.finish_task(outcome_of(leased))
    await feed.finish_task(outcome_of(leased))
    assert [row.groups for row in await feed.ledger()] == [1]


async def test_an_epoch_that_began_keeps_its_order_although_the_function_changed(tmp_path):
    feed = make_feed(tmp_path, num_tasks=3, order=lambda ledger, epoch: [2, 0, 1])
    assert names(await lease_many(feed, 2)) == ["task-2", "task-0"]
    feed = make_feed(tmp_path, num_tasks=3, order=lambda ledger, epoch: [1, 2])
    assert names(await lease_many(feed, 3)) == ["task-1", "task-1", "task-2"]


async def test_leases_whose_record_was_lost_are_told_from_new_ones(tmp_path):
    """Power was lost with the last events unwritten; a worker elsewhere still answers for them."""
    feed = make_feed(tmp_path)
    journal = tmp_path / "journal.jsonl"
    opened = journal.read_bytes()
    lost = await feed.lease_task("w")
    journal.write_bytes(opened)
    feed = make_feed(tmp_path)
    again = await feed.lease_task("w")
    assert again.task == lost.task
    assert again.lease_id != lost.lease_id
    await feed.finish_task(outcome_of(lost))
    await feed.finish_task(outcome_of(again))
    assert [row.groups for row in await feed.ledger()] == [1]


async def test_a_damaged_snapshot_is_replaced_by_the_whole_journal(tmp_path):
    feed = make_feed(tmp_path)
    for leased in await lease_many(feed, 3):
        await feed.finish_task(outcome_of(leased))
    cut_end(Path(await feed.snapshot()))
    assert read_ledger(tmp_path) == await feed.ledger()
    assert (await make_feed(tmp_path).lease_task("w")).index == 3


async def test_a_damaged_journal_is_an_error(tmp_path):
    await lease_many(make_feed(tmp_path), 3)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[1].replace(b"epoch", b"epoxx", 1), *lines[2:]]))
    with pytest.raises(CorruptLogError):
        make_feed(tmp_path)


async def test_other_tasks_than_the_run_began_with_are_refused(tmp_path):
    await make_feed(tmp_path, num_tasks=5).lease_task("w")
    with pytest.raises(ValueError, match=r"over 5 tasks .* these are 6 "):
        make_feed(tmp_path, num_tasks=6)
    with pytest.raises(ValueError, match="digest"):
        TaskFeed(tasks_of(5)[::-1], seed=0, log_dir=tmp_path)


async def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    feed = make_feed(tmp_path)
    leased = await feed.lease_task("w")

    def full(event, *, durable=False):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(feed._journal, "append", full)
        for call in (feed.lease_task("w"), feed.finish_task(outcome_of(leased)), feed.release_worker("w")):
            with pytest.raises(OSError, match="no space"):
                await call
    assert (await feed.stats())["tasks_leased"] == 1
    assert await feed.ledger() == []
    await feed.finish_task(outcome_of(leased))
    assert (await feed.lease_task("w")).index == 1
    assert [row.groups for row in read_ledger(tmp_path)] == [1]


# -- any sequence of events -------------------------------------------------------------------------------------------

NUM_TASKS = 3
TIMEOUT_S = 10.0


def easy_last(ledger: PromptLedger, epoch: int):
    """An order that depends on ledger and epoch: solved prompts last, direction alternating."""
    positions = range(NUM_TASKS) if epoch % 2 else range(NUM_TASKS - 1, -1, -1)
    return sorted(positions, key=lambda i: ledger.row(f"task-{i}").successes > 0)


class FeedMachine(RuleBasedStateMachine):
    """Leases, outcomes (also late, repeated), expiry, lost workers, snapshots and crashes against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.feed = self.build()
        self.issued: list[LeasedTask] = []
        self.granted: dict[str, tuple[str, float]] = {}
        """Lease id to worker and time, of leases somebody works on; what is overdue is found at the next lease."""
        self.counted: dict[str, Outcome] = {}
        self.stream: list[str] = []
        """The model's stream so far: tasks by index."""
        self.epochs = itertools.count()
        self.planned: list[str] = []
        self.solved: set[str] = set()

    def build(self) -> TaskFeed:
        return make_feed(
            self.folder.name, num_tasks=NUM_TASKS, order=easy_last, clock=self.clock, lease_timeout_s=TIMEOUT_S
        )

    def teardown(self) -> None:
        self.feed.close()
        self.folder.cleanup()

    def run(self, call):
        """The feed never waits, so one step of its coroutines is all of it."""
        with pytest.raises(StopIteration) as stopped:
            call.send(None)
        return stopped.value.value

    # -- model ------------------------------------------------------------------------------------------------------

    def done(self) -> set[int]:
        return {leased.index for leased in self.issued if leased.lease_id in self.counted}

    def running(self) -> set[int]:
        return {leased.index for leased in self.issued if leased.lease_id in self.granted}

    def lapse(self) -> None:
        for lease_id, (_, at) in list(self.granted.items()):
            if self.clock.now - at >= TIMEOUT_S:
                del self.granted[lease_id]

    def expected(self) -> tuple[int, str, int]:
        """Index, task and attempt of the next lease."""
        self.lapse()
        open_items = set(range(len(self.stream))) - self.done() - self.running()
        if open_items:
            index = min(open_items)
        else:
            index = len(self.stream)
            if not self.planned:
                epoch = next(self.epochs)
                direction = 1 if epoch % 2 else -1
                hard_first = [f"task-{i}" for i in range(NUM_TASKS)][::direction]
                self.planned = [t for t in hard_first if t not in self.solved]
                self.planned += [t for t in hard_first if t in self.solved]
            self.stream.append(self.planned.pop(0))
        return index, self.stream[index], sum(leased.index == index for leased in self.issued)

    # -- events -----------------------------------------------------------------------------------------------------

    @rule(worker=st.sampled_from("abc"))
    def lease(self, worker):
        leased = self.run(self.feed.lease_task(worker))
        assert (leased.index, leased.task.task_id, leased.attempt) == self.expected()
        assert leased.lease_id not in {earlier.lease_id for earlier in self.issued}
        self.issued.append(leased)
        self.granted[leased.lease_id] = (worker, self.clock.now)

    @precondition(lambda self: self.issued)
    @rule(data=st.data(), correct=st.integers(0, 2), version=st.integers(0, 3))
    def finish(self, data, correct, version):
        """Any lease ever handed out: running, lapsed, or answered before."""
        leased = data.draw(st.sampled_from(self.issued[-12:]))
        outcome = outcome_of(leased, correct=correct, version=version, group=f"g{len(self.counted)}")
        self.run(self.feed.finish_task(outcome))
        if leased.lease_id not in self.counted:
            self.counted[leased.lease_id] = outcome
            self.granted.pop(leased.lease_id, None)
            if correct:
                self.solved.add(leased.task.task_id)

    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(worker=st.sampled_from("abc"))
    def release(self, worker):
        self.run(self.feed.release_worker(worker))
        for lease_id, (holder, _) in list(self.granted.items()):
            if holder == worker:
                del self.granted[lease_id]

    @rule()
    def snapshot(self):
        json.dumps(self.run(self.feed.snapshot()))

    @rule(torn=st.sampled_from([b"", b"0", b'deadbeef {"kind":"leased","lea']))
    def crash(self, torn):
        """The process dies, perhaps while it writes an event that nobody was told about."""
        self.feed.close()
        with (Path(self.folder.name) / "journal.jsonl").open("ab") as file:
            file.write(torn)
        self.feed = self.build()
        self.granted = {lease_id: (worker, self.clock.now) for lease_id, (worker, _) in self.granted.items()}

    # -- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_what_was_counted(self):
        rows = {row.prompt_id: row for row in self.run(self.feed.ledger())}
        groups = Counter(outcome.prompt_id for outcome in self.counted.values())
        assert {prompt: row.groups for prompt, row in rows.items()} == dict(groups)
        for prompt, row in rows.items():
            mine = [outcome for outcome in self.counted.values() if outcome.prompt_id == prompt]
            newest = max(outcome.version or 0 for outcome in mine)
            latest = [outcome for outcome in mine if outcome.version == newest][-1]
            assert row.successes == sum(outcome.num_correct for outcome in mine)
            assert (row.last_version, row.last_rate) == (newest, latest.num_correct / 2)

    @invariant()
    def nothing_is_lost(self):
        """Each item of the stream is finished, being worked on, or going to be handed out again."""
        stats = self.run(self.feed.stats())
        unfinished = set(range(len(self.stream))) - self.done()
        assert stats["stream_position"] == len(self.stream)
        assert stats["tasks_leased"] == len(self.granted)
        assert stats["tasks_waiting"] == len(unfinished - self.running())


FeedMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestAnySequenceOfEvents = FeedMachine.TestCase


async def test_a_repeated_request_gets_the_same_lease_also_from_a_rebuilt_feed(tmp_path):
    feed = make_feed(tmp_path, num_tasks=4)
    first = await feed.lease_task("w", "request-1")
    assert await feed.lease_task("w", "request-1") == first
    assert (await feed.lease_task("w", "request-2")).index == 1
    feed.close()
    assert (await make_feed(tmp_path, num_tasks=4).lease_task("w", "request-1")).lease_id == first.lease_id


async def test_donors_wait_until_prompts_are_answered_right_often_enough(tmp_path):
    answer = make_trajectory(score=1.0)
    for folder, threshold, expected in (("low", 0.3, 1), ("high", 0.6, 0)):
        feed = TaskFeed(tasks_of(2), seed=0, log_dir=tmp_path / folder, tables={"own_past"}, donors_from=threshold)
        leases = [await feed.lease_task("w") for _ in range(2)]
        assert [leased.donors for leased in leases] == [{"own_past": ()}] * 2
        for leased, correct in zip(leases, (4, 0), strict=True):
            outcome = Outcome(
                lease_id=leased.lease_id,
                group_id=f"g{correct}",
                prompt_id=leased.task.task_id,
                num_scored=4,
                num_correct=correct,
                mean_score=None,
                version=PolicyVersion(1),
                fate="stored",
                stashed={"own_past": (answer,)},
            )
            await feed.finish_task(outcome)
        feed.close()
        feed = TaskFeed(tasks_of(2), seed=0, log_dir=tmp_path / folder, tables={"own_past"}, donors_from=threshold)
        donors = [len((await feed.lease_task("w")).donors["own_past"]) for _ in range(2)]
        assert max(donors) == expected
