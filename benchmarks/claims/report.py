"""Runs the arms of a claim over seeds; one JSON file with every number, aggregates with intervals, the command."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.run_statistics import aggregate, interquartile_mean


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: `measure(*arguments, seed)` gives numbers by name."""

    name: str
    measure: Callable[..., dict[str, float]]
    arguments: tuple[Any, ...] = ()


def claim_main(question: str | None, arms: Sequence[Arm]) -> None:
    """Command line of a claim: `--seeds`, `--out`, and `--arm` to look at one of them alone."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--arm", default=None, help="only arms whose name contains this")
    options = parser.parse_args()
    chosen = [arm for arm in arms if options.arm is None or options.arm in arm.name]
    report = measured(question or "", chosen, range(options.seeds))
    for name, result in report["arms"].items():
        print(name, {key: f"{v['iqm']:.4g} [{v['low']:.4g}, {v['high']:.4g}]" for key, v in result["iqm"].items()})
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def measured(question: str, arms: Sequence[Arm], seeds: Sequence[int]) -> dict[str, Any]:
    """All arms on all seeds; an aggregate is the interquartile mean over seeds with its bootstrap interval."""
    results = {}
    for arm in arms:
        began = time.process_time()
        runs = [arm.measure(*arm.arguments, seed) for seed in seeds]
        seconds = (time.process_time() - began) / len(seeds)
        results[arm.name] = {"iqm": _aggregates(runs), "cpu_s_per_seed": round(seconds, 2), "runs": runs}
    return {
        "question": question.strip().splitlines()[0] if question.strip() else "",
        "command": " ".join(["python -m", _module(), *sys.argv[1:]]),
        "commit": _commit(),
        "device": f"{platform.machine()} {platform.processor() or ''}".strip() + ", one CPU thread",
        "seeds": list(seeds),
        "arms": results,
    }


def _aggregates(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    aggregates = {}
    for name in runs[0]:
        estimate = aggregate([[run[name]] for run in runs], interquartile_mean, np.random.default_rng(0))
        aggregates[name] = {"iqm": estimate.value, "low": estimate.low, "high": estimate.high}
    return aggregates


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
