"""Light-R1's and Tulu 3's order: an easy stage until it is learned, then the hard one."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def light_r1() -> RunConfig:
    """Light-R1, Qihoo360/Light-R1 (README): stages by difficulty with a gate;
    a tenth of the draws stays with the first.
    """
    return guided_run(
        "light_r1",
        sampler={"name": "stages", "tag": "coverage", "order": ["covered", "uncovered"], "keep_earlier": 0.1},
    )
