"""G-RA: a lower level of reward counts only when every level above it is reached."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes import _small
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig

LEVELS = {
    "correct": RewardComponent(verifier="final_number"),
    "whole": RewardComponent(
        verifier="regex_match", weight=0.5, gate="correct", options={"pattern": r"\A\s*-?\d+\s*\Z"}
    ),
    "short": RewardComponent(
        verifier="target_length",
        weight=0.2,
        gate=("correct", "whole"),
        options={"target_tokens": 4, "max_tokens": _small.MAX_NEW_TOKENS},
        required=False,
    ),
}
"""A right result, nothing beside it, in few tokens; an evaluation does not count tokens, so there the last is open."""


def gra() -> RunConfig:
    """Gated reward accumulation (abstract, third party's notes): cheap rewards cannot be farmed."""
    return live_run(
        "gra", [Term(loss=ClippedSurrogate(), aggregation="token")], reward=RewardConfig(components=dict(LEVELS))
    )
