"""Ratios measured side by side: A B A B in one run, the median paired ratio and its interval, one JSON line."""

from __future__ import annotations

import gc
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ratio:
    """Rate of ours over rate of the reference.

    Attributes:
        median: of the paired ratios; low, high: its 95 % interval (order statistics, no assumption on the shape).
        ours_s, reference_s: median seconds of one repeat.
    """

    median: float
    low: float
    high: float
    repeats: int
    ours_s: float
    reference_s: float


def alternate(
    ours: Callable[[], Any], reference: Callable[[], Any], *, repeats: int, warmup: int = 1, work_ratio: float = 1.0
) -> Ratio:
    """Times both by turns, swapping who goes first.

    Args:
        work_ratio: work of one call of ours over that of the reference, when they differ.
    """
    for _ in range(warmup):
        ours()
        reference()
    pairs = []
    for i in range(repeats):
        if i % 2 == 0:
            our_s, reference_s = seconds(ours), seconds(reference)
        else:
            reference_s, our_s = seconds(reference), seconds(ours)
        pairs.append((our_s, reference_s))
    return ratio_of(pairs, work_ratio=work_ratio)


async def alternate_async(
    ours: Callable[[], Awaitable[float]],
    reference: Callable[[], Awaitable[float]],
    *,
    repeats: int,
    warmup: int = 1,
    work_ratio: float = 1.0,
) -> Ratio:
    """As `alternate`, for calls that say themselves how many of their seconds count, preparations left out."""
    pairs = []
    for i in range(-warmup, repeats):
        gc.collect()
        if i % 2 == 0:
            our_s, reference_s = await ours(), await reference()
        else:
            reference_s, our_s = await reference(), await ours()
        if i >= 0:
            pairs.append((our_s, reference_s))
    return ratio_of(pairs, work_ratio=work_ratio)


def ratio_of(pairs: Sequence[tuple[float, float]], *, work_ratio: float = 1.0) -> Ratio:
    """From (our seconds, reference seconds) of each repeat."""
    ratios = sorted(work_ratio * reference_s / our_s for our_s, reference_s in pairs)
    low, high = median_interval(ratios)
    return Ratio(
        median=statistics.median(ratios),
        low=low,
        high=high,
        repeats=len(ratios),
        ours_s=statistics.median(ours for ours, _ in pairs),
        reference_s=statistics.median(reference for _, reference in pairs),
    )


def median_interval(ordered: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the median of sorted values; the whole range when there are too few for the confidence."""
    n = len(ordered)
    tail, below = 0.0, 0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if tail > (1 - confidence) / 2:
            break
        below = k + 1
    rank = max(below, 1)
    return ordered[rank - 1], ordered[n - rank]


def seconds(call: Callable[[], Any]) -> float:
    """Wall seconds of one call; work queued on a GPU is waited for."""
    gc.collect()
    _synchronise()
    began = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - began


def _synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def print_result(bench: str, ratio: Ratio, bar: float, **details: Any) -> None:
    """One JSON line: what, ratio with interval and bar, where."""
    line: Mapping[str, Any] = {
        "bench": bench,
        "ratio": round(ratio.median, 4),
        "interval": [round(ratio.low, 4), round(ratio.high, 4)],
        "bar": round(bar, 4),
        "repeats": ratio.repeats,
        "ours_s": round(ratio.ours_s, 4),
        "reference_s": round(ratio.reference_s, 4),
        **details,
        **environment(),
    }
    print(json.dumps(line))


def environment() -> dict[str, Any]:
    """Where a number was measured."""
    import torch

    on_gpu = torch.cuda.is_available()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }
