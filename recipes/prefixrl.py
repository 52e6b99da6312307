"""PrefixRL: hard problems begun inside a known solution, and the plain ones beside them."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run, share


def prefixrl() -> RunConfig:
    """PrefixRL, arXiv:2601.18795 (second-hand): cuts at 40 to 80 %, three prefixed groups to one plain one.

    Groups of different cuts are groups of their own; forced tokens are not trained.
    """
    return guided_run("prefixrl", guidance=share({"kind": "prefix", "amount": [0.4, 0.8]}, of="3/4"))
