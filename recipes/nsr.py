"""NSR: learn from wrong answers alone."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def nsr() -> RunConfig:
    """NSR, arXiv:2506.01347: advantage -1 on wrong answers; right ones are left out. PSR is `positives_only`.

    Nothing but the lower clip bound stops the pressure on a wrong answer.
    """
    return live_run("nsr", [Term(loss=ClippedSurrogate(), advantage="negatives_only")])
