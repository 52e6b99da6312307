"""A tiny random Llama and batches for it: small enough for exact comparisons in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from learner.batch import MicroBatch, TrainingSequence, collate, training_sequences
from rewards.trajectory import Group, Source
from tests.builders import make_group

VOCABULARY = 512
PROMPT_HEAD = (1, 2, 3, 4)
"""Every prompt begins with these tokens, as with a chat template."""


def tiny_model(seed: int = 0, *, tied: bool = True) -> LlamaForCausalLM:
    """Two layers, grouped-query attention; weights large enough that wrong attention is seen in the log-probs."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    tiny_model(seed).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"any": "file of the tokenizer"}')
    return folder


def random_groups(
    shape: Sequence[tuple[int, Sequence[int]]], *, seed: int = 0, source: Source = Source.LIVE, tag: str = "g"
) -> list[Group]:
    """One group per (prompt tokens, answer lengths); scores alternate 1, 0; prompts share PROMPT_HEAD."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, VOCABULARY, count).tolist()

    return [
        make_group(
            group_id=f"{tag}{i}",
            source=source,
            prompt=[*PROMPT_HEAD, *tokens(num_prompt)],
            answers=[tokens(length) for length in lengths],
            scores=[float(j % 2 == 0) for j in range(len(lengths))],
        )
        for i, (num_prompt, lengths) in enumerate(shape)
    ]


def sampled_masks(groups: Sequence[Group]) -> list[np.ndarray]:
    return [t.sampled_mask for g in groups for t in g.trajectories]


def micro_batch(
    groups: Sequence[Group], *, share_prefixes: bool = True, sequences: Sequence[TrainingSequence] | None = None
) -> MicroBatch:
    """All sampled tokens of the groups in one micro-batch."""
    chosen = training_sequences(groups, sampled_masks(groups)) if sequences is None else sequences
    return collate(
        chosen, {}, share_prefixes=share_prefixes, backend="blocks", device=torch.device("cpu"), dtype=torch.float32
    )


def reference_logprobs(model: LlamaForCausalLM, groups: Sequence[Group], temperature: float = 1.0) -> Tensor:
    """[N] log-probs of all sampled tokens: one plain forward pass per trajectory through transformers' own attention
    and full logits, with gradient."""
    previous = model.config._attn_implementation
    model.set_attn_implementation("eager")
    parts = []
    for trajectory in (t for g in groups for t in g.trajectories):
        ids = torch.tensor(trajectory.token_ids, dtype=torch.int64)
        table = (model(ids[None]).logits[0] / temperature).log_softmax(-1)
        positions = np.flatnonzero(trajectory.sampled_mask)
        parts.append(table[positions - 1, ids[positions]])
    model.set_attn_implementation(previous)
    return torch.cat(parts)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all gradients; clears them."""
    copied = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return copied
