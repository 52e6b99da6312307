"""ToTRL: a tree-style instruction after a sequential stage."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run, share

TREE = {"kind": "role", "text": "Think of several ways to the answer, and follow the most promising one."}
"""The instruction below the problem."""


def totrl() -> RunConfig:
    """ToTRL (abstract): same loss, other prompts; the instruction comes after the first round.
    Evaluation is without it.
    """
    return guided_run("totrl", sampler={"name": "uniform", "round_size": 256}, guidance=share(TREE, min_epoch=1))
