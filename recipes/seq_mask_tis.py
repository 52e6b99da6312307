"""Untruncated token weights behind a filter on the sequence's geometric mean."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Correction, Rejection, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def seq_mask_tis() -> RunConfig:
    """Seq-mask-TIS as in NeMo-RL: sequences outside [0.999, 1.002] are dropped, the others weigh rho per token."""
    reject = (Rejection(statistic="ratio", over="mean", low=0.999, high=1.002),)
    correction = Correction(transform="identity", reject=reject)
    return live_run(
        "seq_mask_tis", [Term(loss=ClippedSurrogate(), ratio_to="proximal", correction=correction)], max_age=4
    )
