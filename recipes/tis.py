"""GRPO with truncated importance sampling between sampling and training policy."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Correction, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def tis() -> RunConfig:
    """Decoupled PPO, arXiv:2505.24298, with weights truncated at 2: GRPO's clip looks at the update alone.

    A batch is used for one update, so the clip's ratio is 1 and the weight carries all of the correction.
    """
    return live_run(
        "tis", [Term(loss=ClippedSurrogate(), ratio_to="proximal", correction=Correction(high=2.0))], max_age=4
    )
