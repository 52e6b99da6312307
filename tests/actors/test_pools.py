import asyncio

import pytest

from actors.pools import ScorePool
from rewards.task import Task
from rewards.verdict import Status, Verdict

TASK = Task(task_id="t", prompt="p", reference="1")


class Judge:
    def __init__(self, score: float, gate: asyncio.Event | None = None) -> None:
        self.score_value, self.gate, self.calls = score, gate, 0

    async def score(self, task, answers, trajectories):
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        return [Verdict.scored(self.score_value) for _ in answers]


class DeadJudge:
    def __init__(self) -> None:
        self.calls = 0

    async def score(self, task, answers, trajectories):
        self.calls += 1
        raise ConnectionError("gone")


async def test_a_lost_worker_is_routed_around():
    dead, alive = DeadJudge(), Judge(1.0)
    verdicts = await ScorePool([dead, alive], lost=(ConnectionError,)).score(TASK, ["a", "b"], ())
    assert [v.score for v in verdicts] == [1.0, 1.0]
    assert dead.calls == 1


async def test_samples_are_masked_when_every_worker_is_lost():
    dead = DeadJudge()
    verdicts = await ScorePool([dead], lost=(ConnectionError,), num_retries=2).score(TASK, ["a"], ())
    assert verdicts[0].status is Status.INFRA_ERROR
    assert verdicts[0].score is None
    assert dead.calls == 3


async def test_the_least_busy_worker_is_asked():
    gate = asyncio.Event()
    busy, idle = Judge(0.0, gate), Judge(1.0)
    pool = ScorePool([busy, idle])
    first = asyncio.create_task(pool.score(TASK, ["a"], ()))
    await asyncio.sleep(0)
    assert [v.score for v in await pool.score(TASK, ["b"], ())] == [1.0]
    assert [v.score for v in await pool.score(TASK, ["c"], ())] == [1.0]
    gate.set()
    assert [v.score for v in await first] == [0.0]


async def test_a_slow_member_is_hedged_and_the_first_reply_counts():
    slow, quick = Judge(0.0, asyncio.Event()), Judge(1.0)
    pool = ScorePool([slow, quick], hedge_after_s=0.02)
    assert [v.score for v in await pool.score(TASK, ["a"], ())] == [1.0]
    assert (slow.calls, quick.calls, pool.num_hedged) == (1, 1, 1)
    await asyncio.sleep(0.01)  # the slow call is over as well: it was cancelled
    assert [m.pending for m in pool._members] == [0, 0]


async def test_a_hedge_to_a_lost_member_waits_for_the_slow_one():
    gate = asyncio.Event()
    slow, dead = Judge(1.0, gate), DeadJudge()
    call = asyncio.ensure_future(
        ScorePool([slow, dead], lost=(ConnectionError,), hedge_after_s=0.01).score(TASK, ["a"], ())
    )
    await asyncio.sleep(0.05)
    assert dead.calls == 1
    gate.set()
    assert [v.score for v in await call] == [1.0]


async def test_members_come_and_go_while_calls_run():
    gate = asyncio.Event()
    leaving, coming = Judge(0.5, gate), Judge(1.0)
    pool = ScorePool([leaving])
    call = asyncio.ensure_future(pool.score(TASK, ["a"], ()))
    await asyncio.sleep(0)
    pool.resize([coming])
    assert [v.score for v in await pool.score(TASK, ["b"], ())] == [1.0]
    gate.set()
    assert [v.score for v in await call] == [0.5]
    with pytest.raises(ValueError, match="at least one worker"):
        pool.resize([])
