"""ProRL: GRPO kept close to a reference that follows the policy, so that long training does not stall."""

from __future__ import annotations

from learner.config import ClippedSurrogate, KLToReference, ResetConfig, Schedule, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def prorl() -> RunConfig:
    """ProRL, arXiv:2505.24864: clip bounds 0.2 and 0.4, constant groups dropped, KL to a reference that is reset
    together with the optimizer.

    The paper resets when validation stalls; here it is every 20 steps. Weight and steps belong to the small setting.
    """
    return live_run(
        "prorl",
        [
            Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.4)),
            Term(loss=KLToReference(), weight=Schedule(start=1e-3)),
        ],
        rollout=_small.ROLLOUT.model_copy(update={"rules": ("drop_constant",)}),
        learner=_small.adam(1e-5).model_copy(update={"resets": ResetConfig(every=20)}),
    )
