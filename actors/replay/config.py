"""How the groups of one source are kept and handed out, and where frozen ones come from."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from rewards.config import Section


class ImportConfig(Section):
    """Frozen groups from elsewhere, stored when the run starts."""

    path: str
    """The folder of another run, whose replay cache is read, or a .jsonl file with `prompt` and `response` or
    `token_ids` in each row, and perhaps `logprobs`, `score`, `correct`, `prompt_id` and `source`."""
    source: Literal["own_past", "expert", "teacher", "other_run"] = "other_run"
    """What the groups count as: quota, table and terms of this source apply to them."""
    only_right: bool = False
    """Leave out answers that are not known to be right."""
    max_groups: int | None = Field(default=None, ge=1)
    """Groups to take at most, in the order they are found."""


class TableConfig(Section):
    """The rules of one source in the replay cache; without them it is handed out in its default order for ever."""

    order: Literal["stalest", "passes", "fifo", "lifo", "uniform", "prioritised"] | None = None
    """Who is handed out next. stalest: least used, then oldest weights (the default of live). passes: each group once
    per pass, in seeded orders (the default of all others). fifo: least used, then oldest arrival. lifo: newest
    arrival. uniform: drawn with equal chances. prioritised: drawn by `priority`."""
    priority: Literal["advantage", "ratio", "clipped"] = "advantage"
    """What makes a group likely in a prioritised table. advantage: mean |score - mean of the group|, known when it is
    stored. ratio, clipped: what the learner saw at its last training (mean |ratio - 1| of the answers; share of tokens
    outside the clip bounds); until then a group has the highest priority of its table."""
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

    collect: Literal["right", "mixed", "nothing"] = "right"
    """Of own_past only: what is kept of live groups when they were trained on. right: their right answers. mixed:
    those of groups that also have wrong ones. nothing: the table holds imports alone."""
    max_age: int | None = Field(default=None, ge=0)
    """Of own_past only: committed steps after which a collected group is evicted (too_old). None keeps it."""
    min_groups: int = Field(default=0, ge=0)
    """Of own_past only: READY and leased groups below which none is handed out."""
    uses_per_insert: Fraction | None = Field(default=None, gt=0)
    """Of own_past only: trainings wanted per collected group; imports do not count. None leaves the ratio free."""
    slack: Fraction = Field(default=Fraction(16), gt=0)
    """How far trainings may run ahead of or fall behind `uses_per_insert`, in trainings."""

    @field_validator("uses_per_insert", "slack", mode="before")
    @classmethod
    def _decimals_are_exact(cls, value: Any) -> Any:
        return repr(value) if isinstance(value, float) else value

    @field_serializer("uses_per_insert", "slack")
    def _fractions_as_text(self, value: Fraction | None) -> str | None:
        return None if value is None else str(value)

    @model_validator(mode="after")
    def _both_sides_can_move(self) -> TableConfig:
        ratio = self.uses_per_insert
        if ratio is not None and self.slack < max(Fraction(1), ratio):
            raise ValueError(
                f"slack={self.slack} is less than one training or one group of uses_per_insert={ratio}: collecting and "
                f"training would block each other. Set it to at least {max(Fraction(1), ratio)}."
            )
        return self

    @property
    def is_rate_limited(self) -> bool:
        return self.min_groups > 0 or self.uses_per_insert is not None

    @property
    def is_limited(self) -> bool:
        """Whether groups can be evicted for want of room."""
        return any(limit is not None for limit in (self.max_groups, self.max_bytes, self.max_per_prompt))
