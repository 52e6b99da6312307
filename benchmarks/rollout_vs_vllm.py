"""B1: tokens/s of a rollout worker over those of bare vLLM, same prompts, lengths and sampling; and our CPU time.

Ours is a RolloutWorker with task feed, replay cache, weight store and a reward worker with its verifier child, from
ticket to stored group. The reference drives the same AsyncLLM instance directly, all prompts submitted at once. Answers
have a fixed length on both sides. Ray is not part of it: the ports are objects of this process.

`cpu_share` is CPU time of ours beyond what the bare run needs, verifier children included, over that of the engine's
processes and vLLM's own front end; `main_share` is all CPU time of this process, front end included, over the same.

    python -m benchmarks.rollout_vs_vllm --repeats 12 --model smollm2-135m
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import psutil

from actors.assembly import PROBE_TEXT, pin_to_cores
from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig, WeightsConfig
from actors.engines.vllm import VLLMEngine
from actors.finisher import Finisher
from actors.model_store import resolve_model
from actors.pools import ScorePool
from actors.ports import Ticket
from actors.renderer import Renderer
from actors.replay.cache import ReplayCache
from actors.reward_worker import RewardWorker
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.task_feed import TaskFeed
from actors.weights import WeightStore, write_version
from benchmarks.paired import alternate_async, print_result
from learner.export import full_weights
from learner.policy import Policy
from rewards.config import RewardComponent, RewardConfig, TaskConfig
from rewards.task import Task
from rewards.tasks import load_tasks
from rewards.trajectory import Group

BAR = 0.90
MAX_CPU_SHARE = 0.05
SEED = 7


class FixedLengthRenderer(Renderer):
    """Names no stop token, so that every answer is as long as it may be."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return ()


class Rounds:
    """A replay cache that admits as many groups per round as the round measures, and says when they are stored."""

    def __init__(self, cache: ReplayCache, groups_per_round: int) -> None:
        self._cache, self._groups_per_round = cache, groups_per_round
        self._allowed = asyncio.Semaphore(0)
        self._stored = 0
        self._complete = asyncio.Event()

    async def play(self) -> None:
        """Until the groups of one round are stored."""
        self._stored = 0
        self._complete.clear()
        for _ in range(self._groups_per_round):
            self._allowed.release()
        await self._complete.wait()

    async def take_ticket(self, worker_id: str, group_size: int, key: str = "") -> Ticket:
        await self._allowed.acquire()
        return await self._cache.take_ticket(worker_id, group_size, key)

    async def return_ticket(self, ticket_id: str, reason: str) -> None:
        raise RuntimeError(f"a group was not stored ({reason}), so the two sides do not do the same work")

    async def put(self, group: Group) -> None:
        await self._cache.put(group)
        self._stored += 1
        if self._stored == self._groups_per_round:
            self._complete.set()


class NoReport:
    """Numbers go nowhere: nothing is timed while a dashboard is fed."""

    async def report(self, role: str, values: Any, *, step: int | None = None) -> None:
        return

    async def event(self, kind: str, details: Any) -> None:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="known name or model folder; tiny is a smoke test")
    parser.add_argument("--repeats", type=int, default=12, help="pairs")
    parser.add_argument("--groups", type=int, default=16, help="prompts of one repeat")
    parser.add_argument("--group-size", type=int, default=8, help="answers per prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of every answer")
    parser.add_argument("--max-num-seqs", type=int, default=64, help="sequences decoded together")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--cores", help='of this process, e.g. "1"')
    parser.add_argument("--engine-cores", help='of the engine, e.g. "0"')
    options = parser.parse_args()
    model = resolve_model(options.model)
    with tempfile.TemporaryDirectory(prefix="braid-rollout-vs-vllm-") as folder:
        asyncio.run(measure(options, model, Path(folder)))


async def measure(options: argparse.Namespace, model: Path, folder: Path) -> None:
    config = RolloutConfig(
        group_size=options.group_size,
        concurrent_groups=options.max_num_seqs // options.group_size + 2,  # slots stay full while groups are finished
        sampling=SamplingConfig(max_new_tokens=options.tokens),
        engine=EngineConfig(
            dtype=options.dtype,
            max_model_len=options.tokens + 128,
            max_num_seqs=options.max_num_seqs,
            kv_cache_bytes=1 << 30,
            threads=options.threads,
            cores=options.engine_cores,
        ),
    )
    tasks = load_tasks(TaskConfig(source="arithmetic", num_train=options.groups, num_heldout=0)).train
    renderer = FixedLengthRenderer(str(model))
    engine, rewards = VLLMEngine(config.engine), RewardWorker(reward_config())
    # Each round consumes a batch, so the age bound is one that no round reaches.
    replay_config = ReplayConfig(groups_per_update=options.groups, max_age=options.repeats + 4)
    cache = ReplayCache(replay_config, directory=folder / "replay", seed=0)
    rounds = Rounds(cache, options.groups)
    ports = RolloutPorts(
        tasks=TaskFeed(tasks, seed=0, log_dir=folder / "tasks"),
        replay=rounds,
        scoring=ScorePool([rewards]),
        weights=await publish_initial(model, renderer, folder, config.engine.dtype, cache),
        report=NoReport(),
    )
    weights = WeightsConfig(probe_tolerance=1e-3 if options.dtype == "float32" else 0.1)
    worker = RolloutWorker("rollout-0", config, weights, engine, renderer, Finisher(()), ports, seed=SEED)
    await rewards.start()
    try:
        await worker.start(str(model))
        pin_to_cores(options.cores)
        running = asyncio.create_task(worker.run())
        await compare(options, engine, renderer, tasks, rounds, cache, running)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        await worker.close()
        await rewards.close()


def reward_config() -> RewardConfig:
    return RewardConfig(components={"correct": RewardComponent(verifier="final_number")}, max_unscored_fraction=1.0)


async def publish_initial(model: Path, renderer: Renderer, folder: Path, dtype: str, cache: ReplayCache) -> WeightStore:
    """A store with the model's own weights as version 0."""
    store = WeightStore(folder / "versions", state_dir=folder / "store", keep_versions=1)
    policy = Policy.load(model)
    probe = renderer.prompt_ids([{"role": "user", "content": PROBE_TEXT}])
    version = await store.issue_version(0)
    update = write_version(
        full_weights(policy), folder / "versions", version=version, step=0, incarnation=0, dtype=dtype,
        probe_token_ids=probe, probe_logprobs=policy.sequence_logprobs(probe).tolist(),
    )  # fmt: skip
    await cache.announce_version(version, 0)
    await store.publish(update)
    return store


async def compare(
    options: argparse.Namespace,
    engine: VLLMEngine,
    renderer: Renderer,
    tasks: Sequence[Task],
    rounds: Rounds,
    cache: ReplayCache,
    running: asyncio.Task[None],
) -> None:
    """Plays rounds by turns with the bare engine; prints the result."""
    expected = options.groups * options.group_size * options.tokens
    engine_processes = [psutil.Process(pid) for pid in engine.child_pids]
    verifiers = [p for p in psutil.Process().children(recursive=True) if p.pid not in engine.child_pids]
    usage: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    steps = 0

    def cpu_now() -> dict[str, float]:
        return {
            "main": time.process_time(),
            "engine": sum(cpu_of(process) for process in engine_processes),
            "verifiers": sum(cpu_of(process) for process in verifiers),
        }

    def record(side: str, before: dict[str, float]) -> None:
        usage[side].append({name: value - before[name] for name, value in cpu_now().items()})

    async def ours() -> float:
        nonlocal steps
        before, began = cpu_now(), time.perf_counter()
        await unless_ended(rounds.play(), running)
        seconds = time.perf_counter() - began
        record("ours", before)
        lease = await cache.lease(steps)  # what the learner would take, so that the cache does not grow
        check(sum(group.num_sampled_tokens for group in lease.groups), expected)
        await cache.commit(steps, lease.lease_id)
        await cache.seal(steps)
        steps += 1
        return seconds

    prompts = [renderer.prompt_ids(task.messages) for task in tasks]

    async def bare() -> float:
        before, began = cpu_now(), time.perf_counter()
        tokens = await generate_bare(engine._llm, prompts, options, round_number=len(usage["bare"]))
        seconds = time.perf_counter() - began
        record("bare", before)
        check(tokens, expected)
        return seconds

    ratio = await alternate_async(ours, bare, repeats=options.repeats)
    pairs = list(zip(usage["ours"], usage["bare"], strict=True))[-options.repeats :]
    engine_s = [our["engine"] + plain["main"] for our, plain in pairs]
    extra_s = [our["main"] - plain["main"] + our["verifiers"] for our, plain in pairs]
    main_s = [our["main"] + our["verifiers"] for our, _ in pairs]
    print_result(
        "B1 rollout_vs_vllm", ratio, BAR, model=options.model, dtype=options.dtype, groups=options.groups,
        group_size=options.group_size, answer_tokens=options.tokens, max_num_seqs=options.max_num_seqs,
        tokens_per_s=round(expected / ratio.ours_s, 1), bare_tokens_per_s=round(expected / ratio.reference_s, 1),
        cpu_share=median_share(extra_s, engine_s), cpu_share_bar=MAX_CPU_SHARE,
        main_share=median_share(main_s, engine_s), engine_threads=options.threads, cores=options.cores,
        engine_cores=options.engine_cores, load_average=round(os.getloadavg()[0], 2),
    )  # fmt: skip


async def unless_ended(awaited: Coroutine[Any, Any, None], running: asyncio.Task[None]) -> None:
    """Raises what ended the worker instead of waiting for ever."""
    task = asyncio.ensure_future(awaited)
    await asyncio.wait({task, running}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        running.result()
        raise RuntimeError("the worker ended before its round was complete")


async def generate_bare(
    llm: Any, prompts: Sequence[Sequence[int]], options: argparse.Namespace, *, round_number: int
) -> int:
    """Samples of all prompts at once; returns the number of tokens."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    async def one(index: int) -> int:
        params = SamplingParams(
            n=options.group_size, temperature=1.0, max_tokens=options.tokens, ignore_eos=True, seed=SEED + index,
            logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        tokens = 0
        async for output in llm.generate(tokens_input(list(prompts[index])), params, f"bare-{round_number}-{index}"):
            tokens = sum(len(sample.token_ids) for sample in output.outputs)
        return tokens

    return sum(await asyncio.gather(*(one(index) for index in range(len(prompts)))))


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def median_share(part: Sequence[float], whole: Sequence[float]) -> float:
    return round(statistics.median(p / w for p, w in zip(part, whole, strict=True)), 4)


def check(tokens: int, expected: int) -> None:
    if tokens != expected:
        raise RuntimeError(f"{tokens} tokens were sampled instead of {expected}: the rates would not compare")


if __name__ == "__main__":
    main()
