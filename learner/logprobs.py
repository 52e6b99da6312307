"""Log-probs and entropy of chosen tokens from hidden states, in tiles, so that [tokens, vocabulary] never exists."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MAX_CPU_TILE_ELEMENTS = 1 << 20
"""Logits worked on at once on a CPU: 4 MiB stay in the last-level cache between the passes over a tile."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 512,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of `targets` under softmax(hidden @ weight.T / temperature), differentiable in hidden and weight.

    Works through tiles of [rows, part of the vocabulary]. At most `chunk_tokens * V` logits are kept for the backward
    pass and as many are in work; the others are computed again.

    Args:
        hidden: [M, H] hidden states that predict at least one target; any floating dtype.
        weight: [V, H] LM head.
        rows: [N] int64, the row of `hidden` that predicts each target. Siblings that continue one prompt share a row.
        targets: [N] int64 token ids.
        temperature: divides the logits; that of sampling.
        chunk_tokens: bound on the logits that exist at once, in rows of V.
        with_entropy: also return the entropy of each target's distribution, with its gradient.

    Returns:
        [N] fp32 nats, and [N] fp32 nats of entropy or None. First derivatives only.

    Raises:
        ValueError: temperature is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 to define log-probs, got {temperature}")
    if len(targets) == 0:
        empty = hidden.float().sum(1)[:0] + weight.float().sum() * 0.0
        return empty, empty if with_entropy else None
    logprobs, entropy = _TiledHead.apply(hidden, weight, rows, targets, temperature, chunk_tokens, with_entropy)
    return logprobs, entropy[rows] if with_entropy else None


@torch.no_grad()
def vocabulary_measures(
    hidden: Tensor, weight: Tensor, *, floor: float, temperature: float = 1.0, chunk_tokens: int = 512
) -> Tensor:
    """Numbers of the whole distributions softmax(hidden @ weight.T / temperature), without gradient.

    Args:
        hidden: [M, H]; weight: [V, H].
        floor: share of the largest probability from which on a token counts to the kept mass.
        chunk_tokens: bound on the logits that exist at once, in rows of V.

    Returns:
        [4, M] fp32: sum of squared probabilities, largest log-prob (nats), kept mass, entropy (nats).
    """
    measures = torch.empty(4, len(hidden), device=hidden.device)
    for start in range(0, len(hidden), chunk_tokens):
        rows = slice(start, start + chunk_tokens)
        log_probs = _tile_logits(hidden[rows], weight, temperature, None).log_softmax(1)
        largest = log_probs.amax(1)
        kept = log_probs >= (largest + math.log(floor))[:, None]
        probabilities = log_probs.exp()
        measures[3, rows] = -(probabilities * log_probs).sum(1)
        measures[0, rows] = probabilities.square().sum(1)
        measures[1, rows] = largest
        measures[2, rows] = torch.where(kept, probabilities, 0.0).sum(1)
    return measures


@torch.no_grad()
def likeliest_tokens(hidden: Tensor, weight: Tensor, *, chunk_tokens: int = 256) -> Tensor:
    """[M] int64 the token with the largest logit of each [M, H] hidden state under the [V, H] head."""
    chunks = hidden.split(chunk_tokens)
    return torch.cat([_tile_logits(chunk, weight, 1.0, None).argmax(1) for chunk in chunks])


def vocabulary_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    mixture: float,
    temperature: float = 1.0,
    chunk_tokens: int = 512,
) -> Tensor:
    """Generalised Jensen-Shannon divergence between two next-token distributions, with gradient in the first.

    S, T: softmax of the logits of policy and teacher;  M = (1 - mixture) S + mixture T
    D = mixture KL(T || M) + (1 - mixture) KL(S || M);  mixture 0: KL(T || S), mixture 1: KL(S || T)

    Works through tiles of the vocabulary; of heads of different length the common first rows count, as some models
    pad the vocabulary with rows no token has.

    Args:
        hidden: [M, H]; weight: [V, H] of the policy.
        teacher_hidden: [M, H']; teacher_weight: [V', H'], without gradient.
        chunk_tokens: bound on the logits of each model that exist at once, in rows of V.

    Returns:
        [M] fp32 nats. First derivatives only.

    Source: GKD, arXiv:2306.13649; the special cases at 0 and 1 as in its implementations.
    """
    if len(hidden) == 0:
        return hidden.float().sum(1) + weight.float().sum() * 0.0
    common = min(len(weight), len(teacher_weight))
    arguments = (hidden, weight[:common], teacher_hidden.detach(), teacher_weight.detach()[:common])
    return _TiledDivergence.apply(*arguments, mixture, temperature, chunk_tokens)


class _TiledDivergence(torch.autograd.Function):
    """d z = S (g - sum S g) with g = dD/dS:
    -T / S at mixture 0, ln S - ln T at 1, else (1 - mixture) (ln S - ln M)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        mixture: float,
        temperature: float,
        chunk_tokens: int,
    ) -> Tensor:
        models = ((hidden, weight), (teacher_hidden, teacher_weight))
        budget = chunk_tokens * len(weight)
        if hidden.device.type == "cpu":
            budget = min(budget, MAX_CPU_TILE_ELEMENTS)
        width = max(16, min(len(weight), budget // len(hidden)))
        tiles = [slice(start, start + width) for start in range(0, len(weight), width)]
        running = [_RunningSoftmax(len(hidden), hidden.device, with_entropy=False) for _ in models]
        for tile in tiles:
            for softmax, (states, head) in zip(running, models, strict=True):
                logits = _tile_logits(states, head[tile], temperature, None)
                softmax.add(logits, torch.empty_like(logits))
        normalizers = []
        for softmax in running:
            maximum, log_sum, _ = softmax.finish()
            normalizers.append(maximum + log_sum)
        divergence = torch.zeros(len(hidden), device=hidden.device)
        expected = torch.zeros_like(divergence)
        for tile in tiles:
            own, theirs = (
                _tile_logits(states, head[tile], temperature, None).sub_(normalizer[:, None])
                for normalizer, (states, head) in zip(normalizers, models, strict=True)
            )
            part, slope = _divergence_of_tile(own, theirs, mixture)
            divergence += part
            expected += slope.sum(1)
        ctx.save_for_backward(*(t for model in models for t in model), *normalizers, expected)
        ctx.tiles, ctx.mixture, ctx.temperature = tiles, mixture, temperature
        return divergence

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, teacher_hidden, teacher_weight, own_normalizer, their_normalizer, expected = ctx.saved_tensors
        grad_hidden = torch.zeros(hidden.shape, device=hidden.device) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for tile in ctx.tiles:
            own = _tile_logits(hidden, weight[tile], ctx.temperature, None).sub_(own_normalizer[:, None])
            theirs = _tile_logits(teacher_hidden, teacher_weight[tile], ctx.temperature, None)
            theirs.sub_(their_normalizer[:, None])
            _, slope = _divergence_of_tile(own, theirs, ctx.mixture)
            grad_logits = (slope - own.exp() * expected[:, None]) * (grads[0] / ctx.temperature)[:, None]
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden, grad_logits, weight[tile].to(hidden.dtype))
            if grad_weight is not None:
                _write_product(grad_weight[tile], grad_logits.T, hidden)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, *[None] * 5


def _divergence_of_tile(own: Tensor, theirs: Tensor, mixture: float) -> tuple[Tensor, Tensor]:
    """[M] the tile's part of the divergence and [M, v] S g, from log-probs."""
    if mixture == 0.0:
        teacher = theirs.exp()
        return (teacher * (theirs - own)).sum(1), -teacher
    if mixture == 1.0:
        slope = own.exp() * (own - theirs)
        return slope.sum(1), slope
    joint = torch.logaddexp(own + math.log(1.0 - mixture), theirs + math.log(mixture))
    slope = (1.0 - mixture) * own.exp() * (own - joint)
    return (mixture * theirs.exp() * (theirs - joint) + slope).sum(1), slope


class _Tiles:
    """Ranges of the vocabulary with the targets that fall into each."""

    def __init__(self, targets: Tensor, num_rows: int, vocabulary: int, chunk_tokens: int) -> None:
        budget = chunk_tokens * vocabulary
        if targets.device.type == "cpu":
            budget = min(budget, MAX_CPU_TILE_ELEMENTS)
        width = max(16, min(vocabulary, budget // num_rows))
        self.starts = list(range(0, vocabulary, width))
        self.ends = [min(start + width, vocabulary) for start in self.starts]
        self.num_kept = min(len(self.starts), chunk_tokens * vocabulary // (num_rows * width))
        """Tiles whose logits may stay until the backward pass."""
        self.order = torch.argsort(targets)
        bounds = torch.tensor([*self.starts, vocabulary], device=targets.device)
        self._splits = torch.searchsorted(targets[self.order], bounds).tolist()

    def __len__(self) -> int:
        return len(self.starts)

    def members(self, index: int) -> Tensor | None:
        """Positions in [N] of the targets inside tile `index`; None when there are none."""
        first, last = self._splits[index], self._splits[index + 1]
        return self.order[first:last] if last > first else None


def _tile_logits(hidden: Tensor, weight: Tensor, temperature: float, out: Tensor | None) -> Tensor:
    """[M, v] fp32; `out` is written where the products are fp32 already."""
    if hidden.dtype == torch.float32:
        logits = torch.mm(hidden, weight.float().T, out=out)
    else:
        logits = torch.mm(hidden, weight.to(hidden.dtype).T).float()
    return logits.div_(temperature) if temperature != 1.0 else logits


class _TiledHead(torch.autograd.Function):
    """log p = z_y - log sum exp z;  H = log sum exp z - sum p z;  d z = g (1[y] - p) - g_H p (z - log Z + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        rows: Tensor,
        targets: Tensor,
        temperature: float,
        chunk_tokens: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        tiles = _Tiles(targets, len(hidden), len(weight), chunk_tokens)
        running = _RunningSoftmax(len(hidden), hidden.device, with_entropy)
        needs_backward = any(ctx.needs_input_grad)
        target_logits = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        buffer = torch.empty(len(hidden) * (tiles.ends[0] - tiles.starts[0]), device=hidden.device)
        scratch = torch.empty_like(buffer)
        kept = []
        for i, (start, end) in enumerate(zip(tiles.starts, tiles.ends, strict=True)):
            keep = needs_backward and i < tiles.num_kept
            shape = (len(hidden), end - start)
            out = None if keep else buffer[: shape[0] * shape[1]].view(shape)
            logits = _tile_logits(hidden, weight[start:end], temperature, out)
            members = tiles.members(i)
            if members is not None:
                target_logits[members] = logits[rows[members], targets[members] - start]
            running.add(logits, scratch[: shape[0] * shape[1]].view(shape))
            if keep:
                kept.append(logits)
        maximum, log_sum, entropy = running.finish()
        ctx.save_for_backward(hidden, weight, rows, targets, maximum + log_sum, entropy)
        ctx.tiles, ctx.kept, ctx.temperature = tiles, kept, temperature
        ctx.set_materialize_grads(False)
        # Subtracted one after the other: the sum of a large logit and a small log-sum would lose digits.
        return (target_logits - maximum[rows]) - log_sum[rows], entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad_logprobs, grad_entropy = grads
        hidden, weight, rows, targets, log_normalizer, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros(len(targets), device=hidden.device)
        row_grad = torch.zeros_like(log_normalizer).index_add_(0, rows, grad_logprobs)
        kept, ctx.kept = ctx.kept, []
        temperature, tiles = ctx.temperature, ctx.tiles
        grad_hidden = torch.zeros(hidden.shape, device=hidden.device) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        buffer = torch.empty(len(hidden) * (tiles.ends[0] - tiles.starts[0]), device=hidden.device)
        for i, (start, end) in enumerate(zip(tiles.starts, tiles.ends, strict=True)):
            part = weight[start:end]
            if i < len(kept):
                logits, kept[i] = kept[i], None
            else:
                shape = (len(hidden), end - start)
                logits = _tile_logits(hidden, part, temperature, buffer[: shape[0] * shape[1]].view(shape))
            grad_logits = _grad_of_tile(logits, log_normalizer, row_grad, entropy, grad_entropy)
            members = tiles.members(i)
            if members is not None:
                grad_logits.index_put_(
                    (rows[members], targets[members] - start), grad_logprobs[members], accumulate=True
                )
            if temperature != 1.0:
                grad_logits.div_(temperature)
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden, grad_logits, part.to(hidden.dtype))
            if grad_weight is not None:
                _write_product(grad_weight[start:end], grad_logits.T, hidden)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None


class _RunningSoftmax:
    """log sum exp and entropy over tiles of the vocabulary, rescaled whenever a larger logit turns up."""

    def __init__(self, num_rows: int, device: torch.device, with_entropy: bool) -> None:
        self._maximum = torch.full((num_rows,), -torch.inf, device=device)
        self._sum = torch.zeros(num_rows, device=device)
        self._weighted = torch.zeros(num_rows, device=device) if with_entropy else None

    def add(self, logits: Tensor, scratch: Tensor) -> None:
        """Takes in [M, v] logits; `scratch` is overwritten."""
        maximum = torch.maximum(self._maximum, logits.amax(1))
        shift = (self._maximum - maximum).clamp_(min=-1e30)  # finite also in front of the first tile
        scale = shift.exp()
        centred = torch.sub(logits, maximum[:, None], out=scratch)
        if self._weighted is None:
            self._sum = self._sum * scale + centred.exp_().sum(1)
        else:
            exponentials = centred.exp()
            self._weighted = scale * (self._weighted + shift * self._sum) + torch.linalg.vecdot(exponentials, centred)
            self._sum = self._sum * scale + exponentials.sum(1)
        self._maximum = maximum

    def finish(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """[M] largest logit, [M] log-normaliser minus it, [M] entropy or None."""
        log_sum = self._sum.log()
        entropy = None if self._weighted is None else log_sum - self._weighted / self._sum
        return self._maximum, log_sum, entropy


def _grad_of_tile(
    logits: Tensor, log_normalizer: Tensor, row_grad: Tensor, entropy: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    """[M, v] gradient of the logits without the targets' own part; overwrites `logits`."""
    log_probs = logits.sub_(log_normalizer[:, None])
    if grad_entropy is None or entropy is None:
        return log_probs.exp_().mul_(-row_grad[:, None])
    probabilities = log_probs.exp()
    factor = log_probs.add_(entropy[:, None]).mul_(-grad_entropy[:, None]).sub_(row_grad[:, None])
    return probabilities.mul_(factor)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _write_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype == right.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)
