"""BroRL: many answers per prompt."""

from __future__ import annotations

from actors.config import ReplayConfig
from orchestrator.config import RunConfig
from recipes._guided import guided_run


def brorl() -> RunConfig:
    """BroRL (abstract): hundreds of answers per prompt, groups without signal dropped; here 64 of 4 prompts."""
    return guided_run(
        "brorl",
        group_size=64,
        concurrent_groups=4,
        rules=["drop_constant"],
        replay=ReplayConfig(groups_per_update=4, max_age=1),
    )
