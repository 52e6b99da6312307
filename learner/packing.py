"""Sequences to micro-batches: common prefixes once, tokens balanced, and who may see whom as one array.

A micro-batch is a forest of tokens in depth-first order. Sequences that begin with the same tokens (a group's shared
prompt, the chat template of all groups, equal answers) share those nodes, because a hidden state depends on nothing
but the tokens before it. Token j sees token i exactly when i <= j < subtree_end[i]; one formula covers packed
sequences (each a tree of its own), shared prompts and everything between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer]

Layout = Literal["shared_prompt", "packed"]

MIN_SHARED_SAVING = 0.2
"""Share of tokens that common prefixes must save before they beat the kernels for plain packed sequences."""


@dataclass(frozen=True, slots=True)
class Forest:
    """Tokens of a micro-batch in depth-first order.

    Attributes:
        token_ids: [n] int64.
        position_ids: [n] int64, depth: the token's position in its own sequence.
        subtree_end: [n] int64, one past the last token that sees this one.
        paths: for each input sequence, in input order, the nodes of its tokens.
    """

    token_ids: Int64Array
    position_ids: Int64Array
    subtree_end: Int64Array
    paths: tuple[Int64Array, ...]


def build_forest(sequences: Sequence[Tokens], *, share_prefixes: bool) -> Forest:
    """Lays sequences out in one row, common prefixes once if asked.

    Args:
        sequences: at least one, none of them empty.
    """
    order = _prefix_order(sequences) if share_prefixes else range(len(sequences))
    paths: list[Int64Array] = [np.empty(0, np.int64)] * len(sequences)
    subtree_end = np.empty(sum(map(len, sequences)), np.int64)
    tokens, positions = [], []
    previous, open_path, count = np.empty(0, np.int32), np.empty(0, np.int64), 0
    for index in order:
        sequence = sequences[index]
        shared = _common_prefix(previous, sequence) if share_prefixes else 0
        subtree_end[open_path[shared:]] = count
        num_new = len(sequence) - shared
        open_path = np.concatenate([open_path[:shared], np.arange(count, count + num_new)])
        tokens.append(sequence[shared:])
        positions.append(np.arange(shared, len(sequence)))
        paths[index], previous, count = open_path, sequence, count + num_new
    subtree_end[open_path] = count
    return Forest(
        np.concatenate(tokens).astype(np.int64), np.concatenate(positions), subtree_end[:count].copy(), tuple(paths)
    )


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Rows [start, end) of a forest attend to all rows of their ancestors and, as the forest says, to themselves.

    Attributes:
        ancestors: indices of earlier blocks, root first; each is a chain that all rows of this block descend from.
        causal: every row sees all rows before it in the block, so they need no mask among themselves.
    """

    start: int
    end: int
    ancestors: tuple[int, ...]
    causal: bool


def attention_blocks(subtree_end: Int64Array, *, max_rows: int) -> list[AttentionBlock]:
    """Cuts a forest into blocks of at most `max_rows` rows, so that no mask is larger than a block.

    Whole small subtrees stay together in one block; a larger one becomes the chain up to its first branching, which
    is an ancestor of the rest. Blocks cover all rows once, in order.
    """
    blocks: list[AttentionBlock] = []
    pending: list[tuple[int, int, tuple[int, ...]]] = [(0, len(subtree_end), ())]
    while pending:
        start, stop, ancestors = pending.pop()
        end = _whole_subtrees(subtree_end, start, stop, max_rows)
        if end > start:
            causal = bool((subtree_end[start:end] == end).all())
            blocks.append(AttentionBlock(start, end, ancestors, causal))
            if end < stop:
                pending.append((end, stop, ancestors))
            continue
        subtree_stop = int(subtree_end[start])
        if subtree_stop < stop:
            pending.append((subtree_stop, stop, ancestors))
        branches = np.flatnonzero(subtree_end[start:subtree_stop] != subtree_stop)
        chain_stop = start + int(branches[0]) if len(branches) else subtree_stop
        end = min(chain_stop, start + max_rows)
        blocks.append(AttentionBlock(start, end, ancestors, True))
        pending.append((end, subtree_stop, (*ancestors, len(blocks) - 1)))
    return blocks


def _whole_subtrees(subtree_end: Int64Array, start: int, stop: int, max_rows: int) -> int:
    """End of as many sibling subtrees from `start` on as fit into `max_rows`; `start` when the first does not fit."""
    end = start
    while end < stop and int(subtree_end[end]) - start <= max_rows:
        end = int(subtree_end[end])
    return end


def choose_layout(attention: Literal["auto", "shared_prompt", "packed"], sequences: Sequence[Tokens]) -> Layout:
    """The configured layout; for auto, shared prefixes where they save at least MIN_SHARED_SAVING of the tokens."""
    if attention != "auto":
        return attention
    packed = sum(map(len, sequences))
    shared = int(_costs([sequences[i] for i in _prefix_order(sequences)], share_prefixes=True).sum())
    return "shared_prompt" if shared <= (1 - MIN_SHARED_SAVING) * packed else "packed"


def split_micro_batches(
    sequences: Sequence[Tokens],
    *,
    max_tokens: int,
    num_ranks: int,
    share_prefixes: bool,
    together: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """Which sequences each rank computes in each of its micro-batches.

    Sequences with common prefixes stay neighbours; a group too large for one micro-batch continues in the next, where
    its prompt is computed again. The largest micro-batch is made as small as it can be, which balances the ranks.
    All ranks get the same number of micro-batches, so that their collectives stay in step; some may be empty. A
    sequence longer than `max_tokens` gets a micro-batch of its own.

    Args:
        together: per sequence, equal for those that must lie in one micro-batch; such a unit may be longer than
            `max_tokens`, too. None: each may lie anywhere.

    Returns:
        [rank][micro-batch] lists of indices into `sequences`.
    """
    order = list(_prefix_order(sequences)) if share_prefixes else list(range(len(sequences)))
    if together is not None:
        order = _units_adjacent(order, together)
    ordered = [sequences[i] for i in order]
    lengths = np.fromiter(map(len, ordered), np.int64, len(ordered))
    costs = _costs(ordered, share_prefixes=share_prefixes)
    starts = np.arange(len(order) + 1)
    if together is not None:
        units = np.asarray([together[i] for i in order])
        starts = np.flatnonzero(np.concatenate([[True], units[1:] != units[:-1], [True]]))
        added = lengths[starts[:-1]] - costs[starts[:-1]]
        costs = np.add.reduceat(costs, starts[:-1])
        lengths = costs + added
    fewest = len(_cut(lengths, costs, max_tokens))
    num_chunks = num_ranks * -(-fewest // num_ranks)
    low, high = max(1, -(-int(costs.sum()) // num_chunks)), max(max_tokens, 1)
    while low < high:
        middle = (low + high) // 2
        if len(_cut(lengths, costs, middle)) <= num_chunks:
            high = middle
        else:
            low = middle + 1
    chunks = [order[starts[first] : starts[last]] for first, last in _cut(lengths, costs, high)]
    chunks += [[]] * (num_chunks - len(chunks))
    return [chunks[rank::num_ranks] for rank in range(num_ranks)]


def _units_adjacent(order: Sequence[int], together: Sequence[int]) -> list[int]:
    """The order with each unit's sequences at the place of its first."""
    place: dict[int, int] = {}
    for i in order:
        place.setdefault(together[i], len(place))
    return sorted(order, key=lambda i: place[together[i]])


def _cut(lengths: Int64Array, costs: Int64Array, capacity: int) -> list[tuple[int, int]]:
    """Neighbouring sequences (or units of them) until `capacity`; the first of a chunk pays for its whole prefix."""
    cuts, first, load = [], 0, 0
    for i in range(len(lengths)):
        if i > first and load + costs[i] > capacity:
            cuts.append((first, i))
            first = i
        load = int(lengths[i]) if i == first else load + int(costs[i])
    return [*cuts, (first, len(lengths))]


def _costs(ordered: Sequence[Tokens], *, share_prefixes: bool) -> Int64Array:
    """Tokens each sequence adds when it follows the one before it."""
    costs = np.fromiter(map(len, ordered), np.int64, len(ordered))
    if share_prefixes:
        for i in range(1, len(ordered)):
            costs[i] -= _common_prefix(ordered[i - 1], ordered[i])
    return costs


def _prefix_order(sequences: Sequence[Tokens]) -> list[int]:
    """An order in which sequences with a common prefix are neighbours and a prefix comes before its continuation."""
    return sorted(range(len(sequences)), key=lambda i: np.ascontiguousarray(sequences[i], np.int32).tobytes())


def _common_prefix(left: Tokens, right: Tokens) -> int:
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length
