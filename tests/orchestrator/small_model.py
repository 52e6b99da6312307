"""A model folder without weights: a configuration with known sizes and a tokenizer of single characters."""

from __future__ import annotations

from pathlib import Path

from tests.actors.fakes import save_character_tokenizer

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, HEADS, KV_HEADS = 16, 40, 3, 128, 4, 2
POSITIONS = 256


def save_small_model(folder: Path) -> Path:
    """Enough to count parameters and prompt tokens."""
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return save_character_tokenizer(folder)
