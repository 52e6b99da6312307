"""BFS-Prover's filter: answers of middling perplexity only."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run


def bfs_prover() -> RunConfig:
    """BFS-Prover-V2 (README): neither what is known nor noise; the band's edges are ours. Only its filter is here."""
    return guided_run("bfs_prover", rules=[{"rule": "drop_perplexity", "low": 1.02, "high": 20.0}, "drop_unscored"])
