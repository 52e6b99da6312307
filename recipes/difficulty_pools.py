"""Pools by the latest rate, each with a weight."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def difficulty_pools() -> RunConfig:
    """The pools of PrimeIntellect-ai/prime-rl, curriculum/samplers/pool.py; thresholds and weights are ours."""
    return guided_run("difficulty_pools", sampler={"name": "pools", "thresholds": [0.25, 0.75], "weights": [1, 2, 0.5]})
