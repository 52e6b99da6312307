"""V-trace with a critic: values and advantages of the current policy from answers of older ones."""

from __future__ import annotations

from learner.config import CriticConfig, PolicyGradient, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run


def impala() -> RunConfig:
    """IMPALA's correction, arXiv:1802.01561: both bars 1; answers may be four steps old. The critic's rate is ours."""
    critic = CriticConfig(learning_rate=2e-5, target="v_trace", trace=1.0)
    return live_run(
        "impala",
        [Term(loss=PolicyGradient(), advantage="v_trace")],
        max_age=4,
        learner=_small.adam(1e-5).model_copy(update={"critic": critic}),
    )
