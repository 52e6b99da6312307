"""A real but tiny chat model: a million parameters, its own tokenizer, pre-trained on generated arithmetic.

Fast tests and smoke runs need weights that are not random, a real tokenizer with a chat template, and an accuracy
that leaves something to learn. Everything is generated here from a seed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
NUM_STEPS = 600
"""Enough to follow the chat format and to get a third of the lessons right, half of them when greedy."""
BATCH = 32
LEARNING_RATE = 2e-3
MAX_OPERAND = 19
"""Of the generated lessons; larger operands are what a run has to learn."""


def build_tiny_model(target: Path, *, seed: int = 0, num_steps: int = NUM_STEPS) -> None:
    """Trains tokenizer and model and saves both in Hugging Face format; equal seeds give equal bytes."""
    import torch

    tokenizer = _build_tokenizer()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would not help with matrices this small, and would change the order of sums
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _build_model(tokenizer)
        _pretrain(model, tokenizer, random.Random(seed), num_steps)
    torch.set_num_threads(num_threads)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _build_model(tokenizer: Any) -> Any:
    """Random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def _build_tokenizer() -> Any:
    """Byte-level BPE over generated text; digits stay single tokens, as in the models Braid trains."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator(
        (question + answer for question, answer in (_lesson(rng) for _ in range(2000))), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


def _lesson(rng: random.Random) -> tuple[str, str]:
    """A question and its answer; half of the answers are chatty, so that there is a style to learn too."""
    a, b = rng.randint(0, MAX_OPERAND), rng.randint(0, MAX_OPERAND)
    sign = rng.choice("+-")
    result = a + b if sign == "+" else a - b
    question = f"Calculate {a} {sign} {b}. Reply with only the number."
    answer = str(result) if rng.random() < 0.5 else f"The answer is {result}."
    return question, answer


def _pretrain(model: Any, tokenizer: Any, rng: random.Random, num_steps: int) -> None:
    """Next-token prediction on the answers of generated lessons, with a short warm-up and a linear end."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    model.train()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20, 5 * (num_steps - step) / num_steps)
        tokens, labels = _lesson_batch(tokenizer, rng)
        loss = model(input_ids=tokens, attention_mask=tokens != tokenizer.pad_token_id, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def _lesson_batch(tokenizer: Any, rng: random.Random) -> tuple[Any, Any]:
    """Token ids and labels, [B, T] each; questions and padding are not labelled."""
    import torch

    rows: list[tuple[list[int], int]] = []
    for _ in range(BATCH):
        question, answer = _lesson(rng)
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append((prompt_ids + answer_ids, len(prompt_ids)))
    width = max(len(ids) for ids, _ in rows)
    tokens = torch.full((BATCH, width), tokenizer.pad_token_id)
    labels = torch.full((BATCH, width), -100)
    for i, (ids, start) in enumerate(rows):
        tokens[i, : len(ids)] = torch.tensor(ids)
        labels[i, start : len(ids)] = torch.tensor(ids[start:])
    return tokens, labels
