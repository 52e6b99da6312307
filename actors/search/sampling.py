"""Answers found by a search over their segments, in the form the engine gives independent ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from actors.engines.protocol import Completion, Engine, SamplingRequest
from actors.search.config import SearchConfig
from actors.search.tree import Node, add_child, back_up, chosen_end, next_node
from rewards.trajectory import FinishReason, VersionSpan

Judge = Callable[[Sequence[Completion]], Awaitable[list[bool]]]
"""Whether each whole answer is right."""


async def search_answers(
    engine: Engine, prompt_ids: Sequence[int], request: SamplingRequest, judge: Judge, config: SearchConfig
) -> list[Completion]:
    """Up to `request.num_samples` whole answers from one tree, in the order in which they ended.

    Each round fills the node the rules choose with children and backs up one end. An answer that reaches the limit of
    tokens or depth ends incomplete. Answers of one tree share beginnings, so they say less than as many independent
    ones; tokens keep the versions that sampled them.

    Args:
        request: of whole answers; its seed makes every round's draws reproducible.
    """
    root, whole = Node(None), dict[int, Completion]()
    ends: list[Node] = []
    number = 0
    while len(ends) < request.num_samples and (node := next_node(root, config)) is not None:
        room = request.max_new_tokens - sum(len(part.tokens) for part in node.path)
        segment = replace(
            request,
            max_new_tokens=min(config.segment_tokens, room),
            num_samples=config.width - len(node.children),
            seed=None if request.seed is None else request.seed + number,
        )
        number += 1
        so_far = [token for part in node.path for token in part.tokens]
        parts = await engine.generate([*prompt_ids, *so_far], segment)
        new = [(part, _joined(whole.get(id(node)), part)) for part in parts]
        over = [_is_over(part, answer, node, request, config) for part, answer in new]
        right = iter(await judge([answer for (_, answer), is_over in zip(new, over, strict=True) if is_over]))
        found: list[Node] = []
        for (part, answer), is_over in zip(new, over, strict=True):
            is_right = next(right) if is_over else False
            cut = part.finish_reason is not FinishReason.STOP
            end = None if not is_over else "correct" if is_right else "incomplete" if cut else "wrong"
            child = add_child(node, part.token_ids.tolist(), part.logprobs.tolist(), end)
            whole[id(child)] = answer
            found += [child] if is_over else []
        ends += found
        best = chosen_end(found)
        if best is not None:
            back_up(best, config)
    return [whole[id(end)] for end in ends[: request.num_samples]]


def _is_over(
    part: Completion, answer: Completion, parent: Node, request: SamplingRequest, config: SearchConfig
) -> bool:
    is_cut = part.finish_reason is FinishReason.LENGTH
    has_room = len(answer.token_ids) < request.max_new_tokens and parent.depth + 1 < config.max_depth
    return not (is_cut and has_room)


def _joined(before: Completion | None, part: Completion) -> Completion:
    """A segment behind the answer so far; versions and log-probs stay those of their tokens."""
    if before is None:
        return part
    offset = len(before.token_ids)
    moved = tuple(VersionSpan(s.start + offset, s.end + offset, s.version) for s in part.versions)
    return Completion(
        token_ids=np.concatenate([before.token_ids, part.token_ids]),
        logprobs=np.concatenate([before.logprobs, part.logprobs]),
        versions=(*before.versions, *moved),
        finish_reason=part.finish_reason,
    )
