"""The queue of a child pool: batches, stragglers, resizing, waits, groups."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.config import RewardComponent, RewardConfig
from rewards.isolation import ChildPool
from rewards.task import Task
from rewards.verdict import Status

TASK = Task(task_id="t", prompt="p", reference="5")
POISON = "tests.rewards.poison"


@pytest.fixture
def pool_of():
    pools = []

    def make(verifier="obeys", options=None, scope="sample", **limits):
        component = {"verifier": f"{POISON}:{verifier}", "options": options or {}, "scope": scope}
        defaults = {"components": {"right": component}, "timeout_s": 20.0, "num_retries": 0}
        pools.append(ChildPool(RewardConfig.model_validate(defaults | limits)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


async def judge_all(pool, answers):
    return await asyncio.gather(*(pool.judge(answer, TASK) for answer in answers))


async def test_quick_answers_travel_together_and_come_back_in_order(pool_of):
    pool = pool_of("fair", processes_per_worker=2)
    await judge_all(pool, ["5"] * 8)  # learns that they are quick
    sizes = []
    batch_size = pool._batch_size
    pool._batch_size = lambda: sizes.append(batch_size()) or sizes[-1]
    verdicts = await judge_all(pool, [str(i % 7) for i in range(300)])
    assert [v.score for v in verdicts] == [float(i % 7 == 5) for i in range(300)]
    assert 1 < max(sizes) <= 32


async def test_a_hang_in_a_batch_costs_only_itself(pool_of):
    pool = pool_of(processes_per_worker=2, timeout_s=2.0)
    await pool.start()
    await judge_all(pool, ["fine"] * 8)
    start = time.monotonic()
    hang = asyncio.ensure_future(pool.judge("hang", TASK))
    others = await judge_all(pool, ["fine"] * 40)
    assert time.monotonic() - start < 1.5  # its companions were judged elsewhere, before it was killed
    assert [v.score for v in others] == [1.0] * 40
    assert (await hang).status is Status.TIMEOUT
    assert pool.stats()["killed"] == 1


async def test_a_death_in_a_batch_costs_only_itself(pool_of):
    pool = pool_of()
    await judge_all(pool, ["fine"] * 8)
    verdicts = await judge_all(pool, ["fine", "exit", "fine", "exit", *["fine"] * 12])
    assert [v.score for v in verdicts] == [1.0, None, 1.0, None, *[1.0] * 12]
    assert pool.num_deaths == 2


async def test_a_straggler_is_also_asked_for_elsewhere(pool_of, tmp_path):
    pool = pool_of("slow_once", {"marker": str(tmp_path / "m")}, processes_per_worker=2, hedge_after_s=0.3)
    await pool.start()
    start = time.monotonic()
    verdict = await pool.judge("x", TASK)
    assert (verdict.score, pool.stats()["hedged"]) == (1.0, 1)
    assert time.monotonic() - start < 5


async def test_without_hedging_the_straggler_is_waited_for(pool_of, tmp_path):
    pool = pool_of("slow_once", {"marker": str(tmp_path / "m")}, processes_per_worker=2, timeout_s=1.0)
    assert (await pool.judge("x", TASK)).status is Status.TIMEOUT


async def test_a_pool_grows_and_shrinks_while_it_works(pool_of):
    pool = pool_of()
    calls = [asyncio.ensure_future(pool.judge("sleep", TASK)) for _ in range(6)]
    await asyncio.sleep(0.05)
    assert (pool.stats()["queued"], pool.stats()["running"]) == (5, 1)
    pool.resize(3)
    await asyncio.gather(*calls[:3])
    pool.resize(1)
    assert [v.score for v in await asyncio.gather(*calls)] == [1.0] * 6
    stats = pool.stats()
    assert (stats["processes"], stats["queued"], stats["running"], stats["judged"]) == (1, 0, 0, 6)
    assert stats["service_s"] >= 6 * 0.3
    assert stats["wait_p95_s"] > 0.3
    assert [v.score for v in await judge_all(pool, ["fine"])] == [1.0]
    with pytest.raises(ValueError, match="at least one process, got 0"):
        pool.resize(0)


async def test_who_waits_too_long_has_no_score(pool_of):
    pool = pool_of(max_wait_s=0.2)
    await pool.start()
    verdicts = await judge_all(pool, ["sleep", "sleep", "sleep"])
    assert [v.status for v in verdicts] == [Status.SCORED, Status.INFRA_ERROR, Status.INFRA_ERROR]
    assert "max_wait_s=0.2" in verdicts[1].extras["error"]


async def test_a_caller_that_gives_up_disturbs_nobody(pool_of):
    pool = pool_of()
    calls = [asyncio.ensure_future(pool.judge("sleep", TASK)) for _ in range(3)]
    await asyncio.sleep(0.1)
    calls[0].cancel()
    calls[1].cancel()
    assert (await calls[2]).score == 1.0


async def test_a_group_is_judged_as_a_whole(pool_of):
    parts = await pool_of("votes", scope="group").judge_group(["a", "b", "a", "a"], TASK)
    assert [p["right"].score for p in parts] == [0.75, 0.25, 0.75, 0.75]
    assert (await pool_of("votes", scope="group").judge("a", TASK)).score == 1.0


async def test_a_group_verifier_that_fails_masks_the_group(pool_of):
    pool = pool_of("obeys_all", scope="group", timeout_s=1.0)
    forgot = await pool.judge_group(["a", "forget one"], TASK)
    assert [p["right"].status for p in forgot] == [Status.INFRA_ERROR] * 2
    assert "1 results for 2 answers" in forgot[0]["right"].extras["error"]
    hung = await pool.judge_group(["a", "hang"], TASK)
    assert [(p["right"].status, p["right"].score) for p in hung] == [(Status.TIMEOUT, 0.0)] * 2


BOMBS = [
    r"\boxed{9^{9^{9^{9}}}}", r"\boxed{100000!}", r"\boxed{" + "9" * 100_000 + "}", r"\boxed{" + "(" * 50_000 + "}",
    r"\boxed{\sum_{n=1}^{10^9} n}", "\\boxed{" * 20_000, r"\boxed{\int_0^1 x^{x^x} dx}", "<think>" * 50_000,
    r"\boxed{" + r"\frac{1}{" * 500 + "2" + "}" * 501, r"\boxed{5^{5^{5^{5^{5^5}}}}}",
]  # fmt: skip


async def test_a_hundred_parser_bombs_and_then_an_honest_answer():
    config = RewardConfig(
        components={"right": RewardComponent(verifier="math")}, timeout_s=10.0, processes_per_worker=2
    )
    pool = ChildPool(config)
    try:
        await pool.start()
        task = Task(task_id="t", prompt="p", reference=r"\frac{1}{2}")
        bombs = [pool.judge(f"{' ' * i}{BOMBS[i % len(BOMBS)]}", task) for i in range(100)]
        for verdict in await asyncio.gather(*bombs):
            assert verdict.score == 0.0, verdict
            assert verdict.seconds < 5.0
        assert (await pool.judge(r"so \boxed{0.5}", task)).score == 1.0
    finally:
        pool.close()


async def test_a_thousand_questions_at_once_keep_their_answers_apart(pool_of):
    pool = pool_of("length", processes_per_worker=2)
    verdicts = await judge_all(pool, ["x" * n for n in range(1000)])
    assert [v.score for v in verdicts] == [float(n) for n in range(1000)]


async def test_an_answer_that_ends_every_child_is_not_handed_round_for_ever(pool_of):
    pool = pool_of(processes_per_worker=2, hedge_after_s=0.001)
    verdicts = await asyncio.wait_for(judge_all(pool, ["exit"] * 3), 60)
    assert [v.status for v in verdicts] == [Status.INFRA_ERROR] * 3
    assert pool.num_deaths <= 6


@settings(max_examples=5, deadline=None)
@given(
    answers=st.lists(st.sampled_from(["fine", "exit", "shout", "hang"]), max_size=5),
    sizes=st.lists(st.integers(1, 3), max_size=3),
    hedge=st.sampled_from([None, 0.05]),
)
def test_every_question_gets_exactly_one_verdict(answers, sizes, hedge):
    """Whatever the mix, the sizes on the way and the hedging: each verdict is the answer's own."""
    component = RewardComponent(verifier=f"{POISON}:obeys")
    limits = {"timeout_s": 1.5, "num_retries": 0, "hedge_after_s": hedge, "processes_per_worker": 2}
    pool = ChildPool(RewardConfig(components={"right": component}, **limits))
    expected = {"fine": Status.SCORED, "shout": Status.SCORED, "exit": Status.INFRA_ERROR, "hang": Status.TIMEOUT}

    async def run():
        calls = [asyncio.ensure_future(pool.judge(answer, TASK)) for answer in answers]
        for size in sizes:
            pool.resize(size)
            await asyncio.sleep(0.01)
        return await asyncio.gather(*calls)

    try:
        verdicts = asyncio.run(run())
        stats = pool.stats()
    finally:
        pool.close()
    assert [v.status for v in verdicts] == [expected[answer] for answer in answers]
    assert (stats["queued"], stats["judged"]) == (0, sum(a != "exit" for a in answers))
