"""B8: what a new version costs. Publishing against memcpy of its bytes, activation against vLLM's `reload_weights`.

Publishing is gathering, casting, writing and checksums of a version folder, with older ones deleted as the store does
it. memcpy copies the same tensors, already cast, one by one into memory that is already mapped. The probe's log-probs,
which the learner computes before, are timed beside it: `ratio_with_probe`.

Activation is everything the worker does, from checking the checksums to the probe and resuming, on the engine and the
file the reference reloads; vLLM's own reload neither checks, nor resets caches, nor (on the CPU build) refreshes a
tied head. `load_ratio` compares the loading phase alone.

    python -m benchmarks.weight_push --repeats 12 --model smollm2-135m
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.assembly import PROBE_TEXT, pin_to_cores
from actors.config import EngineConfig
from actors.engines.protocol import WeightUpdate
from actors.engines.vllm import VLLMEngine
from actors.model_store import resolve_model
from actors.renderer import Renderer
from actors.transports.shared_memory import delete_unless_read
from actors.weights import ActivationReport, activate, write_version
from benchmarks.paired import alternate_async, print_result, ratio_of
from learner.export import full_weights
from learner.policy import Policy
from rewards.trajectory import PolicyVersion

PUBLISH_BAR, ACTIVATION_BAR = 0.3, 0.8
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
"""Of the probe's mean error, in nats."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="known name or model folder; tiny is a smoke test")
    parser.add_argument("--repeats", type=int, default=12, help="pairs of each comparison")
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32", help="of the published version")
    parser.add_argument("--threads", type=int, default=1, help="of the learner and of the engine, each")
    parser.add_argument("--cores", help='of this process, e.g. "1"')
    parser.add_argument("--engine-cores", help='of the engine, e.g. "0"')
    parser.add_argument("--directory", help="of the versions; by default shared memory where there is any")
    options = parser.parse_args()
    model = resolve_model(options.model)
    base = options.directory or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    with tempfile.TemporaryDirectory(dir=base, prefix="braid-weight-push-") as folder:
        asyncio.run(measure(options, model, Path(folder)))


async def measure(options: argparse.Namespace, model: Path, folder: Path) -> None:
    engine = VLLMEngine(
        EngineConfig(
            dtype=options.dtype, max_model_len=128, max_num_seqs=8, kv_cache_bytes=64 << 20, threads=options.threads,
            cores=options.engine_cores,
        )
    )  # fmt: skip
    await engine.start(str(model), PolicyVersion(-1))
    try:
        pin_to_cores(options.cores)
        update = await measure_publishing(options, model, folder)
        await measure_activation(options, engine, update)
    finally:
        await engine.close()


async def measure_publishing(options: argparse.Namespace, model: Path, folder: Path) -> WeightUpdate:
    """Prints the first line; returns the last version, whose folder stays."""
    probe = Renderer(str(model)).answer_ids(PROBE_TEXT)
    torch.set_num_threads(options.threads)
    policy = Policy.load(model)
    versions: list[WeightUpdate] = []
    probe_s: list[float] = []

    async def publish() -> float:
        began = time.perf_counter()
        logprobs = policy.sequence_logprobs(probe).tolist()
        probe_s.append(time.perf_counter() - began)
        if len(versions) > 1:
            delete_unless_read(Path(versions[-2].path), keep_memory=True)
        began = time.perf_counter()
        update = write_version(
            full_weights(policy), folder, version=PolicyVersion(len(versions)), step=0, incarnation=0,
            dtype=options.dtype, probe_token_ids=probe, probe_logprobs=logprobs,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        versions.append(update)
        return seconds

    sources = [
        t.detach().to(getattr(torch, options.dtype)).flatten().view(torch.uint8) for _, t in full_weights(policy)
    ]
    size = sum(len(source) for source in sources)
    target = torch.ones(size, dtype=torch.uint8)
    places = target.split([len(source) for source in sources])

    async def copy() -> float:
        began = time.perf_counter()
        for place, source in zip(places, sources, strict=True):
            np.copyto(place.numpy(), source.numpy())
        return time.perf_counter() - began

    # The third version is the first one that finds the memory of an older one.
    ratio = await alternate_async(publish, copy, repeats=options.repeats, warmup=3)
    probe_median = statistics.median(probe_s[-options.repeats :])
    print_result("B8 publish", ratio, PUBLISH_BAR, **setting(options, size), probe_tokens=len(probe),
                 probe_s=round(probe_median, 4),
                 ratio_with_probe=round(ratio.reference_s / (ratio.ours_s + probe_median), 4),
                 ours_gb_per_s=round(size / ratio.ours_s / 1e9, 3),
                 memcpy_gb_per_s=round(size / ratio.reference_s / 1e9, 3))  # fmt: skip
    return versions[-1]


async def measure_activation(options: argparse.Namespace, engine: VLLMEngine, update: WeightUpdate) -> None:
    """Prints the second line: both load the same file into the same engine by turns."""
    reports: list[ActivationReport] = []
    reloads_s: list[float] = []

    async def ours() -> float:
        began = time.perf_counter()
        reports.append(await activate(engine, update, tolerance=TOLERANCE[options.dtype], clear_cache=True))
        return time.perf_counter() - began

    async def reload() -> float:
        began = time.perf_counter()
        await engine._llm.collective_rpc("reload_weights", kwargs={"weights_path": update.path})
        reloads_s.append(time.perf_counter() - began)
        return reloads_s[-1]

    ratio = await alternate_async(ours, reload, repeats=options.repeats)
    timed = reports[-options.repeats :]
    load = ratio_of([(r.load_s, seconds) for r, seconds in zip(timed, reloads_s[-options.repeats :], strict=True)])
    phases = {
        name: round(statistics.median(getattr(report, name) for report in timed), 4)
        for name in ("verify_s", "freeze_s", "load_s", "reset_s", "probe_s", "pause_s")
    }
    size = (Path(update.path) / "model.safetensors").stat().st_size
    print_result("B8 activation", ratio, ACTIVATION_BAR, **setting(options, size), **phases,
                 load_ratio=round(load.median, 4), load_interval=[round(load.low, 4), round(load.high, 4)],
                 probe_mean_error=max(report.probe_mean_error or 0.0 for report in timed))  # fmt: skip


def setting(options: argparse.Namespace, size: int) -> dict[str, Any]:
    return {
        "model": options.model,
        "dtype": options.dtype,
        "megabytes": round(size / 1e6, 1),
        "engine_threads": options.threads,
        "cores": options.cores,
        "engine_cores": options.engine_cores,
        "load_average": round(os.getloadavg()[0], 2),
    }


if __name__ == "__main__":
    main()
