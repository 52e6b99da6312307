"""How the groups of one source are kept and handed out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rewards.config import Section


class TableConfig(Section):
    """The rules of one source in the replay cache; without them it is handed out in its default order for ever."""

    order: Literal["stalest", "passes", "fifo", "lifo", "uniform", "prioritised"] | None = None
    """Who is handed out next. stalest: least used, then oldest weights (the default of live). passes: each group once
    per pass, in seeded orders (the default of all others). fifo: least used, then oldest arrival. lifo: newest
    arrival. uniform: drawn with equal chances. prioritised: drawn by `priority`."""
    priority: Literal["advantage", "loss", "ratio"] = "advantage"
    """What makes a group likely in a prioritised table. advantage: mean |score - mean of the group|, known when it is
    stored. loss, ratio: what the learner reports of its last training (mean |loss| per token; mean |ratio - 1|); until
    then a group has the highest priority of its table."""
    priority_exponent: float = Field(default=1.0, ge=0)
    """Chances are in proportion to priority ** exponent; 0 makes them equal."""
