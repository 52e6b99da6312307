"""PPO: a critic foresees what each answer earns, and tokens are judged by its surprises."""

from __future__ import annotations

from learner.config import ClippedSurrogate, CriticConfig, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def ppo() -> RunConfig:
    """PPO, arXiv:1707.06347, with generalised advantages (trace 0.95, discount 1), whitened over the batch.

    The value is not clipped, which would bound nothing in one update per batch. The critic's rate is ours.
    """
    return live_run(
        "ppo",
        [Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.2), advantage="gae")],
        learner=_small.adam(1e-5).model_copy(update={"critic": CriticConfig(learning_rate=2e-5)}),
    )
