"""Guide: hinted members join a group that is all wrong, and the hint is removed from what is learned."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def guide() -> RunConfig:
    """Guide-GRPO, arXiv:2506.13923 (abstract):
    the ratio of hinted members is that of the plain prompt to the hinted one.
    """
    return guided_run(
        "guide",
        rules=[
            {
                "rule": "grow_failed",
                "num": 8,
                "max": 1,
                "context": {"kind": "hint", "amount": 0.75, "removed": True},
            }
        ],
    )
