"""The reward worker over real children and verifiers that misbehave."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from actors.reward_worker import RewardWorker, TooManyUnscoredError
from rewards.child import ChildStartError
from rewards.config import RewardComponent, RewardConfig, WatchConfig
from rewards.task import Task
from rewards.trajectory import FinishReason
from rewards.verdict import Status, Verdict
from rewards.verifiers.length import SAMPLE_FACTS
from tests.builders import make_trajectory

TASK = Task(task_id="t", prompt="how many?", reference="5", metadata={"unit": "apples"})
POISON = "tests.rewards.poison"


def make_worker(verifier: str, options: dict[str, Any] | None = None, *, window: int = 256, **settings: Any):
    """A worker with one child and no retries unless a test says otherwise."""
    component = RewardComponent(
        verifier=verifier if verifier == "soft_overlong" else f"{POISON}:{verifier}", options=options or {}
    )
    defaults = {"timeout_s": 20.0, "num_retries": 0, "max_unscored_fraction": 0.9}
    return RewardWorker(RewardConfig(components={"right": component}, **(defaults | settings)), window=window)


@pytest.fixture
async def worker_of():
    workers = []

    def make(*args: Any, **settings: Any) -> RewardWorker:
        workers.append(make_worker(*args, **settings))
        return workers[-1]

    yield make
    for worker in workers:
        await worker.close()


def num_judged(folder) -> int:
    """`obeys` leaves a file for each answer it sees."""
    return len(list(folder.iterdir()))


async def test_one_verdict_per_answer_in_order(worker_of):
    worker = worker_of("fair", processes_per_worker=2)
    verdicts = await worker.score(TASK, ["5", "6", "5", "", "five"], ())
    assert [v.score for v in verdicts] == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert await worker.score(TASK, [], ()) == []
    stats = await worker.stats()
    assert (stats["samples"], stats["status/scored"], stats["unscored_fraction"]) == (5, 5, 0.0)
    assert stats["too_many_unscored"] is None


async def test_equal_answers_are_judged_once_and_remembered(worker_of, tmp_path):
    worker = worker_of("obeys", {"folder": str(tmp_path)})
    first = await worker.score(TASK, ["a", "b", "a"], ())
    assert num_judged(tmp_path) == 2
    again = await worker.score(TASK, ["b", "a"], ())
    assert num_judged(tmp_path) == 2
    assert [v.score for v in (*first, *again)] == [1.0] * 5
    assert [v.extras.get("cached", False) for v in (*first, *again)] == [False] * 3 + [True] * 2
    assert [v.seconds for v in again] == [0.0, 0.0]  # nobody worked
    stats = await worker.stats()
    assert (stats["samples"], stats["cached"]) == (5, 2)


async def test_another_task_is_another_question(worker_of, tmp_path):
    worker = worker_of("obeys", {"folder": str(tmp_path)})
    others = [
        replace(TASK, task_id="u"),
        replace(TASK, reference="6"),
        replace(TASK, prompt="how few?"),
        replace(TASK, metadata={"unit": "pears"}),
    ]
    for task in (TASK, *others):
        await worker.score(task, ["a"], ())
    assert num_judged(tmp_path) == 5


async def test_samples_of_other_lengths_are_judged_apart(worker_of):
    worker = worker_of("soft_overlong", {"max_tokens": 8, "buffer_tokens": 4})
    samples = [make_trajectory(answer=range(4, 4 + length)) for length in (4, 6, 8, 4)]
    verdicts = await worker.score(TASK, ["same text"] * 4, samples)
    assert [v.score for v in verdicts] == [0.0, -0.5, -1.0, 0.0]
    again = await worker.score(TASK, ["same text"], samples[1:2])
    assert (again[0].score, again[0].extras["cached"]) == (-0.5, True)


async def test_a_verifier_sees_the_facts_of_its_sample(worker_of):
    sample = make_trajectory(answer=(4, 5, 6), finish_reason=FinishReason.LENGTH, truncated=True, terminated=False)
    (verdict,) = await worker_of("shows_task").score(TASK, ["x"], [sample])
    facts = {"num_tokens": 3, "truncated": True, "finish_reason": "length"}
    assert verdict.extras["metadata"] == {"unit": "apples", SAMPLE_FACTS: facts}


@pytest.mark.parametrize(
    ("answer", "timeout_s", "status"), [("exit", 20.0, Status.INFRA_ERROR), ("hang", 0.5, Status.TIMEOUT)]
)
async def test_what_a_moment_caused_is_not_remembered(worker_of, tmp_path, answer, timeout_s, status):
    worker = worker_of("obeys", {"folder": str(tmp_path)}, timeout_s=timeout_s)
    await worker.start()
    for _ in range(2):
        (verdict,) = await worker.score(TASK, [answer], ())
        assert verdict.status is status
        assert verdict.score == (0.0 if status is Status.TIMEOUT else None)  # a hang is the model's own fault
    stats = await worker.stats()
    assert (stats["cached"], stats[f"status/{status.value}"]) == (0, 2)
    if status is Status.INFRA_ERROR:
        assert (num_judged(tmp_path), stats["child_deaths"], stats["unscored_fraction"]) == (2, 2, 1.0)


async def test_a_poisoned_answer_costs_its_siblings_nothing(worker_of):
    worker = worker_of("obeys", processes_per_worker=2)
    verdicts = await worker.score(TASK, ["fine", "exit", "shout", "good"], ())
    assert [v.score for v in verdicts] == [1.0, None, 1.0, 1.0]


async def test_too_many_samples_without_a_score_stop_the_run_with_the_reason(worker_of):
    worker = worker_of("raises", window=16, max_unscored_fraction=0.5)
    await worker.score(TASK, ["a", "b", "c"], ())  # too few to judge the verifier by
    assert (await worker.stats())["too_many_unscored"] is None
    with pytest.raises(
        TooManyUnscoredError, match=r"100% of the last 4 samples .* infra_error 4.*lost column"
    ) as error:
        await worker.score(TASK, ["d"], ())
    assert "reward.max_unscored_fraction=0.5" in str(error.value)
    assert (await worker.stats())["too_many_unscored"] == str(error.value)


async def test_only_recent_samples_decide(worker_of):
    worker = worker_of("obeys", window=8, max_unscored_fraction=0.5, processes_per_worker=2)
    await worker.score(TASK, ["exit"], ())
    assert (await worker.stats())["unscored_fraction"] == 1.0
    await worker.score(TASK, [f"fine {i}" for i in range(3)], ())
    assert (await worker.stats())["unscored_fraction"] == 0.25
    await worker.score(TASK, [f"good {i}" for i in range(8)], ())
    assert (await worker.stats())["unscored_fraction"] == 0.0


async def test_repeated_failures_of_one_answer_count_as_samples(worker_of):
    worker = worker_of("judge_error", window=16, max_unscored_fraction=0.5)
    with pytest.raises(TooManyUnscoredError, match="judge_error 8"):
        await worker.score(TASK, ["same"] * 8, ())


async def test_closing_answers_who_waits_and_is_nobodys_fault(tmp_path):
    worker = make_worker("obeys", {"folder": str(tmp_path)}, window=4, max_unscored_fraction=0.1)
    call = asyncio.create_task(worker.score(TASK, ["hang", "fine"], ()))
    while not num_judged(tmp_path):  # noqa: ASYNC110 - the child is another process
        await asyncio.sleep(0.01)
    await worker.close()
    assert {v.status for v in await call} == {Status.CANCELLED}
    assert (await worker.stats())["unscored_fraction"] == 0.0


async def test_answers_and_samples_must_match(worker_of):
    with pytest.raises(ValueError, match="2 answers but 1 trajectories"):
        await worker_of("fair").score(TASK, ["a", "b"], [make_trajectory()])


async def test_a_verifier_nobody_can_import_stops_the_start():
    with pytest.raises(ChildStartError, match="no attribute 'fiar': did you mean 'fair'"):
        await make_worker("fiar").start()


@pytest.mark.parametrize(
    ("metadata", "status"),
    [({1: "one", "a": "b"}, Status.SCORED), ({("a", "b"): 1}, Status.INVALID_GOLD), ({"s": {1}}, Status.INVALID_GOLD)],
)
async def test_odd_metadata_is_a_fault_of_the_task_at_most(worker_of, metadata, status):
    worker = worker_of("fair")
    verdicts = await worker.score(replace(TASK, metadata=metadata), ["5", "5"], ())
    assert [v.status for v in verdicts] == [status] * 2


def pools_config(**pools: dict[str, Any]) -> RewardConfig:
    """`right` in the pool of its own named first, `size` in the section's own."""
    components = {
        "right": RewardComponent(verifier=f"{POISON}:obeys", pool=next(iter(pools))),
        "size": RewardComponent(verifier=f"{POISON}:length", weight=0.5, gate="right"),
    }
    return RewardConfig.model_validate(
        {"components": components, "pools": pools, "timeout_s": 20.0, "num_retries": 0, "max_unscored_fraction": 0.9}
    )


@pytest.fixture
async def worker_with():
    workers = []

    def make(config: RewardConfig, **settings: Any) -> RewardWorker:
        workers.append(RewardWorker(config, **settings))
        return workers[-1]

    yield make
    for worker in workers:
        await worker.close()


async def test_components_of_several_pools_make_one_verdict(worker_with):
    worker = worker_with(pools_config(code={"timeout_s": 0.5, "processes_per_worker": 2}))
    fine, hang, gone = await worker.score(TASK, ["fine", "hang", "exit"], ())
    assert (fine.score, dict(fine.components)) == (1.0 + 0.5 * 4, {"right": 1.0, "size": 4.0})
    assert (hang.score, hang.status, hang.extras["gated"]) == (0.0, Status.TIMEOUT, ["size"])
    assert (gone.score, gone.status) == (None, Status.INFRA_ERROR)
    stats = await worker.stats()
    assert (stats["pool/code/processes"], stats["pool/default/processes"]) == (2, 1)
    assert stats["pool/code/killed"] == 1
    assert [s["task_id"] for s in stats["slowest"]["code"]] == ["t"] * 3
    assert stats["slowest"]["code"][0]["statuses"] == {"right": "timeout"}


async def test_a_stuck_pool_does_not_hold_up_another(worker_with):
    worker = worker_with(pools_config(code={"timeout_s": 60.0}))
    await worker.start()
    stuck = asyncio.ensure_future(worker.score(TASK, ["hang"], ()))
    while (await worker.stats())["pool/default/judged"] < 1:  # noqa: ASYNC110 - the child is another process
        await asyncio.sleep(0.01)
    assert (await worker.stats())["pool/code/running"] == 1
    worker.resize(2, pool="code")
    assert [v.score for v in await worker.score(TASK, ["fine"], ())] == [3.0]
    with pytest.raises(ValueError, match=r"no reward pool 'cod': choose from \['code', 'default'\]"):
        worker.resize(2, pool="cod")
    await worker.close()
    assert (await stuck)[0].status is Status.CANCELLED


async def test_a_pool_remembers_no_more_than_it_may(worker_of, tmp_path):
    worker = worker_of("obeys", {"folder": str(tmp_path)}, cache_size=2)
    for answers in (["a", "b"], ["c"], ["b", "c"], ["a"]):
        await worker.score(TASK, answers, ())
    assert num_judged(tmp_path) == 4  # a was forgotten for c
    assert (await worker.stats())["pool/default/cache_entries"] == 2


async def test_votes_see_the_whole_group_and_are_combined_with_the_rest(worker_with):
    components = {
        "votes": RewardComponent(verifier=f"{POISON}:votes", scope="group"),
        "right": RewardComponent(verifier=f"{POISON}:fair", weight=10.0),
    }
    worker = worker_with(RewardConfig(components=components, timeout_s=20.0))
    verdicts = await worker.score(TASK, ["5", "6", "5", "5"], ())
    assert [v.score for v in verdicts] == [10.75, 0.25, 10.75, 10.75]
    assert list(verdicts[0].components) == ["votes", "right"]
    assert await worker.score(TASK, [], ()) == []


class Endpoint:
    """A judge outside of this process, with versions."""

    version = 1

    def __init__(self) -> None:
        self.calls = 0

    async def start(self) -> None: ...

    async def judge_parts(self, answer, task):
        self.calls += 1
        return {"right": Verdict.scored(float(self.version))}

    async def judge_group(self, answers, task):
        return []

    def resize(self, num_processes) -> None: ...

    def stats(self):
        return {}

    def close(self) -> None: ...


async def test_a_new_version_of_a_judge_judges_anew(worker_with):
    endpoint = Endpoint()
    worker = worker_with(pools_config(judge={}), backends={"judge": endpoint})
    for version, score, calls in ((1, 1.0, 1), (1, 1.0, 1), (2, 2.0, 2)):
        endpoint.version = version
        (verdict,) = await worker.score(TASK, ["five"], ())
        assert (verdict.components["right"], endpoint.calls) == (score, calls)
    with pytest.raises(ValueError, match="backend for pool 'juge', which judges nothing"):
        RewardWorker(pools_config(judge={}), backends={"juge": endpoint})


async def test_live_samples_are_watched_and_those_of_an_evaluation_are_not(worker_with):
    fair = RewardComponent(verifier=f"{POISON}:fair")
    watch = WatchConfig(window=2, max_length_drift=1.0)
    worker = worker_with(RewardConfig(components={"right": fair}, timeout_s=20.0, watch=watch))
    await worker.score(TASK, ["5", "6"], ())
    assert "watch/length_mean" not in await worker.stats()
    for length in (4, 12):
        samples = [make_trajectory(answer=range(4, 4 + length))] * 2
        await worker.score(TASK, ["5", "6"], samples)
    stats = await worker.stats()
    assert (stats["watch/length_mean"], stats["watch/component/right_mean"]) == (12.0, 0.5)
    assert stats["alarms"].keys() == {"length"}
