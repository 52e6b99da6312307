"""Agent-RLVR's guidance: a failed group tries again with feedback on its attempt."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def agent_rlvr() -> RunConfig:
    """Agent-RLVR (abstract), in one turn: the attempt and what its verifier says, never the answer;
    at most two times.
    """
    return guided_run(
        "agent_rlvr", rules=[{"rule": "redo_failed", "max": 2, "contexts": [{"kind": "feedback"}]}, "drop_constant"]
    )
