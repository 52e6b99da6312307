"""OPSM: failures that the policy has moved away from are masked."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Correction, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def opsm() -> RunConfig:
    """Off-policy sequence masking as in slime: sequences of negative advantage with a mean drift above 0.1 nats go."""
    correction = Correction(transform="one", max_negative_drift=0.1)
    return live_run("opsm", [Term(loss=ClippedSurrogate(), ratio_to="proximal", correction=correction)], max_age=4)
