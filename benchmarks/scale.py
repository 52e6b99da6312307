"""CPU seconds of all our processes per sample, and samples per second, from one to many simulated rollout workers.

Each worker is a real RolloutWorker over a simulated engine in a Ray actor, offered a fixed rate of samples of 512
tokens; replay cache, task feed and weight store are the real ones, each in an actor. The learner is simulated: it
leases, commits and publishes a version number. Ray's own daemons are reported apart. No worker process imports torch.

    python -m benchmarks.scale --workers 1 4 16 64 --seconds 30
    python -m benchmarks.scale --workers 256 --per-process 8 --seconds 30
    python -m benchmarks.scale --replay-groups 100000        # memory of one stored group

Prints a JSON line per size: CPU milliseconds per sample (bar: 3) and efficiency, samples per second over the rate that
was offered (bar: 0.9).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig, WeightsConfig
from actors.engines.protocol import WeightUpdate
from actors.engines.simulated import SimulatedEngine
from actors.engines.simulation import simulated_logprobs
from actors.finisher import Finisher
from actors.remote import ActorPort
from actors.replay.cache import ReplayCache
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.task_feed import TaskFeed
from actors.weights import WeightStore
from benchmarks.paired import environment
from rewards.task import Message, Task
from rewards.trajectory import Group, PolicyVersion, Source, Trajectory
from rewards.verdict import Verdict
from tests.builders import make_group

ANSWER_TOKENS = 512
PROMPT_TOKENS = 64
GROUP_SIZE = 8
RATE = 2.0
"""Samples per second that each worker is offered: its engine gives no more."""
CPU_MS_BAR, EFFICIENCY_BAR = 3.0, 0.9
NUM_CALLS = 1 << 16


class PlainRenderer:
    """Renderer of a model whose tokens are numbers: what a tokenizer costs is not the subject here."""

    stop_token_ids = (2,)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [3 + ord(letter) % 97 for letter in str(messages[-1]["content"])][:PROMPT_TOKENS]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids[:8]))


class Scoring:
    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        return [Verdict.scored(float(len(answer) % 2)) for answer in answers]


class NoReport:
    async def report(self, role: str, values: Any, *, step: int | None = None) -> None:
        return

    async def event(self, kind: str, details: Any) -> None:
        return


class Measured:
    """A process that says what it has used."""

    async def cpu_s(self) -> tuple[int, float, bool]:
        """Process id, CPU seconds so far, and whether torch was imported."""
        used = os.times()
        return os.getpid(), used.user + used.system, "torch" in sys.modules


class Replay(Measured, ReplayCache):
    def __init__(self, folder: str, groups_per_update: int) -> None:
        config = ReplayConfig(groups_per_update=groups_per_update, max_age=2)
        super().__init__(config, directory=Path(folder), seed=0)


class Feed(Measured, TaskFeed):
    def __init__(self, folder: str) -> None:
        tasks = [Task(task_id=f"t{i}", prompt=f"{i:>{PROMPT_TOKENS}}", reference=str(i)) for i in range(4096)]
        super().__init__(tasks, seed=0, log_dir=Path(folder))


class Store(Measured, WeightStore):
    def __init__(self, folder: str) -> None:
        super().__init__(Path(folder) / "weights", state_dir=Path(folder) / "state", keep_versions=2)


class Workers(Measured):
    """Rollout workers of one process, with one event loop."""

    def __init__(self, names: Sequence[str], feed: Any, replay: Any, store: Any) -> None:
        options = {"length": ANSWER_TOKENS, "tokens_per_s": RATE * ANSWER_TOKENS / GROUP_SIZE}
        engine = EngineConfig(kind="simulated", max_model_len=1024, max_num_seqs=GROUP_SIZE, options=options)
        config = RolloutConfig(
            group_size=GROUP_SIZE,
            concurrent_groups=2,
            engine=engine,
            sampling=SamplingConfig(max_new_tokens=ANSWER_TOKENS + 1),
        )
        ports = RolloutPorts(tasks=feed, replay=replay, scoring=Scoring(), weights=store, report=NoReport())
        renderer: Any = PlainRenderer()
        self._workers = [
            RolloutWorker(
                name, config, WeightsConfig(), SimulatedEngine(engine), renderer, Finisher(()), ports, seed=number
            )
            for number, name in enumerate(names)
        ]

    async def start(self) -> None:
        await asyncio.gather(*(worker.start("no model") for worker in self._workers))

    async def run(self) -> None:
        await asyncio.gather(*(worker.run() for worker in self._workers))


async def publish(replay: Any, store: Any, step: int) -> None:
    """A version without files, with `step` committed steps; its probe is what a simulated engine gives."""
    version: PolicyVersion = await store.issue_version(step)
    await replay.announce_version(version, step)
    probe = (3, 7, 8, 9, 1)
    update = WeightUpdate(
        version=version,
        step=step,
        incarnation=0,
        path="",
        digest="",
        probe_token_ids=probe,
        probe_logprobs=tuple(simulated_logprobs(probe, version).tolist()),
    )
    await store.publish(update)


class Learner:
    """Leases, commits and publishes as fast as batches come; counts their samples."""

    def __init__(self, replay: ActorPort, store: ActorPort) -> None:
        self._replay, self._store = replay, store
        self.num_samples = 0

    async def run(self) -> None:
        """Until cancelled."""
        step = 0
        while True:
            lease = await self._replay.lease(step)
            await self._replay.commit(step, lease.lease_id)
            self.num_samples += sum(len(group.trajectories) for group in lease.groups)
            step += 1
            await publish(self._replay, self._store, step)
            if step % 8 == 0:
                await self._replay.seal(step - 1)
                await self._replay.snapshot()


def actor(cls: type, *args: Any) -> ActorPort:
    return ActorPort(ray.remote(cls).options(num_cpus=0, max_concurrency=NUM_CALLS).remote(*args))


async def measured(num_workers: int, per_process: int, seconds: float, warmup_s: float, folder: Path) -> dict[str, Any]:
    """One size: start everything, let it run in, measure."""
    groups_per_update = max(1, num_workers)
    replay = actor(Replay, str(folder / "replay"), groups_per_update)
    feed, store = actor(Feed, str(folder / "tasks")), actor(Store, str(folder))
    names = [f"rollout-{i}" for i in range(num_workers)]
    workers = [
        actor(Workers, names[first : first + per_process], feed, replay, store)
        for first in range(0, num_workers, per_process)
    ]
    learner = Learner(replay, store)
    await publish(replay, store, 0)
    await asyncio.gather(*(worker.start() for worker in workers))
    loops = [asyncio.ensure_future(learner.run()), *(asyncio.ensure_future(worker.run()) for worker in workers)]
    try:
        await asyncio.sleep(warmup_s)
        before, samples, began = await used([replay, feed, store, *workers]), learner.num_samples, time.monotonic()
        daemons = daemon_s()
        await asyncio.sleep(seconds)
        passed, num = time.monotonic() - began, learner.num_samples - samples
        after = await used([replay, feed, store, *workers])
        for loop in loops:
            if loop.done():
                loop.result()
        daemons = daemon_s() - daemons
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    if any(has_torch for _, _, has_torch in await asyncio.gather(*(worker.cpu_s() for worker in workers))):
        raise RuntimeError("a simulated worker process has imported torch: its memory and start would be measured")
    cpu = {pid: after[pid] - before[pid] for pid in after}
    return {
        "workers": num_workers,
        "per_process": per_process,
        "seconds": round(passed, 1),
        "samples": num,
        "samples_per_s": round(num / passed, 2),
        "offered_per_s": RATE * num_workers,
        "efficiency": round(num / passed / (RATE * num_workers), 4),
        "cpu_ms_per_sample": round(1000 * sum(cpu.values()) / max(num, 1), 3),
        "replay_ms_per_sample": round(1000 * cpu[(await replay.cpu_s())[0]] / max(num, 1), 3),
        "ray_daemons_ms_per_sample": round(1000 * daemons / max(num, 1), 3),
    }


async def used(ports: Sequence[ActorPort]) -> dict[int, float]:
    """CPU seconds by process, this one's learner included."""
    own = os.times()
    answers = await asyncio.gather(*(port.cpu_s() for port in ports))
    return {os.getpid(): own.user + own.system} | {pid: seconds for pid, seconds, _ in answers}


def daemon_s() -> float:
    """CPU seconds of Ray's own processes below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if not process.name().startswith("ray::"):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def replay_memory(num_groups: int) -> dict[str, Any]:
    """Growth of this process per stored group of eight answers, blocks beyond the memory limit on disk."""
    rng = np.random.default_rng(0)
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="braid-scale-") as folder:
        cache = ReplayCache(ReplayConfig(quotas={"expert": "1/2"}), directory=Path(folder), seed=0)

        async def fill() -> float:
            before = process.memory_info().rss
            for first in range(0, num_groups, 256):
                await cache.preload([stored(i, rng) for i in range(first, min(first + 256, num_groups))])
            return (process.memory_info().rss - before) / num_groups

        began = time.monotonic()
        per_group = asyncio.run(fill())
        return {
            "groups": num_groups,
            "bytes_per_group": round(per_group),
            "groups_per_s": round(num_groups / (time.monotonic() - began)),
        }


def stored(number: int, rng: np.random.Generator) -> Group:
    """Eight answers of 512 tokens that an expert gave."""
    answers = [tuple(rng.integers(3, 259, ANSWER_TOKENS).tolist()) for _ in range(GROUP_SIZE)]
    return make_group(group_id=f"e{number}", source=Source.EXPERT, scores=[1.0] * GROUP_SIZE, answers=answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--per-process", type=int, default=1, help="workers in one process")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--warmup", type=float, default=15.0, help="seconds before it")
    parser.add_argument("--replay-groups", type=int, default=0, help="measure the memory of this many groups instead")
    options = parser.parse_args()
    if options.replay_groups:
        print(json.dumps({"bench": "replay_memory", **replay_memory(options.replay_groups), **environment()}))
        return
    for num_workers in options.workers:
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            with tempfile.TemporaryDirectory(prefix="braid-scale-") as folder:
                size = measured(num_workers, options.per_process, options.seconds, options.warmup, Path(folder))
                values = asyncio.run(size)
        finally:
            ray.shutdown()
        bars = {"cpu_ms_bar": CPU_MS_BAR, "efficiency_bar": EFFICIENCY_BAR, "load": round(os.getloadavg()[0], 1)}
        print(json.dumps({"bench": "scale", **values, **bars, **environment()}), flush=True)


if __name__ == "__main__":
    main()
