"""KEPO: hinted answers one at a time until one is right, and a teacher who is listened to on right answers only."""

from __future__ import annotations

from learner.companions.config import TeacherConfig
from learner.config import OnPolicyDistillation, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._guided import ON_POLICY, guided_run

TEACHER = TeacherConfig(model="HuggingFaceTB/SmolLM2-360M-Instruct")


def kepo() -> RunConfig:
    """KEPO (abstract): bounded tries, failures stay in the group; the reverse KL to the teacher, on right answers.

    The divergence and its weight are not confirmed.
    """
    return guided_run(
        "kepo",
        rules=[{"rule": "grow_failed", "num": 1, "max": 4, "context": {"kind": "hint", "amount": 0.75}}],
        terms=(ON_POLICY, Term(loss=OnPolicyDistillation(), members="right", weight=Schedule(start=0.1))),
        learner=_small.adam(1e-5).model_copy(update={"teacher": TEACHER}),
    )
