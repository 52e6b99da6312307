"""ROVER: the log-ratio is the value of a token under the uniform policy and is regressed on the advantage."""

from __future__ import annotations

from learner.config import Term
from learner.losses.config import LogRatioRegression
from orchestrator.config import RunConfig
from recipes._live import live_run


def rover() -> RunConfig:
    """ROVER, tinnerhrhe/ROVER: temperature 1, scores minus the group's mean as in its Countdown code.

    The successor's value is 0 on fresh samples and left out on those one step old.
    """
    return live_run("rover", [Term(loss=LogRatioRegression(), advantage="centered")])
