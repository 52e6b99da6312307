import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.packing import attention_blocks, build_forest, choose_layout, split_micro_batches

sequences_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda ids: np.array(ids, np.int32)),
    min_size=1,
    max_size=12,
)


def ancestors_seen(subtree_end: np.ndarray, node: int) -> list[int]:
    return [i for i in range(node + 1) if node < subtree_end[i]]


def test_group_with_shared_prompt_worked_by_hand():
    sequences = [np.array(ids, np.int32) for ids in ([7, 8, 1, 2], [7, 8, 3], [9, 9])]
    forest = build_forest(sequences, share_prefixes=True)
    assert forest.token_ids.tolist() == [7, 8, 1, 2, 3, 9, 9]
    assert forest.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert forest.subtree_end.tolist() == [5, 5, 4, 4, 5, 7, 7]
    assert [path.tolist() for path in forest.paths] == [[0, 1, 2, 3], [0, 1, 4], [5, 6]]


@given(sequences_of_few_tokens, st.booleans())
@settings(deadline=None)
def test_every_token_sees_exactly_its_own_sequence_up_to_itself(sequences, share_prefixes):
    forest = build_forest(sequences, share_prefixes=share_prefixes)
    for sequence, path in zip(sequences, forest.paths, strict=True):
        assert forest.token_ids[path].tolist() == sequence.tolist()
        assert forest.position_ids[path].tolist() == list(range(len(sequence)))
        for depth, node in enumerate(path):
            assert ancestors_seen(forest.subtree_end, node) == path[: depth + 1].tolist()


@given(sequences_of_few_tokens)
@settings(deadline=None)
def test_no_prefix_is_laid_out_twice(sequences):
    forest = build_forest(sequences, share_prefixes=True)
    prefixes = {tuple(s[:n].tolist()) for s in sequences for n in range(1, len(s) + 1)}
    assert len(forest.token_ids) == len(prefixes)


@given(sequences_of_few_tokens, st.booleans(), st.integers(1, 9))
@settings(deadline=None)
def test_blocks_cover_all_pairs_that_see_each_other(sequences, share_prefixes, max_rows):
    end = build_forest(sequences, share_prefixes=share_prefixes).subtree_end
    blocks = attention_blocks(end, max_rows=max_rows)
    assert [b.start for b in blocks] == [0, *(b.end for b in blocks[:-1])]
    assert blocks[-1].end == len(end)
    for block in blocks:
        assert block.end - block.start <= max_rows
        rows = set(range(block.start, block.end))
        above = {i for a in block.ancestors for i in range(blocks[a].start, blocks[a].end)}
        for node in rows:
            seen = set(ancestors_seen(end, node))
            assert seen - rows == above
            if block.causal:
                assert seen & rows == set(range(block.start, node + 1))


@given(sequences_of_few_tokens, st.booleans(), st.integers(1, 30), st.integers(1, 3))
@settings(deadline=None)
def test_micro_batches_hold_every_sequence_once_within_the_limit(sequences, share_prefixes, max_tokens, num_ranks):
    ranks = split_micro_batches(sequences, max_tokens=max_tokens, num_ranks=num_ranks, share_prefixes=share_prefixes)
    assert len(ranks) == num_ranks
    assert len({len(chunks) for chunks in ranks}) == 1
    everything = [i for chunks in ranks for chunk in chunks for i in chunk]
    assert sorted(everything) == list(range(len(sequences)))
    for chunk in (chunk for chunks in ranks for chunk in chunks if chunk):
        size = len(build_forest([sequences[i] for i in chunk], share_prefixes=share_prefixes).token_ids)
        assert size <= max_tokens or len(chunk) == 1


def test_ranks_are_balanced_by_tokens():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 500, length).astype(np.int32) for length in rng.integers(10, 60, 64)]
    ranks = split_micro_batches(sequences, max_tokens=10_000, num_ranks=4, share_prefixes=True)
    loads = [sum(len(sequences[i]) for chunk in chunks for i in chunk) for chunks in ranks]
    assert max(loads) - min(loads) <= 2 * 60


def test_a_group_larger_than_the_limit_repeats_its_prompt():
    prompt = list(range(10))
    sequences = [np.array([*prompt, 100 + i, 200 + i], np.int32) for i in range(6)]
    ((*chunks,),) = split_micro_batches(sequences, max_tokens=14, num_ranks=1, share_prefixes=True)
    assert sorted(map(len, chunks)) == [2, 2, 2]


@pytest.mark.parametrize(("num_prompt", "expected"), [(40, "shared_prompt"), (1, "packed")])
def test_auto_layout_follows_what_sharing_saves(num_prompt, expected):
    prompt = list(range(num_prompt))
    sequences = [np.array([*prompt, 500 + i, *range(100, 130)], np.int32) for i in range(8)]
    assert choose_layout("auto", sequences) == expected
    assert choose_layout("packed", sequences) == "packed"
