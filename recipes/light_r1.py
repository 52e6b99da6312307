"""Light-R1's and Tulu 3's order: an easy stage until it is learned, then the hard one."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import TASKS, guided_run


def light_r1() -> RunConfig:
    """Light-R1, Qihoo360/Light-R1 (README): stages by difficulty with a gate; a tenth of the draws stays with the
    first. Training prompts that share 32 words in a row with a held-out one are left out.

    Its fine-tuning and preference stages are runs of their own: `sft`, `dpo`, and `braid merge` between them.
    """
    return guided_run(
        "light_r1",
        tasks=TASKS.model_copy(update={"decontaminate": 32}),
        sampler={"name": "stages", "tag": "coverage", "order": ["covered", "uncovered"], "keep_earlier": 0.1},
    )
