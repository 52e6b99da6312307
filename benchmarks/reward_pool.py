"""B11: verdicts/s of a reward worker with one child per core over as many bare processes, each with its own share.

Both run the same verifier, a chain of hashes that takes a given CPU time, on the same answers. Ours scores groups as
rollout workers ask for them, through queue, JSON and rubric, nothing from the cache; a bare process calls the function
in a loop and is told only which answers are its own. Starting the processes is on neither's clock.

    python -m benchmarks.reward_pool --repeats 12
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import os
import subprocess
import sys
import time

from actors.reward_worker import RewardWorker
from benchmarks.paired import alternate_async, print_result
from rewards.config import RewardComponent, RewardConfig
from rewards.task import Task

BAR = 0.9
COSTS_MS = (10, 100)
GROUP_SIZE = 8
BLOCK = b"x" * 4096


def hash_chain(answer: str, task: Task, *, rounds: int) -> float:
    """The verifier: CPU work that grows with `rounds`, and a score that depends on the answer."""
    digest = answer.encode()
    for _ in range(rounds):
        digest = hashlib.sha256(digest + BLOCK).digest()
    return digest[0] / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0, help="work of one repeat on all cores (default: 4)")
    parser.add_argument("--costs", type=float, nargs="+", default=COSTS_MS, metavar="MS", help="CPU of one verdict")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rate = rounds_per_second()
    for cost in options.costs:
        rounds = max(1, round(rate * cost / 1000))
        num_groups = max(2 * cores, round(options.seconds * cores / (cost / 1000) / GROUP_SIZE))
        asyncio.run(compare(cores, rounds, num_groups, cost, options.repeats))


def rounds_per_second() -> float:
    """How much of the verifier's work a core does in a second, the best of five."""
    task, best = Task(task_id="t", prompt=""), 0.0
    for _ in range(5):
        start = time.process_time()
        hash_chain("a", task, rounds=20_000)
        best = max(best, 20_000 / (time.process_time() - start))
    return best


async def compare(cores: int, rounds: int, num_groups: int, cost_ms: float, repeats: int) -> None:
    component = RewardComponent(verifier=f"{__spec__.name}:hash_chain", options={"rounds": rounds})
    config = RewardConfig(
        components={"work": component}, processes_per_worker=cores, cache_size=0, timeout_s=120.0
    )  # fmt: skip
    worker, numbers = RewardWorker(config), itertools.count()
    await worker.start()
    bare = [BareProcess(rounds, share, cores) for share in range(cores)]

    async def ours() -> float:
        batch = next(numbers)
        tasks = [Task(task_id=f"{batch}/{i}", prompt="") for i in range(num_groups)]
        start = time.perf_counter()
        verdicts = await asyncio.gather(*(worker.score(t, [str(n) for n in range(GROUP_SIZE)], ()) for t in tasks))
        seconds = time.perf_counter() - start
        if any(verdict.score is None for group in verdicts for verdict in group):
            raise RuntimeError("the pool left answers without a score")
        return seconds

    async def reference() -> float:
        start = time.perf_counter()
        for process in bare:
            process.begin(num_groups * GROUP_SIZE)
        for process in bare:
            process.finish()
        return time.perf_counter() - start

    try:
        ratio = await alternate_async(ours, reference, repeats=repeats)
    finally:
        await worker.close()
        for process in bare:
            process.close()
    count = num_groups * GROUP_SIZE
    print_result("B11 reward_pool", ratio, BAR, cores=cores, verdict_ms=cost_ms, verdicts=count,
                 verdicts_per_s=round(count / ratio.ours_s, 1))  # fmt: skip


class BareProcess:
    """An interpreter that runs the verifier over its share of the answers, whenever it is told how many there are."""

    def __init__(self, rounds: int, share: int, num_shares: int) -> None:
        command = [sys.executable, "-m", __spec__.name.replace("reward_pool", "bare_verifier")]
        command += [str(rounds), str(share), str(num_shares)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.finish()

    def begin(self, num_answers: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{num_answers}\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "done\n":
            raise RuntimeError("a bare process ended early")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    main()
