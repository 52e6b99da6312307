"""RLPT: the next sentence of a text, or one that was left out, as a task."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run
from rewards.config import RewardComponent, RewardConfig, TaskConfig

TASKS = TaskConfig(
    source="text_segments",
    num_train=2000,
    num_heldout=200,
    options={"next_template": "{before}", "missing_template": "Fill the gap: {before} [...] {after}"},
)


def rlpt() -> RunConfig:
    """RLPT, arXiv:2509.19249: next segments, and at half their weight left-out ones; 8 answers, no KL.

    The texts are generated ones that count; `tasks.options.path` reads others. The words have to be exact, where the
    paper's judge accepts paraphrases.
    """
    return guided_run(
        "rlpt",
        tasks=TASKS,
        reward=RewardConfig(components={"segment": RewardComponent(verifier="next_segment", options={"min_words": 3})}),
        sampler={"name": "mixture", "tag": "mode", "weights": {"next": 1.0, "missing": 0.5}},
    )
