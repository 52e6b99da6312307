"""StableReinforce: whitened advantages without outliers, and a bound on what one ratio can do."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def stable_reinforce() -> RunConfig:
    """StableReinforce, arXiv:2505.02835: clip 0.2, three deviations, mean over answers of token means.

    Its bound of ln 1000 on the log-ratio is a dual clip at 1000; the one of -ln 1000 moves no gradient by more than
    a thousandth of the advantage and is not here.
    """
    term = Term(loss=ClippedSurrogate(dual_clip=1000.0), advantage="outliers_removed", aggregation="sequence")
    return live_run("stable_reinforce", [term])
