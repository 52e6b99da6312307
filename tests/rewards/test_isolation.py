import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rewards.child import ChildStartError
from rewards.config import RewardComponent, RewardConfig
from rewards.isolation import ChildPool
from rewards.task import ExpertResponse, Task
from rewards.verdict import Status

TASK = Task(
    task_id="t",
    prompt=({"role": "user", "content": "how many?"},),
    reference="5",
    metadata={"entry": {"numbers": [1, 2], "name": "\ud800 lone surrogate"}},
    expert=(ExpertResponse(text="5", logprobs=(-0.5,)),),
    tags={"coverage": "covered"},
)
POISON = "tests.rewards.poison"


def make_pool(verifier="obeys", options=None, **settings):
    component = RewardComponent(verifier=f"{POISON}:{verifier}", options=options or {})
    return ChildPool(RewardConfig(components={"right": component}, **({"timeout_s": 20.0} | settings)))


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.02)


def seen_pids(folder):
    return {int(path.name.partition("-")[0]) for path in Path(folder).iterdir()}


@pytest.fixture
def pool_of():
    pools = []

    def make(*args, **settings):
        pools.append(make_pool(*args, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


async def test_task_and_verdict_cross_unchanged(pool_of):
    verdict = await pool_of("shows_task").judge("é \ud800 \x00", TASK)
    assert (verdict.score, verdict.status, dict(verdict.components)) == (0.5, Status.SCORED, {"right": 0.5})
    assert verdict.extras["prompt"] == [dict(TASK.prompt[0])]
    assert verdict.extras["metadata"] == TASK.metadata
    assert verdict.extras["tags"] == TASK.tags
    assert verdict.extras["answer"] == "é \ud800 \x00"
    assert verdict.extras["pid"] != os.getpid()


async def test_endless_loop_is_a_floor_timeout_that_is_not_retried(pool_of, tmp_path):
    pool = pool_of(options={"folder": str(tmp_path)}, timeout_s=0.5, floor=-0.25, num_retries=3)
    await pool.start()
    start = time.monotonic()
    verdict = await pool.judge("hang", TASK)
    assert 0.5 <= time.monotonic() - start < 3
    assert (verdict.score, verdict.status) == (-0.25, Status.TIMEOUT)
    assert len(list(tmp_path.iterdir())) == 1  # one attempt
    wait_until_gone(seen_pids(tmp_path))
    assert pool.num_deaths == 0
    assert (await pool.judge("fine", TASK)).score == 1.0  # in a new child
    assert len(seen_pids(tmp_path)) == 2


async def test_native_code_that_never_yields_is_killed_too(pool_of, tmp_path):
    pool = pool_of(options={"folder": str(tmp_path)}, timeout_s=0.5)
    assert (await pool.judge("hang in native code", TASK)).status is Status.TIMEOUT
    wait_until_gone(seen_pids(tmp_path))


async def test_what_a_verifier_started_dies_with_it(pool_of, tmp_path):
    pool = pool_of(options={"folder": str(tmp_path)}, timeout_s=1.0)
    assert (await pool.judge("leave a process", TASK)).status is Status.TIMEOUT
    assert len(seen_pids(tmp_path)) == 2
    wait_until_gone(seen_pids(tmp_path))


async def test_child_that_dies_every_time_is_an_infra_error_after_the_retries(pool_of, tmp_path):
    pool = pool_of(options={"folder": str(tmp_path)}, num_retries=2)
    verdict = await pool.judge("exit", TASK)
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)
    assert "exit status 0" in verdict.extras["error"]
    assert len(seen_pids(tmp_path)) == 3
    assert pool.num_deaths == 3
    assert (await pool.judge("fine", TASK)).score == 1.0


async def test_child_that_dies_once_is_retried(pool_of, tmp_path):
    pool = pool_of("dies_once", options={"marker": str(tmp_path / "marker")}, num_retries=1)
    assert (await pool.judge("x", TASK)).score == 1.0
    assert pool.num_deaths == 1


async def test_child_killed_from_outside_is_retried(pool_of, tmp_path):
    pool = pool_of(options={"folder": str(tmp_path)})
    call = asyncio.ensure_future(pool.judge("sleep", TASK))
    while not list(tmp_path.iterdir()):  # noqa: ASYNC110 - the child is another process
        await asyncio.sleep(0.01)
    os.kill(next(iter(seen_pids(tmp_path))), signal.SIGKILL)
    assert (await call).score == 1.0
    assert pool.num_deaths == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the address-space limit is a Linux feature")
async def test_memory_hog_is_an_infra_error_and_the_pool_goes_on(pool_of):
    pool = pool_of(memory_mb=1024)
    verdict = await pool.judge("eat memory", TASK)
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)
    assert "MemoryError" in verdict.extras["error"]
    assert (await pool.judge("fine", TASK)).score == 1.0


@pytest.mark.parametrize("verifier", ["raises", "exits_politely", "not_a_number", "infinite", "text", "nothing"])
async def test_poison_verifiers_are_masked(pool_of, verifier):
    verdict = await pool_of(verifier).judge("x", TASK)
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)


async def test_extras_that_json_cannot_carry_are_an_infra_error(pool_of):
    verdict = await pool_of("unwritable_extras").judge("x", TASK)
    assert (verdict.score, verdict.status) == (None, Status.INFRA_ERROR)
    assert "JSON" in verdict.extras["error"]


async def test_metadata_that_json_cannot_carry_is_a_fault_of_the_task(pool_of):
    verdict = await pool_of().judge("x", Task(task_id="odd", prompt="p", metadata={"set": {1}}))
    assert (verdict.score, verdict.status) == (None, Status.INVALID_GOLD)


async def test_printing_disturbs_nothing(pool_of):
    assert (await pool_of().judge("shout", TASK)).score == 1.0


async def test_as_many_answers_at_a_time_as_children(pool_of, tmp_path):
    pool = pool_of(options={"folder": str(tmp_path)}, processes_per_worker=2)
    await pool.start()
    start = time.monotonic()
    verdicts = await asyncio.gather(*(pool.judge("sleep", TASK) for _ in range(6)))
    elapsed = time.monotonic() - start
    assert [v.score for v in verdicts] == [1.0] * 6
    assert len(seen_pids(tmp_path)) == 2
    assert 0.9 <= elapsed < 1.7  # three rounds of 0.3 s; one at a time would need 1.8 s


async def test_waiting_for_a_child_is_not_on_the_clock(pool_of):
    pool = pool_of(timeout_s=1.0)
    verdicts = await asyncio.gather(*(pool.judge("sleep", TASK) for _ in range(6)))  # the last waits 1.5 s
    assert [v.status for v in verdicts] == [Status.SCORED] * 6


async def test_a_busy_event_loop_costs_no_answer_its_verdict(pool_of):
    pool = pool_of(timeout_s=0.6)
    await pool.start()
    call = asyncio.ensure_future(pool.judge("sleep", TASK))
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251 - the point of the test
    assert (await call).status is Status.SCORED


def test_works_off_the_main_thread_and_under_several_loops(pool_of):
    pool, scores = pool_of(), []

    def work():
        scores.append(asyncio.run(pool.judge("fine", TASK)).score)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert scores == [1.0, 1.0]


async def test_closing_ends_calls_in_flight_and_leaves_no_process(tmp_path):
    pool = make_pool(options={"folder": str(tmp_path)}, processes_per_worker=2)
    calls = [asyncio.ensure_future(pool.judge("hang", TASK)) for _ in range(4)]
    while len(seen_pids(tmp_path)) < 2:  # noqa: ASYNC110 - the children are other processes
        await asyncio.sleep(0.01)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    assert [(v.score, v.status) for v in await asyncio.gather(*calls)] == [(None, Status.CANCELLED)] * 4
    wait_until_gone(seen_pids(tmp_path), seconds=1.0)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        await pool.judge("fine", TASK)


async def test_a_verifier_that_cannot_be_imported_stops_the_start_with_its_reason():
    pool = ChildPool(RewardConfig(components={"right": RewardComponent(verifier="no_such_pkg:score")}))
    with pytest.raises(ChildStartError, match=r"reward.components.right: .*no module 'no_such_pkg'"):
        await pool.start()


async def test_too_little_memory_to_start_says_which_setting_to_raise():
    pool = make_pool(memory_mb=64)
    with pytest.raises(ChildStartError):
        await pool.start()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_children_outlive_no_parent_not_even_while_busy(tmp_path):
    script = (
        "import asyncio; from tests.rewards.test_isolation import TASK, make_pool\n"
        f"asyncio.run(make_pool(options={{'folder': {str(tmp_path)!r}}}).judge('hang', TASK))"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    ) as parent:
        deadline = time.monotonic() + 30
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.kill()
    wait_until_gone(seen_pids(tmp_path))


def test_this_process_keeps_its_own_limits(pool_of):
    before = resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)
    assert asyncio.run(pool_of().judge("fine", TASK)).score == 1.0
    assert (resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)) == before
