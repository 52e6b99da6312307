"""Continuous batching over a Hugging Face causal language model: sequences join and leave between tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from rewards.trajectory import FinishReason, PolicyVersion, VersionSpan, VersionSpans


@dataclass(slots=True, eq=False)
class DecodedSequence:
    """One continuation in progress.

    Attributes:
        uniforms: source of the draws in [0, 1) that choose its tokens, independent of what else is in the batch.
        span_starts: (index of the first token, version that sampled it), one entry per version.
    """

    prompt: tuple[int, ...]
    temperature: float
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    uniforms: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    span_starts: list[tuple[int, PolicyVersion]] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt, *self.tokens)

    @property
    def versions(self) -> VersionSpans:
        ends = [start for start, _ in self.span_starts[1:]] + [len(self.tokens)]
        return tuple(VersionSpan(start, end, v) for (start, v), end in zip(self.span_starts, ends, strict=True))

    def append(self, token: int, logprob: float, version: PolicyVersion) -> None:
        if not self.span_starts or self.span_starts[-1][1] != version:
            self.span_starts.append((len(self.tokens), version))
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if token in self.stop_token_ids:
            self.finish_reason = FinishReason.STOP
        elif len(self.tokens) >= self.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH


class BatchDecoder:
    """Decodes up to `max_num_seqs` sequences together; not thread-safe.

    Rows are padded on the left, so that all sequences append at the same place. Between steps the cache holds all
    tokens of a row but its last.
    """

    def __init__(self, model: Any, max_num_seqs: int) -> None:
        self._model, self._max_num_seqs = model, max_num_seqs
        self._device = next(model.parameters()).device
        self._rows: list[DecodedSequence] = []
        self._waiting: deque[DecodedSequence] = deque()
        self._cache: list[tuple[Tensor, Tensor]] | None = None
        """Keys and values per layer, [B, heads, L, D]; None when they must be computed again."""
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self._device)
        """[B, L] 1 on tokens, 0 on padding."""

    @property
    def num_running(self) -> int:
        return len(self._rows)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._rows or self._waiting)

    def add(self, sequences: Iterable[DecodedSequence]) -> None:
        self._waiting.extend(sequences)

    def remove(self, sequences: Sequence[DecodedSequence]) -> None:
        """Forgets sequences wherever they are."""
        self._waiting = deque(s for s in self._waiting if s not in sequences)
        self._keep_rows([i for i, row in enumerate(self._rows) if row not in sequences])

    def forget_cache(self) -> None:
        """Running sequences are computed again from their tokens, under whatever the weights are then."""
        self._cache = None

    @torch.inference_mode()
    def step(self, version: PolicyVersion) -> list[DecodedSequence]:
        """Samples one token for every running sequence; returns those that finished."""
        self._admit()
        if not self._rows:
            return []
        logits = self._forward_last_tokens()
        tokens, logprobs = _sample(logits, self._rows)
        for row, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            row.append(token, logprob, version)
        finished = [row for row in self._rows if row.finish_reason is not None]
        if finished:
            self._keep_rows([i for i, row in enumerate(self._rows) if row.finish_reason is None])
        return finished

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int], temperature: float) -> np.ndarray:
        """[T] float32 log-probs of the tokens given their predecessors; the first is NaN."""
        ids = torch.tensor([list(token_ids)], device=self._device)
        logits = self._model(input_ids=ids, use_cache=False).logits[0, :-1].float() / temperature
        logprobs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        return np.concatenate([np.array([np.nan], np.float32), logprobs.cpu().numpy().astype(np.float32)])

    def _admit(self) -> None:
        """Moves waiting sequences into free rows and computes the cache of whatever has none."""
        free = self._max_num_seqs - len(self._rows)
        joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        if self._cache is None:
            self._rows += joining
            if self._rows:
                self._cache, self._mask = self._prefill(self._rows)
        elif joining:
            cache, mask = self._prefill(joining)
            width = max(mask.shape[1], self._mask.shape[1])
            self._cache = [
                (torch.cat([_padded(k, width), _padded(k2, width)]), torch.cat([_padded(v, width), _padded(v2, width)]))
                for (k, v), (k2, v2) in zip(self._cache, cache, strict=True)
            ]
            self._mask = torch.cat([_padded_mask(self._mask, width), _padded_mask(mask, width)])
            self._rows += joining

    def _prefill(self, rows: Sequence[DecodedSequence]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Cache and mask of all tokens but the last of each row; equal rows are computed once."""
        contexts = [row.ids[:-1] for row in rows]
        unique = list(dict.fromkeys(contexts))
        width = max(1, *(len(context) for context in unique))
        ids = torch.zeros(len(unique), width, dtype=torch.long)
        mask = torch.zeros(len(unique), width, dtype=torch.long)
        for i, context in enumerate(unique):
            if context:
                ids[i, -len(context) :] = torch.tensor(context)
                mask[i, -len(context) :] = 1
        mask = mask.to(self._device)
        cache = DynamicCache()
        self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        place = {context: i for i, context in enumerate(unique)}
        order = torch.tensor([place[context] for context in contexts], device=self._device)
        layers = [(keys[order], values[order]) for keys, values in _tensors(cache)]
        return layers, mask[order]

    def _forward_last_tokens(self) -> Tensor:
        """[B, V] float32 logits after each row's last token, which joins the cache."""
        last = torch.tensor([[row.ids[-1]] for row in self._rows], device=self._device)
        self._mask = torch.cat([self._mask, torch.ones_like(last)], dim=1)
        cache = DynamicCache(self._cache)
        output = self._model(
            input_ids=last,
            attention_mask=self._mask,
            position_ids=self._mask.sum(-1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        self._cache = _tensors(cache)
        return output.logits[:, -1].float()

    def _keep_rows(self, keep: list[int]) -> None:
        """Drops the other rows, and the padding no remaining row needs."""
        if len(keep) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in keep]
        if self._cache is None or not keep:
            self._cache = None
            return
        index = torch.tensor(keep, device=self._device)
        self._mask = self._mask[index]
        start = int(self._mask.shape[1] - self._mask.sum(-1).max())
        self._mask = self._mask[:, start:]
        self._cache = [(k[index, :, start:], v[index, :, start:]) for k, v in self._cache]


def _padded(states: Tensor, width: int) -> Tensor:
    """[B, heads, L, D] to [B, heads, width, D], zeros on the left."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))


def _padded_mask(mask: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _sample(logits: Tensor, rows: Sequence[DecodedSequence]) -> tuple[list[int], list[float]]:
    """One token per row by inverting the cumulative distribution, greedy where the temperature is 0.

    Log-probs are those of the distribution the token was drawn from; greedy ones at temperature 1.
    """
    temperatures = torch.tensor([row.temperature or 1.0 for row in rows], device=logits.device)
    logprobs = (logits / temperatures[:, None]).log_softmax(-1)
    greedy = torch.tensor([row.temperature == 0 for row in rows], device=logits.device)
    chosen = logits.argmax(-1)
    if not bool(greedy.all()):
        # In float64: the sum over a large vocabulary must not swallow the tail.
        cumulative = logprobs.double().exp().cumsum(-1)
        draws = torch.tensor([row.uniforms.random() for row in rows], dtype=torch.float64, device=logits.device)
        targets = draws[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        chosen = torch.where(greedy, chosen, drawn)
    values = logprobs.gather(-1, chosen[:, None])[:, 0]
    return chosen.tolist(), values.tolist()


def _tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [B, heads, length, head size] of each attention layer.

    Raises:
        ValueError: a layer keeps another kind of state (linear attention), which rows cannot join and leave.
    """
    tensors = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            raise ValueError(f"the transformers engine cannot batch {type(layer).__name__}; use the vLLM engine")
        tensors.append((keys, values))
    return tensors
