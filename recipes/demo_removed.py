"""A whole solution in the prompt while sampling, none while learning."""

from __future__ import annotations

from learner.config import Term, WeightedPolicyGradient
from orchestrator.config import RunConfig
from recipes._guided import guided_run, share


def demo_removed() -> RunConfig:
    """Privileged context as in pi-Distill and OPSD, as importance-weighted policy gradient: a truncated ratio,
    no teacher.
    """
    return guided_run(
        "demo_removed",
        guidance=share({"kind": "demo", "removed": True}, of="1/2"),
        terms=(Term(loss=WeightedPolicyGradient(ratio_max=2.0), advantage="centered"),),
    )
