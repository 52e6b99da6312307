"""POPE: the beginning of an oracle solution in the prompt of problems that were never solved."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run, share


def pope() -> RunConfig:
    """POPE, arXiv:2601.18779 (abstract): guided and unguided 1 : 1, guided only after eight wrong answers.

    The shortest beginning that helps is approached by the prompt's stage: solved groups see less of it.
    """
    return guided_run(
        "pope",
        guidance=share(
            {"kind": "hint", "amount": 0.75},
            {"kind": "hint", "amount": 0.5},
            {"kind": "hint", "amount": 0.25},
            of="1/2",
            min_attempts=8,
            max_rate=0.0,
        ),
        stages={"raise_from": 0.5, "lower_to": 0.0, "highest": 2},
    )
