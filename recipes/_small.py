"""The setting the method recipes share: two-term arithmetic on a 135M model, small enough for two CPU cores.

Half of the problems lie outside what the expert has seen, so a method shows whether it goes beyond its teacher.
"""

from __future__ import annotations

from actors.config import EngineConfig, RolloutConfig, SamplingConfig
from learner.config import LearnerConfig, OptimizerConfig
from orchestrator.config import EvaluationConfig
from rewards.config import RewardComponent, RewardConfig, TaskConfig

MAX_NEW_TOKENS = 16
"""An answer is a number, or a short sentence with one."""

PROMPT = "Reply with only the number. {expression} ="
"""What all problems share comes first, so that engine and learner compute it once."""

TASKS = TaskConfig(
    source="arithmetic",
    num_train=10_000,
    num_heldout=600,
    options={"expert_max_operand": 39, "prompt_template": PROMPT},
)

REWARD = RewardConfig(components={"correct": RewardComponent(verifier="final_number")})

ROLLOUT = RolloutConfig(
    group_size=8,
    concurrent_groups=16,
    engine=EngineConfig(max_model_len=128, max_num_seqs=128, kv_cache_bytes=1 << 28),
    sampling=SamplingConfig(max_new_tokens=MAX_NEW_TOKENS),
)

EVALUATION = EvaluationConfig(split_by="coverage")


def adam(learning_rate: float) -> LearnerConfig:
    """A learner for short runs: with few steps the second moment has to forget faster than AdamW's default."""
    return LearnerConfig(optimizer=OptimizerConfig(learning_rate=learning_rate, betas=(0.9, 0.95)))
