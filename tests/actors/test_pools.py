import asyncio

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
