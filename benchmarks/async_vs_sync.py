"""Asynchronous over synchronous training with long-tailed answers, against the bound of an independent simulation.

The real replay cache, task feed, weight store and rollout worker run in one process over a simulated engine; training
a batch is a pause of fixed length. What asynchrony gains is compared with the list-scheduling simulation of
`orchestrator/overlap.py`, which shares no code with them. Whole runs by turns.

    python -m benchmarks.async_vs_sync --repeats 6 --cut 3 --max-age 2

The ratio is updates per second at `--max-age` over those at 0; the bar is 0.9 of the simulated gain.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig, WeightsConfig
from actors.engines.simulated import SimulatedEngine
from actors.finisher import Finisher
from actors.replay.cache import ReplayCache
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.task_feed import TaskFeed
from actors.weights import WeightStore
from benchmarks.paired import Ratio, print_result, ratio_of
from benchmarks.scale import NoReport, PlainRenderer, Scoring, publish
from orchestrator.overlap import Workload, overlap_gain
from rewards.task import Task

MEAN_TOKENS = 200
WARM_UP_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One workload, and how fast its engine is: seconds a slot needs for an answer of mean length."""

    workload: Workload
    answer_s: float

    @property
    def train_s(self) -> float:
        """Of one batch: as long as sampling it takes with every slot busy."""
        work = self.workload
        draws = np.random.default_rng(0).lognormal(-(work.sigma**2) / 2, work.sigma, 100_000)
        mean = float(np.minimum(draws, work.cut).mean())
        return work.train_ratio * work.samples_per_update * mean * self.answer_s / work.slots


async def seconds_per_run(setup: Setup, max_age: int, num_steps: int, folder: Path) -> float:
    """Wall seconds of `num_steps` updates after the first few."""
    work = setup.workload
    replay_config = ReplayConfig(groups_per_update=work.groups_per_update, max_age=max_age)
    replay = ReplayCache(replay_config, directory=folder / "replay", seed=0)
    tasks = [Task(task_id=f"t{i}", prompt=f"{i:>64}", reference=str(i)) for i in range(1024)]
    feed = TaskFeed(tasks, seed=0, log_dir=folder / "tasks")
    store = WeightStore(folder / "weights", state_dir=folder / "state", keep_versions=2)
    longest = int(work.cut * MEAN_TOKENS)
    options = {"mean_length": float(MEAN_TOKENS), "sigma": work.sigma, "tokens_per_s": MEAN_TOKENS / setup.answer_s}
    engine = EngineConfig(kind="simulated", max_model_len=longest + 128, max_num_seqs=work.slots, options=options)
    config = RolloutConfig(
        group_size=work.group_size,
        concurrent_groups=(max_age + 1) * work.groups_per_update,
        engine=engine,
        sampling=SamplingConfig(max_new_tokens=longest),
    )
    ports = RolloutPorts(tasks=feed, replay=replay, scoring=Scoring(), weights=store, report=NoReport())
    renderer: Any = PlainRenderer()
    worker = RolloutWorker(
        "rollout-0", config, WeightsConfig(), SimulatedEngine(engine), renderer, Finisher(()), ports, seed=0
    )
    await publish(replay, store, 0)
    await worker.start("no model")
    rolling = asyncio.ensure_future(worker.run())
    began = 0.0
    try:
        for step in range(WARM_UP_STEPS + num_steps):
            if step == WARM_UP_STEPS:
                began = time.perf_counter()
            lease = await replay.lease(step)
            await asyncio.sleep(setup.train_s)
            await replay.commit(step, lease.lease_id)
            await publish(replay, store, step + 1)
        return time.perf_counter() - began
    finally:
        await replay.finish()
        rolling.cancel()
        await asyncio.gather(rolling, return_exceptions=True)


def compare(setup: Setup, max_age: int, num_steps: int, repeats: int) -> Ratio:
    pairs = []
    for repeat in range(repeats):
        took = {}
        for age in (max_age, 0) if repeat % 2 == 0 else (0, max_age):
            with tempfile.TemporaryDirectory(prefix="braid-async-") as folder:
                took[age] = asyncio.run(seconds_per_run(setup, age, num_steps, Path(folder)))
        pairs.append((took[max_age], took[0]))
    return ratio_of(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=12, help="updates of every run, after the first few")
    parser.add_argument("--groups", type=int, default=8, help="groups of an update")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--slots", type=int, default=16, help="answers the engine samples at a time")
    parser.add_argument("--cut", type=float, default=3.0, help="longest answer over the mean")
    parser.add_argument("--max-age", type=int, default=2)
    parser.add_argument("--answer-s", type=float, default=0.5, help="seconds of an answer of mean length")
    options = parser.parse_args()
    workload = Workload(
        groups_per_update=options.groups, group_size=options.group_size, slots=options.slots, cut=options.cut
    )
    ratio = compare(
        Setup(workload=workload, answer_s=options.answer_s), options.max_age, options.steps, options.repeats
    )
    gain = overlap_gain(workload, max_age=options.max_age)
    print_result(
        "async_vs_sync", ratio, bar=0.9 * gain.this_run, simulated_gain=round(gain.this_run, 4), cut=options.cut,
        bound=round(gain.fully_asynchronous, 4), slots_per_batch=gain.slots_per_batch, max_age=options.max_age,
        steps=options.steps, answer_s=options.answer_s,
    )  # fmt: skip


if __name__ == "__main__":
    main()
