"""ViSurf: the label joins the group and teaches only while no own answer is as good."""

from __future__ import annotations

from learner.config import ClippedSurrogate, PolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def visurf() -> RunConfig:
    """ViSurf, arXiv:2510.10606 (second-hand): advantages over the answers and the label, which is smoothed away once
    it is reached.

    How the paper treats the label's unknown probability is not confirmed; here its term has no ratio.
    """
    return guided_run(
        "visurf",
        rules=[{"rule": "splice_donors", "source": "expert", "places": "nobody"}],
        terms=(
            Term(loss=ClippedSurrogate(), advantage="label_smoothed", compared_with="group"),
            Term(loss=PolicyGradient(), source="expert", advantage="label_smoothed", compared_with="group"),
        ),
    )
