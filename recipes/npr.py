"""No positive resampling: prompts that are answered right almost always are drawn no more."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def npr() -> RunConfig:
    """ScaleRL (second-hand), open-instruct: rate 0.9; 2 % of draws go to retired prompts, which may return."""
    return guided_run("npr", rules=[{"rule": "retire_solved", "rate": 0.9}, "drop_constant"])
