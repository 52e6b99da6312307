"""Attention over a forest of tokens, for transformers models: SDPA block by block, flex_attention, or varlen kernels.

The layout travels through the model as a keyword argument; transformers calls `forest_attention` in every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from learner.packing import AttentionBlock, Int64Array, attention_blocks

ATTENTION_NAME = "braid_forest"
"""Name under which transformers knows `forest_attention`."""

MAX_BLOCK_ROWS = 128
"""Rows of one SDPA call on a CPU: larger blocks waste work on masked pairs, smaller ones on overhead."""

Backend = Literal["blocks", "flex", "varlen"]


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Who sees whom in one micro-batch, prepared once for all layers.

    Attributes:
        backend: blocks (SDPA, any device), flex (compiled block mask), varlen (whole sequences only).
        max_length: longest sequence, tokens.
        blocks, masks: for `blocks`; a mask is [rows, columns] additive, None where none is needed.
        block_mask: for `flex`.
        sequence_starts: [S + 1] int32, for `varlen`.
    """

    backend: Backend
    max_length: int
    blocks: tuple[AttentionBlock, ...] = ()
    masks: tuple[Tensor | None, ...] = ()
    block_mask: Any = None
    sequence_starts: Tensor | None = None


def choose_backend(device: torch.device, dtype: torch.dtype, *, share_prefixes: bool) -> Backend:
    """The fastest path that this device and dtype have."""
    if device.type != "cuda":
        return "blocks"
    if not share_prefixes and dtype != torch.float32 and find_spec("flash_attn") is not None:
        return "varlen"
    return "flex"


def make_layout(
    subtree_end: Int64Array, position_ids: Int64Array, *, backend: Backend, device: torch.device, dtype: torch.dtype
) -> AttentionLayout:
    """Prepares one micro-batch for `forest_attention`.

    Args:
        subtree_end, position_ids: [n], see `learner.packing.Forest`.
        dtype: of queries and keys.

    Raises:
        ValueError: varlen was asked for sequences that share prefixes.
    """
    max_length = int(position_ids.max()) + 1
    if backend == "blocks":
        blocks = tuple(attention_blocks(subtree_end, max_rows=MAX_BLOCK_ROWS))
        masks = _additive_masks(blocks, subtree_end, device, dtype)
        return AttentionLayout(backend, max_length, blocks=blocks, masks=masks)
    if backend == "flex":
        return AttentionLayout(backend, max_length, block_mask=_flex_mask(subtree_end, device))
    starts = np.append(np.flatnonzero(position_ids == 0), len(position_ids))
    if not np.array_equal(subtree_end, np.repeat(starts[1:], np.diff(starts))):
        raise ValueError("varlen attention packs whole sequences, but these share prefixes; use blocks or flex")
    return AttentionLayout(
        backend, max_length, sequence_starts=torch.as_tensor(starts, dtype=torch.int32, device=device)
    )


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention in which each token sees its own ancestors, for `transformers.AttentionInterface`.

    Args:
        query: [1, heads, n, head_dim]; key, value: [1, kv_heads, n, head_dim].

    Returns:
        [1, n, heads, head_dim] and no attention weights.

    Raises:
        ValueError: attention dropout, soft-capping, or a sliding window shorter than the longest sequence.
    """
    if dropout or softcap is not None or (sliding_window is not None and sliding_window < layout.max_length):
        raise ValueError(
            f"this attention does not do dropout={dropout}, softcap={softcap} or sliding_window={sliding_window} on "
            f"sequences of {layout.max_length} tokens; its log-probs would differ from the engine's"
        )
    query, key = query.to(value.dtype), key.to(value.dtype)
    output = _BACKENDS[layout.backend](query, key, value, layout, scaling)
    return output.transpose(1, 2), None


def _attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None
) -> Tensor:
    """One SDPA call per block; splitting and joining only copy, and in the backward pass add where rows are shared."""
    if len(layout.blocks) == 1:
        return F.scaled_dot_product_attention(
            query, key, value, layout.masks[0], is_causal=layout.masks[0] is None, scale=scaling, enable_gqa=True
        )
    cuts = [block.end - block.start for block in layout.blocks]
    queries, keys, values = (t.split(cuts, dim=2) for t in (query, key, value))
    outputs = []
    for i, (block, mask) in enumerate(zip(layout.blocks, layout.masks, strict=True)):
        seen = (*block.ancestors, i)
        own_key = torch.cat([keys[j] for j in seen], dim=2) if block.ancestors else keys[i]
        own_value = torch.cat([values[j] for j in seen], dim=2) if block.ancestors else values[i]
        outputs.append(
            F.scaled_dot_product_attention(
                queries[i], own_key, own_value, mask, is_causal=mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(outputs, dim=2)


def _attend_flex(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None) -> Tensor:
    attend = _flex_attention(query.is_cuda)
    return attend(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=True)


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scaling: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    starts, longest = layout.sequence_starts, layout.max_length
    output = flash_attn_varlen_func(
        *(t[0].transpose(0, 1) for t in (query, key, value)),
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scaling,
        causal=True,
    )
    return output.transpose(0, 1)[None]


_BACKENDS: dict[Backend, Callable[[Tensor, Tensor, Tensor, AttentionLayout, float | None], Tensor]] = {
    "blocks": _attend_in_blocks,
    "flex": _attend_flex,
    "varlen": _attend_varlen,
}


def _additive_masks(
    blocks: tuple[AttentionBlock, ...], subtree_end: Int64Array, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """[rows, ancestors' rows + rows] per block: 0 where a row sees a column, -inf elsewhere."""
    masks: list[Tensor | None] = []
    for block in blocks:
        if block.causal and not block.ancestors:
            masks.append(None)
            continue
        num_ancestors = sum(blocks[i].end - blocks[i].start for i in block.ancestors)
        index = np.arange(block.start, block.end)
        sees = (index[None, :] <= index[:, None]) & (index[:, None] < subtree_end[None, block.start : block.end])
        hidden = np.where(sees, np.float32(0.0), np.float32(-np.inf))
        mask = np.concatenate([np.zeros((len(index), num_ancestors), np.float32), hidden], axis=1)
        masks.append(torch.as_tensor(mask, dtype=dtype, device=device))
    return tuple(masks)


def _flex_mask(subtree_end: Int64Array, device: torch.device) -> Any:
    """Block mask of the whole micro-batch: query j sees key i exactly when i <= j < subtree_end[i]."""
    from torch.nn.attention.flex_attention import create_block_mask

    end = torch.as_tensor(subtree_end, device=device)
    length = len(subtree_end)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    return create_block_mask(sees, None, None, length, length, device=device)


@cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


AttentionInterface.register(ATTENTION_NAME, forest_attention)
