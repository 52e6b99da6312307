"""The rollout worker over the simulated engine, the real task feed and the real weight store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engines.protocol import EngineError
from actors.engines.simulation import Faults, simulated_logprobs
from actors.finisher import FREE_RULE_ATTEMPTS
from actors.ports import StalledError
from actors.renderer import Renderer
from actors.rules.actions import Redo
from actors.transports.shared_memory import delete_unless_read
from actors.weights import ProbeFailedError, write_version
from rewards.task import Task
from rewards.trajectory import Group, PolicyVersion, Role
from rewards.verdict import Status, Verdict
from tests.actors.fakes import FakeReplay, save_character_tokenizer
from tests.actors.rollout_bench import GROUP_SIZE, PROBE, Bench, running, tasks_of, until

HERE = "tests.actors.test_rollout_worker"


@pytest.fixture(scope="session")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(str(save_character_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


# -- what a group is --------------------------------------------------------------------------------------------------


async def test_every_ticket_becomes_one_scored_group_of_the_next_task(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer, num_tickets=6).start()
    await bench.worker.run()
    bench.assert_every_ticket_is_settled()
    assert [g.ticket_id for g in sorted(bench.replay.groups, key=lambda g: str(g.ticket_id))] == [
        f"ticket-{i}" for i in range(6)
    ]
    by_index = {int(g.group_id.split(".")[1]): g for g in bench.replay.groups}
    assert sorted(by_index) == list(range(6))
    for group in bench.replay.groups:
        assert len(group.trajectories) == group.num_asked == GROUP_SIZE
        assert all(t.verdict is not None for t in group.trajectories)
    assert await bench.groups_counted() == 6
    assert (await bench.worker.stats())["groups_stored"] == 6


async def test_a_member_is_what_engine_and_scoring_said(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer, num_tickets=1).start()
    await bench.worker.run()
    (group,) = bench.replay.groups
    ((task, answers, scored),) = bench.scoring.calls
    prompt = renderer.prompt_ids(task.messages)
    for member, answer, shown in zip(group.trajectories, answers, scored, strict=True):
        assert member.token_ids[: len(prompt)].tolist() == prompt
        assert renderer.decode(member.token_ids[len(prompt) :]) == answer
        assert member.score == len(answer) % 2
        expected = simulated_logprobs(member.token_ids.tolist(), PolicyVersion(0))[len(prompt) :]
        assert np.array_equal(member.behavior_logprobs[len(prompt) :], expected)
        assert np.isnan(member.behavior_logprobs[: len(prompt)]).all()
        assert (member.roles[len(prompt) :] == Role.SAMPLED).all()
        assert shown.trajectory_id == member.trajectory_id


async def test_what_is_sampled_for_a_task_depends_on_no_worker_and_no_order(tmp_path, renderer):
    answers = []
    for name, concurrent in (("a", 1), ("b", 5)):
        bench = await Bench(tmp_path / name, renderer, worker_id=name, concurrent_groups=concurrent).start()
        await bench.worker.run()
        by_index = sorted(bench.replay.groups, key=lambda g: int(g.group_id.split(".")[1]))
        answers.append([[t.token_ids.tolist() for t in g.trajectories] for g in by_index])
    assert answers[0] == answers[1]
    assert len({tuple(member) for group in answers[0] for member in group}) > GROUP_SIZE


async def test_log_probs_that_make_no_sense_reach_the_cache_unchanged(tmp_path, renderer):
    """The cache refuses and counts such a group; a worker that repaired it would hide a broken engine."""
    faults = Faults(nan_logprobs_every=3, wrong_length_every=4)
    bench = await Bench(tmp_path, renderer, num_tickets=1, concurrent_groups=1, length=6, faults=faults).start()
    await bench.worker.run()
    (group,) = bench.replay.groups
    unknown = [np.flatnonzero(np.isnan(t.behavior_logprobs[t.sampled_mask])).tolist() for t in group.trajectories]
    assert unknown == [[], [], [3], [6]]


# -- a ticket always ends ---------------------------------------------------------------------------------------------


async def test_a_dying_engine_gives_its_tickets_back(tmp_path, renderer):
    faults = Faults(die_after_tokens=150)
    bench = await Bench(
        tmp_path, renderer, num_tickets=50, concurrent_groups=3, tokens_per_s=4000.0, length=10, faults=faults
    ).start()
    with pytest.raises(EngineError, match="scripted fault"):
        await bench.worker.run()
    bench.assert_every_ticket_is_settled()
    fates = list(bench.replay.fates.values())
    assert "put" in fates
    assert "failed" in fates
    assert bench.report.of_kind("engine_failed")[0]["worker"] == "rollout-0"
    assert await bench.groups_counted() == fates.count("put")


class FailingOnce:
    """A port's method that raises the n-th time."""

    def __init__(self, method: Any, number: int, error: Exception) -> None:
        self._method, self._number, self._error = method, number, error

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._number -= 1
        if self._number == 0:
            raise self._error
        return await self._method(*args, **kwargs)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize(
    ("box", "method"),
    [
        ("feed", "lease_task"),
        ("engine", "generate"),
        ("scoring", "score"),
        ("replay", "put"),
        ("feed", "finish_task"),
    ],
)
async def test_whatever_fails_every_ticket_is_put_or_returned_once(tmp_path, renderer, box, method, number):
    bench = await Bench(tmp_path, renderer, num_tickets=8, concurrent_groups=3, tokens_per_s=5000.0).start()
    target = getattr(bench, box)
    setattr(target, method, FailingOnce(getattr(target, method), number, RuntimeError(f"{method} is down")))
    with pytest.raises(RuntimeError, match=f"{method} is down"):
        await bench.worker.run()
    bench.assert_every_ticket_is_settled()
    assert set(bench.replay.fates.values()) <= {"put", "failed"}
    assert list(bench.replay.fates.values()).count("put") == len(bench.replay.groups)


@pytest.mark.parametrize("stage", ["ticket", "weights", "generate", "score"])
async def test_a_cancelled_worker_gives_its_tickets_back(tmp_path, renderer, stage):
    replay = FakeReplay(
        20, max_outstanding=0 if stage == "ticket" else 3, min_step=lambda _: 9 if stage == "weights" else 0
    )
    speed = 1.0 if stage == "generate" else None
    bench = await Bench(tmp_path, renderer, replay=replay, concurrent_groups=3, tokens_per_s=speed).start()
    if stage == "score":
        bench.scoring.gate.clear()
    async with running(bench):
        if stage == "ticket":
            await until(lambda: replay.waiting == 3)
        elif stage == "score":
            await until(lambda: len(bench.scoring.calls) == 3)
        elif stage == "generate":
            await until(lambda: len(bench.engine._running) == 3 * GROUP_SIZE)
        else:
            await until(lambda: replay.outstanding == 3)
            await asyncio.sleep(0.02)
    bench.assert_every_ticket_is_settled()
    assert set(replay.fates.values()) <= {"failed"}
    assert len(replay.fates) == (0 if stage == "ticket" else 3)
    assert replay.waiting == 0
    assert (await bench.engine.stats())["running"] == 0


async def test_a_worker_that_starts_gives_back_what_its_name_held(tmp_path, renderer):
    bench = Bench(tmp_path, renderer, num_tickets=1)
    left_behind = await bench.feed.lease_task("rollout-0")
    of_another = await bench.feed.lease_task("rollout-1")
    await bench.start()
    await bench.worker.run()
    (group,) = bench.replay.groups
    assert (group.prompt_id, group.group_id) == (left_behind.task.task_id, "ticket-0.0.0")
    assert of_another.index == 1
    assert (await bench.feed.stats())["tasks_leased"] == 1


# -- rules ------------------------------------------------------------------------------------------------------------


async def test_a_dropped_group_gives_its_ticket_back_with_the_reason_and_is_counted(tmp_path, renderer):
    """A ticket that did not come back would hold a place of the flow for ever, and the next task would never start."""
    replay = FakeReplay(6, max_outstanding=1)
    bench = await Bench(
        tmp_path, renderer, replay=replay, rules=["drop_constant"], judge=lambda task, answer: float(task.reference)
    ).start()
    await bench.worker.run()
    assert replay.fates == {f"ticket-{i}": "dropped:constant" for i in range(6)}
    assert replay.groups == []
    assert await bench.groups_counted() == 6
    assert (await bench.worker.stats())["groups_dropped_constant"] == 6


async def test_a_group_the_cache_refuses_is_not_counted_as_stored(tmp_path, renderer):
    replay = FakeReplay(3)
    replay.refusal = "too_old"
    bench = await Bench(tmp_path, renderer, replay=replay).start()
    await bench.worker.run()
    stats = await bench.worker.stats()
    assert (stats["groups_refused_too_old"], "groups_stored" in stats) == (3, False)
    assert await bench.groups_counted() == 3


def scores_by_sampling(*levels: float):
    """A judge that pays each sampling of a group its own score, the last one for ever."""
    calls = iter([*levels] + [levels[-1]] * 100)

    def judge(task: Task, answer: str) -> float:
        if judge.left == 0:  # type: ignore[attr-defined]
            judge.left, judge.score = GROUP_SIZE, next(calls)  # type: ignore[attr-defined]
        judge.left -= 1  # type: ignore[attr-defined]
        return judge.score  # type: ignore[attr-defined]

    judge.left = 0  # type: ignore[attr-defined]
    return judge


async def one_group(tmp_path: Path, renderer: Renderer, rules: Sequence[Any], judge: Any) -> tuple[Bench, list[Group]]:
    bench = await Bench(tmp_path, renderer, num_tickets=1, rules=rules, judge=judge, length=5).start()
    await bench.worker.run()
    bench.assert_every_ticket_is_settled()
    return bench, bench.replay.groups


async def test_redo_samples_anew_on_the_same_ticket(tmp_path, renderer):
    rule = {"rule": "redo_failed", "max": 3}
    bench, (group,) = await one_group(tmp_path, renderer, [rule], scores_by_sampling(0.0, 0.0, 1.0))
    assert (group.ticket_id, group.group_id, group.history) == ("ticket-0", "ticket-0.0.2", {"redo": 2})
    assert group.scores == [1.0] * GROUP_SIZE
    first, second, third = (call[1] for call in bench.scoring.calls)
    assert len({first, second, third}) == 3  # other draws, or it would fail again
    assert len(bench.replay.issued) == 1
    assert await bench.groups_counted() == 1
    assert (await bench.feed.ledger())[0].attempts == GROUP_SIZE  # superseded attempts are not outcomes


async def test_redo_ends_at_its_limit_and_the_next_rule_decides(tmp_path, renderer):
    rules = [{"rule": "redo_failed", "max": 2}, "drop_constant"]
    bench, groups = await one_group(tmp_path, renderer, rules, scores_by_sampling(0.0))
    assert groups == []
    assert bench.replay.fates == {"ticket-0": "dropped:constant"}
    assert len(bench.scoring.calls) == 3


async def test_grow_adds_members_on_the_same_ticket(tmp_path, renderer):
    rule = {"rule": "grow_failed", "num": GROUP_SIZE, "max": 2}
    bench, (group,) = await one_group(tmp_path, renderer, [rule], scores_by_sampling(0.0, 1.0))
    assert (group.ticket_id, group.group_id, group.history) == ("ticket-0", "ticket-0.0.0", {"grow": 1})
    assert group.num_asked == len(group.trajectories) == 2 * GROUP_SIZE
    assert group.scores == [0.0] * GROUP_SIZE + [1.0] * GROUP_SIZE
    assert [t.trajectory_id for t in group.trajectories] == [f"ticket-0.0.0/{i}" for i in range(2 * GROUP_SIZE)]
    assert len({tuple(t.token_ids.tolist()) for t in group.trajectories}) == 2 * GROUP_SIZE
    assert (await bench.feed.ledger())[0].attempts == 2 * GROUP_SIZE


async def test_each_sampling_of_a_group_gets_its_greedy_answer(tmp_path, renderer):
    """Two samplings of four answers and a greedy one each; the kept group holds those of the second."""
    rule = {"rule": "redo_failed", "max": 1}
    judge = scores_by_sampling(0.0, 0.0, 1.0, 1.0)
    bench = Bench(tmp_path, renderer, num_tickets=1, rules=[rule], judge=judge, length=5, greedy_baseline=True)
    await (await bench.start()).worker.run()
    bench.assert_every_ticket_is_settled()
    (group,) = bench.replay.groups
    assert (group.group_id, group.history) == ("ticket-0.0.1", {"redo": 1})
    assert [t.sampling.temperature for t in group.trajectories] == [1.0] * GROUP_SIZE + [0.0]
    assert [t.trajectory_id for t in group.trajectories] == [f"ticket-0.0.1/{i}" for i in range(GROUP_SIZE + 1)]
    assert len(bench.scoring.calls) == 4


def redo_for_ever(group, leased, row) -> Redo:
    return Redo(leased.context)


async def test_a_rule_that_never_has_enough_is_stopped(tmp_path, renderer):
    bench, groups = await one_group(tmp_path, renderer, [f"{HERE}:redo_for_ever"], lambda task, answer: 1.0)
    assert groups == []
    assert bench.replay.fates == {"ticket-0": "dropped:attempts_exhausted"}
    assert len(bench.scoring.calls) == 1 + FREE_RULE_ATTEMPTS


async def test_unscored_members_are_not_attempts(tmp_path, renderer):
    def judge(task: Task, answer: str) -> Verdict:
        return Verdict.unscored(Status.INFRA_ERROR)

    bench, _ = await one_group(tmp_path, renderer, ["drop_unscored"], judge)
    assert bench.replay.fates == {"ticket-0": "dropped:unscored"}
    (row,) = await bench.feed.ledger()
    assert (row.groups, row.attempts, row.last_rate) == (1, 0, None)


# -- weights ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_sampled_before_the_weights_are_new_enough_for_the_ticket(tmp_path, renderer):
    replay = FakeReplay(2, min_step=lambda number: 3 * number)
    bench = await Bench(tmp_path, renderer, replay=replay).start()
    async with running(bench) as run:
        await until(lambda: len(replay.groups) == 1)
        await bench.publish(2)
        await until(lambda: bench.engine.version == 1)
        await asyncio.sleep(0.02)
        assert len(bench.scoring.calls) == 1
        newest = await bench.publish(3)
        await run
    assert [(g.ticket_id, g.oldest_version) for g in replay.groups] == [("ticket-0", 0), ("ticket-1", newest)]
    assert (await bench.worker.stats())["weights_wait_s"] > 0.02


async def test_an_update_lands_in_the_middle_of_an_answer_and_each_token_says_so(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer, num_tickets=1, tokens_per_s=300.0, length=30).start()
    async with running(bench) as run:
        await until(lambda: len(bench.engine._running) == GROUP_SIZE)
        await asyncio.sleep(0.03)
        await bench.publish(1)
        await run
    (group,) = bench.replay.groups
    for member in group.trajectories:
        assert member.versions is not None
        old, new = member.versions
        assert (old.version, new.version) == (0, 1)
        assert old.start == member.num_context_tokens
        assert (old.end, new.end) == (new.start, len(member.token_ids))
        for span in (old, new):
            expected = simulated_logprobs(member.token_ids.tolist(), span.version)[span.start : span.end]
            assert np.array_equal(member.behavior_logprobs[span.start : span.end], expected)
    assert group.oldest_version == 0


async def test_an_engine_that_does_not_run_the_new_weights_ends_the_worker(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer, num_tickets=20, tokens_per_s=100.0, length=20).start()
    async with running(bench) as run:
        await until(lambda: bench.replay.outstanding == 2)
        bench.engine.faults = Faults(ignore_updates=True)
        await bench.publish(1)
        with pytest.raises(ProbeFailedError):
            await run
    bench.assert_every_ticket_is_settled()
    assert bench.replay.groups == []


async def test_files_are_held_while_they_are_active_and_not_after_a_failed_activation(tmp_path, renderer):
    async def publish_files(step: int) -> Path:
        version = await bench.store.issue_version(step)
        probe = simulated_logprobs(PROBE, version)
        tensors = [("weight", torch.zeros(2))]
        update = write_version(
            tensors,
            tmp_path / "weights",
            version=version,
            step=step,
            incarnation=0,
            dtype="float32",
            probe_token_ids=PROBE,
            probe_logprobs=probe.tolist(),
        )
        await bench.store.publish(update)
        return Path(update.path)

    bench = Bench(tmp_path, renderer)
    first = await publish_files(0)
    await bench.worker.start("no model")
    assert not delete_unless_read(first)
    async with running(bench, sample=False) as run:
        bench.engine.faults = Faults(fail_updates=True)
        second = await publish_files(1)
        with pytest.raises(EngineError, match="half-way"):
            await run
    assert delete_unless_read(second)
    assert not delete_unless_read(first)
    await bench.worker.close()
    assert delete_unless_read(first)


async def test_a_worker_serves_nothing_before_its_first_activation(tmp_path, renderer):
    bench = Bench(tmp_path, renderer)
    starting = asyncio.create_task(bench.worker.start("no model"))
    await asyncio.sleep(0.02)
    assert not starting.done()
    await bench.publish(0)
    await starting
    assert bench.engine.version == 0
    assert [event["version"] for event in bench.report.of_kind("activated")] == [0]


async def test_a_worker_without_live_data_only_follows_the_weights(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer).start()
    async with running(bench, sample=False) as run:
        await bench.publish(1)
        await until(lambda: bench.engine.version == 1)
        assert not run.done()
        await bench.worker.drain()
        await run
    assert bench.replay.issued == []


# -- evaluation -------------------------------------------------------------------------------------------------------


async def test_an_evaluation_pins_one_version_while_newer_weights_wait(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer, num_tickets=10_000, tokens_per_s=2000.0, length=20).start()
    heldout = [replace(task, task_id=f"heldout-{task.task_id}") for task in tasks_of(6)]
    bench.scoring.holds = lambda task: task.task_id.startswith("heldout")
    bench.scoring.gate.clear()
    async with running(bench):
        evaluating = asyncio.create_task(bench.worker.evaluate(heldout, min_step=0, samples_per_task=2))
        await until(lambda: bench.worker._pin.locked())
        newer = await bench.publish(1)
        rollouts_before = len(bench.replay.fates)
        await until(lambda: len(bench.replay.fates) > rollouts_before + 20)  # rollouts go on meanwhile
        assert bench.engine.version == 0
        bench.scoring.gate.set()
        pinned = await evaluating
        await until(lambda: bench.engine.version == newer)
    assert (pinned.version, pinned.step) == (0, 0)
    assert [task.task_id for task in pinned.tasks] == [task.task_id for task in heldout]
    assert all(len(task.answers) == len(task.verdicts) == 2 for task in pinned.tasks)
    assert all(task.answers[0] == task.answers[1] for task in pinned.tasks)  # greedy
    bench.assert_every_ticket_is_settled()


async def test_an_evaluation_waits_for_the_step_it_is_about(tmp_path, renderer):
    bench = await Bench(tmp_path, renderer).start()
    evaluating = asyncio.create_task(bench.worker.evaluate(tasks_of(2), min_step=4))
    await bench.publish(3)
    await until(lambda: bench.engine.version == 1)
    assert not evaluating.done()
    await bench.publish(4)
    pinned = await evaluating
    assert (pinned.version, pinned.step) == (2, 4)


async def test_an_evaluation_names_the_version_that_answered(tmp_path, renderer):
    """Whoever waits to hear of an activation must not delay what the worker itself knows of it."""
    bench = await Bench(tmp_path, renderer).start()
    async with running(bench, sample=False), bench.worker._activated:
        await bench.publish(1)
        await until(lambda: bench.engine.version == 1 and not bench.worker._pin.locked())
        pinned = await bench.worker.evaluate(tasks_of(1), min_step=0)
    assert (pinned.version, pinned.step) == (1, 1)


# -- leaving ----------------------------------------------------------------------------------------------------------


async def test_draining_finishes_groups_in_flight_and_takes_no_more(tmp_path, renderer):
    replay = FakeReplay(100, max_outstanding=2)
    bench = await Bench(tmp_path, renderer, replay=replay, tokens_per_s=200.0, length=10).start()
    async with running(bench) as run:
        await until(lambda: len(bench.engine._running) == 2 * GROUP_SIZE)
        await bench.worker.drain()
        await run
    assert len(replay.issued) == 2
    assert list(replay.fates.values()) == ["put", "put"]
    assert await bench.groups_counted() == 2


@pytest.mark.parametrize("phase", ["load", "probe"])
async def test_a_worker_that_is_drained_while_its_weights_change_can_still_be_evaluated(tmp_path, renderer, phase):
    bench = await Bench(tmp_path, renderer, load_s=0.05).start()
    score = bench.engine.score

    async def slow_score(*args):
        await asyncio.sleep(0.05)
        return await score(*args)

    bench.engine.score = slow_score
    async with running(bench, sample=False) as run:
        await bench.publish(1)
        await until(lambda: bench.worker._pin.locked() if phase == "load" else bench.engine.version == 1)
        await bench.worker.drain()
        await run
    async with asyncio.timeout(5):
        pinned = await bench.worker.evaluate(tasks_of(1), min_step=1)
    assert (pinned.version, pinned.step) == (1, 1)


async def test_a_ticket_that_comes_after_draining_began_goes_back_unused(tmp_path, renderer):
    replay = FakeReplay(100, max_outstanding=0)
    bench = await Bench(tmp_path, renderer, replay=replay).start()
    async with running(bench) as run:
        await until(lambda: replay.waiting == 2)
        await bench.worker.drain()
        await replay.allow(5)
        await run
    assert list(replay.fates.values()) == ["drained", "drained"]
    assert bench.scoring.calls == []


async def test_nobody_minds_a_stall_while_leaving(tmp_path, renderer):
    replay = FakeReplay(100, max_outstanding=0)
    bench = await Bench(tmp_path, renderer, replay=replay).start()
    async with running(bench) as run:
        await until(lambda: replay.waiting == 2)
        await bench.worker.drain()
        await replay.stall()
        await run


async def test_a_stall_ends_the_worker_with_its_reason(tmp_path, renderer):
    replay = FakeReplay(100, max_outstanding=0)
    bench = await Bench(tmp_path, renderer, replay=replay).start()
    await replay.stall()
    with pytest.raises(StalledError, match="nobody commits"):
        await bench.worker.run()


async def test_greedy_requests_of_an_evaluation_do_not_use_up_sampling_seeds(tmp_path, renderer):
    """Evaluating in between must not change what is trained on."""
    with_evaluation = await Bench(tmp_path / "a", renderer).start()
    await with_evaluation.worker.evaluate(tasks_of(3), min_step=0)
    without = await Bench(tmp_path / "b", renderer).start()
    sampled = []
    for bench in (with_evaluation, without):
        await bench.worker.run()
        groups = sorted(bench.replay.groups, key=lambda g: g.group_id)
        sampled.append([[t.token_ids.tolist() for t in g.trajectories] for g in groups])
    assert sampled[0] == sampled[1]


async def test_weights_that_do_not_come_in_time_end_the_loop_with_the_reason(tmp_path, renderer):
    replay = FakeReplay(2, min_step=lambda _: 9)
    bench = await Bench(tmp_path, renderer, replay=replay, weights_timeout_s=0.05).start()
    with pytest.raises(StalledError, match=r"weights with 9 committed steps; those it runs have 0"):
        await bench.worker.run()
    bench.assert_every_ticket_is_settled()
