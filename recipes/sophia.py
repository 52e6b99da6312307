"""SOPHIA, its filter: imitation of the shortest right answer of groups that are right often enough."""

from __future__ import annotations

from learner.config import PolicyGradient, Term
from orchestrator.config import RunConfig
from recipes._live import live_run


def sophia() -> RunConfig:
    """SOPHIA, arXiv:2507.16814, section 4: a sample is kept if more than half of its group is right and none of the
    right ones is shorter; its ratio is dropped. The share of one half is ours; captions and an external reasoner are
    not here, so the policy's own answers are filtered.
    """
    term = Term(loss=PolicyGradient(), advantage="shortest_right", advantage_options={"min_rate": 0.5})
    return live_run("sophia", [term], max_age=4)
