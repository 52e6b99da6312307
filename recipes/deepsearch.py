"""DeepSearch: hard prompts are answered by a search over segments, and what it finds is not searched again."""

from __future__ import annotations

from actors.search.config import SearchConfig
from orchestrator.config import RunConfig
from recipes._guided import OWN_PAST_IN_GROUP, WHOLE_GROUP, guided_run


def deepsearch() -> RunConfig:
    """DeepSearch, smiles724/DeepSearch: 8 ends of a tree of width 8 where at most a quarter is right; right answers of
    such prompts are kept and take the first places of later groups.

    Segments are 4 tokens here and 256 in the paper. Ends are compared by their score; the values of single segments
    are not trained on. Own past answers have a shaped ratio in place of a new one.
    """
    return guided_run(
        "deepsearch",
        rules=[
            {"rule": "splice_donors", "source": "own_past", "places": "first", "count": 8},
            {"rule": "stash_right", "high": 0.25},
        ],
        terms=(WHOLE_GROUP, OWN_PAST_IN_GROUP),
        search=SearchConfig(segment_tokens=4),
    )
