"""RePO: past answers of the prompt in the update, without moving the fresh baseline."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._guided import ON_POLICY, guided_run


def repo() -> RunConfig:
    """RePO, arXiv:2506.09340 (second-hand): fresh answers compare with fresh ones, replayed ones with all;
    best first.
    """
    return guided_run(
        "repo",
        rules=[
            {"rule": "splice_donors", "source": "own_past", "count": 4, "places": "nobody", "pick": "best"},
            {"rule": "stash_right", "high": 0.9},
        ],
        terms=(
            ON_POLICY,
            Term(loss=ClippedSurrogate(), source="own_past", advantage="centered", compared_with="group"),
        ),
    )
