"""DR-PO: rollouts reset to a random place of the preferred answer."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run, share


def dr_po() -> RunConfig:
    """Dataset reset, Cornell-RL/drpo: with probability beta from a prefix of random length, here beta = 1/2."""
    return guided_run("dr_po", guidance=share({"kind": "prefix", "amount": [0.0, 1.0]}, of="1/2"))
