"""PCL: a value model on the words of prompts picks those nearest to even odds."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def pcl() -> RunConfig:
    """PCL, arXiv:2510.01135 (second-hand): target 1/2, four candidates for each prompt taken."""
    return guided_run("pcl", sampler={"name": "nearest", "target": 0.5, "candidates": 4})
