"""How a search over segments of an answer chooses."""

from __future__ import annotations

from pydantic import Field

from actors.samplers.config import LedgerCondition
from rewards.config import Section


class SearchConfig(Section):
    """Tree search in place of independent answers (DeepSearch). Defaults are the released round's."""

    when: LedgerCondition = LedgerCondition(min_attempts=4, max_rate=0.25)
    """Prompts that are searched; others are answered independently."""
    table: str = "own_past"
    """A prompt with answers in this table is not searched again."""
    segment_tokens: int = Field(default=256, ge=1)
    """Tokens of one node."""
    width: int = Field(default=8, ge=1)
    """Children of a node at most."""
    max_depth: int = Field(default=64, ge=1)
    """Segments of an answer at most."""
    curiosity: float = Field(default=2.0, ge=0)
    """Factor of the bonus for children that were visited less than their siblings, before the first end."""
    parent_weight: float = 0.4
    """Of the parent's mean value in the choice among all open nodes."""
    depth_weight: float = 0.01
    """Of the root of the share of the depth."""
    entropy_weight: float = 0.0
    """Of the mean surprise of the segment; 0.4 in a variant."""
    own_weight: float = 0.0
    """Of the node's own mean value."""
    weight_floor: float = Field(default=0.1, ge=0, le=1)
    """Smallest share of an end's value that reaches the beginning of its answer."""
