"""GHPO: a group that is all wrong is sampled again with a growing part of the solution."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def ghpo() -> RunConfig:
    """GHPO, hkgc-1/GHPO: hints of 25, 50 and 75 %, trained in the prompt they were sampled from."""
    return guided_run(
        "ghpo",
        rules=[
            {
                "rule": "redo_failed",
                "max": 3,
                "contexts": [{"kind": "hint", "amount": amount} for amount in (0.25, 0.5, 0.75)],
            }
        ],
    )
