"""J1: a judge learns by reinforcement from pairs whose better answer is known."""

from __future__ import annotations

from actors.config import EngineConfig, SamplingConfig
from learner.config import ClippedSurrogate, Term
from orchestrator.config import EvaluationConfig, RunConfig
from recipes import _small
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig, TaskConfig

ROOM = EngineConfig(max_model_len=512, max_num_seqs=64, kv_cache_bytes=1 << 28)
"""Two answers stand in a prompt, and a verdict is thought about."""


def j1() -> RunConfig:
    """J1, arXiv:2505.10320; R1-Reward, arXiv:2505.02835: the reward is 1 for the right label in its box, with the
    better answer in a random place. Pairs about sums here; `rewards.judge_tasks:pair_task` makes tasks of any pairs."""
    return live_run(
        "j1",
        [Term(loss=ClippedSurrogate(), aggregation="token")],
        tasks=TaskConfig(source="rewards.judge_tasks:sum_pairs", options={"num_train": 4096, "num_heldout": 256}),
        reward=RewardConfig(components={"label": RewardComponent(verifier="rewards.judge_tasks:verdict_label")}),
        rollout=_small.ROLLOUT.model_copy(update={"engine": ROOM, "sampling": SamplingConfig(max_new_tokens=96)}),
        evaluation=EvaluationConfig(),
    )
