"""DAPO's dynamic sampling in an asynchronous stream, with retirement."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def dapo_band() -> RunConfig:
    """DAPO, arXiv:2503.14476; ScaleRL's no-positive-resampling:
    each dropped group gives its ticket to one fresh prompt.
    """
    return guided_run("dapo_band", rules=["drop_constant", {"rule": "retire_solved", "rate": 1.0}], sampler="band")
