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
    max_groups: int | None = Field(default=None, ge=1)
    """READY groups the table keeps; beyond them `remove` decides who is evicted (table_full)."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Packed bytes of READY groups the table keeps; beyond them groups are evicted (table_bytes)."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """READY groups kept of one prompt; beyond them the prompt's own are evicted (prompt_full)."""
    remove: Literal["fifo", "stalest", "lowest_priority", "most_used"] = "fifo"
    """Who is evicted from a full table: the oldest arrival, the oldest weights, the lowest priority, the most used."""

    @property
    def is_limited(self) -> bool:
        """Whether groups can be evicted for want of room."""
        return any(limit is not None for limit in (self.max_groups, self.max_bytes, self.max_per_prompt))
