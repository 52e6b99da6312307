"""pi-Distill: the same weights with a solution in the prompt are the teacher, without it the student; both learn."""

from __future__ import annotations

from learner.config import NegativeLogLikelihood, RatioSurrogate, Schedule, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run

PULL = 0.01
"""Of the student to the teacher; ours, as none is confirmed."""

TAUGHT = {"kind": "demo", "removed": True}
"""Sampled by the teacher, learned by the student: its ratio is that of the plain prompt to the shown solution."""


def pi_distill() -> RunConfig:
    """pi-Distill (its authors' post): one half; every answer is the teacher's, half of the groups train the student.

    The likelihood of the teacher's answers is the KL of the student to it; on the teacher's own groups its expectation
    is 0. The teacher is not held back towards the student.
    """
    halves = [{"share": "1/2", "contexts": [TAUGHT]}, {"share": "1/2", "contexts": [{"kind": "demo"}]}]
    return guided_run(
        "pi_distill",
        guidance={"contexts": halves},
        terms=(
            Term(loss=RatioSurrogate(), advantage="centered"),
            Term(loss=NegativeLogLikelihood(), weight=Schedule(start=PULL)),
        ),
    )
