"""KEPO, its exploration: hinted answers one at a time until one is right."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def kepo() -> RunConfig:
    """KEPO (abstract): bounded tries; failures stay in the group. The distillation on good answers needs a teacher."""
    return guided_run(
        "kepo",
        rules=[
            {"rule": "grow_failed", "num": 1, "max": 4, "context": {"kind": "hint", "amount": 0.75}},
            "drop_constant",
        ],
    )
