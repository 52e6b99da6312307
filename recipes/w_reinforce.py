"""W-REINFORCE: right answers count a tenth of wrong ones."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def w_reinforce() -> RunConfig:
    """W-REINFORCE, arXiv:2506.01347: advantages 0.1 and -1, no baseline."""
    return live_run("w_reinforce", [Term(loss=ClippedSurrogate(), advantage="sign_weighted")])
