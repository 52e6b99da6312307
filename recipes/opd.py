"""On-policy distillation: a larger model's opinion of the policy's own tokens is the advantage."""

from __future__ import annotations

from learner.companions.config import TeacherConfig
from learner.config import OnPolicyDistillation, Schedule, SquaredLogRatio, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run

TEACHER = TeacherConfig(model="HuggingFaceTB/SmolLM2-360M-Instruct")
"""Of the policy's family, so it reads the same tokens."""


def opd() -> RunConfig:
    """On-policy distillation as in prime-rl: reverse KL per token, tokens that lost more than 0.2 of probability left
    out, half a squared log-ratio of weight 2e-3 to the sampling policy."""
    return live_run(
        "opd",
        [Term(loss=OnPolicyDistillation()), Term(loss=SquaredLogRatio(), weight=Schedule(start=2e-3))],
        learner=_small.adam(1e-5).model_copy(update={"teacher": TEACHER}),
    )
