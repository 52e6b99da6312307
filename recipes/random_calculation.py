"""RandomCalculation: GRPO on generated expressions, paid by the distance from the exact value."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes import _small
from recipes._guided import guided_run
from rewards.config import RewardComponent, RewardConfig, TaskConfig

TASKS = TaskConfig(
    source="random_calculation",
    num_train=10_000,
    num_heldout=600,
    options={"max_steps": 2, "prompt_template": _small.PROMPT},
)


def random_calculation() -> RunConfig:
    """RandomCalculation, arXiv:2507.10532 (digest): one or two steps here, 1 to 20 in the paper."""
    reward = RewardConfig(components={"close": RewardComponent(verifier="close_number")})
    return guided_run("random_calculation", tasks=TASKS, reward=reward)
