"""Models and batches of the learner benchmarks: random weights and tokens, the shapes of a real model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.trajectory import Group, Role, Source, Trajectory, VersionSpan
from rewards.verdict import Verdict

SMOLLM2_135M = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
}

QWEN3_600M = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options all learner benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=30, help="of a SmolLM2-135M-shaped model")
    return parser


def model_config(shape: dict[str, int], **changes: Any) -> Any:
    """A Llama configuration without special tokens."""
    from transformers import LlamaConfig

    none = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return LlamaConfig(**{**shape, "max_position_embeddings": 32768, "tie_word_embeddings": True, **none, **changes})


def save_random_model(folder: Path, layers: int) -> Path:
    """A SmolLM2-135M-shaped model folder, the same weights each time."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(model_config(SMOLLM2_135M, num_hidden_layers=layers)).save_pretrained(folder)
    return folder


def random_group(
    rng: np.random.Generator,
    prompt_tokens: int,
    answer_tokens: Sequence[int],
    *,
    group_id: str,
    source: Source = Source.LIVE,
    vocabulary: int = SMOLLM2_135M["vocab_size"],
) -> Group:
    """One prompt with random answers; scores differ, so that every answer has a gradient."""
    prompt = rng.integers(0, vocabulary, prompt_tokens)
    members = []
    for index, length in enumerate(answer_tokens):
        logprobs = np.full(prompt_tokens + length, np.nan, np.float32)
        logprobs[prompt_tokens:] = -np.log(vocabulary)
        members.append(
            Trajectory(
                trajectory_id=f"{group_id}/{index}",
                group_id=group_id,
                source=source,
                token_ids=np.concatenate([prompt, rng.integers(0, vocabulary, length)]).astype(np.int32),
                roles=np.repeat([Role.CONTEXT, Role.SAMPLED], [prompt_tokens, length]).astype(np.int8),
                behavior_logprobs=logprobs,
                versions=(VersionSpan(prompt_tokens, prompt_tokens + length, 0),) if source is Source.LIVE else None,
                verdict=Verdict.scored(float(index)),
            )
        )
    return Group(
        group_id=group_id, prompt_id=group_id, source=source, trajectories=tuple(members), num_asked=len(members)
    )
