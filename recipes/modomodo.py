"""MoDoMoDo: a mixture of domains whose outcome was predicted from pilots."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def modomodo() -> RunConfig:
    """MoDoMoDo (abstract): `best_mixture` in `actors/samplers/models.py` turns pilot runs into weights.

    The even ones here are the mixture without pilots; `--set curriculum.sampler.weights.covered=0.7` changes one.
    """
    return guided_run(
        "modomodo",
        sampler={"name": "mixture", "tag": "coverage", "weights": {"covered": 0.5, "uncovered": 0.5}},
    )
