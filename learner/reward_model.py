"""RewardModel: a transformers model with a one-number head behind one question, how good is this answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewards.task import Message

REFERENCE_TEMPLATE = "{question}\n\nReference answer: {reference}"
"""What a model that reads the reference sees in place of the last user turn."""


class TooLongError(ValueError):
    """Prompt and answer exceed the model's limit, so that their end could not be seen."""


class RewardModel(nn.Module):
    """Decoders are read at their last token, behind the chat template; encoders read prompt and answer as a pair.

    Args:
        model: with a head of one label.
        max_length: tokens of prompt and answer.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 4096) -> None:
        super().__init__()
        if model.config.num_labels != 1:
            raise ValueError(
                f"a scalar reward model has one label, this one has {model.config.num_labels}: its outputs are classes"
            )
        self.model, self.tokenizer, self._max_length = model.eval(), tokenizer, max_length
        self._is_decoder = hasattr(model, "score")
        if self._is_decoder and tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template, so prompt and answer cannot be told apart")

    @classmethod
    def load(cls, folder: str | Path, *, max_length: int = 4096, seed: int | None = None) -> RewardModel:
        """Reads a folder in Hugging Face format.

        Args:
            seed: draws a new head for a model that has none, to be trained; None refuses such a model.

        Raises:
            ValueError: no head of one label, or no chat template.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed or 0)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(folder), num_labels=1, dtype=torch.float32, output_loading_info=True
            )
        if seed is None and info["missing_keys"]:
            raise ValueError(
                f"{folder} holds no weights for {sorted(info['missing_keys'])}, so it is no trained reward model and "
                "its scores would be noise: train one (`braid train-reward`), or name another folder"
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model, tokenizer, max_length=max_length)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, messages: Sequence[Message], answer: str, reference: str | None = None) -> list[int]:
        """Token ids of the conversation with the answer as its last turn.

        Raises:
            TooLongError: more than `max_length` of them.
        """
        turns = [dict(message) for message in messages]
        if reference is not None:
            question = str(turns[-1]["content"])
            turns[-1]["content"] = REFERENCE_TEMPLATE.format(question=question, reference=reference)
        if self._is_decoder:
            turns.append({"role": "assistant", "content": answer})
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer("\n".join(str(turn["content"]) for turn in turns), answer)["input_ids"]
        if len(ids) > self._max_length:
            raise TooLongError(f"{len(ids)} tokens of prompt and answer, more than max_length={self._max_length}")
        return list(ids)

    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[B] fp32 logits of encoded answers, in one padded pass."""
        width = max(map(len, sequences))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*s, *[pad] * (width - len(s))] for s in sequences], device=self.device)
        mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], device=self.device)
        if not self._is_decoder:
            return self.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1).float()
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = torch.tensor([len(s) - 1 for s in sequences], device=self.device)
        return self.model.score(hidden[torch.arange(len(sequences), device=self.device), last]).squeeze(-1).float()

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]], *, batch_tokens: int = 16_384) -> list[float]:
        """Logits of encoded answers in their order; passes hold answers of like length and `batch_tokens` at most."""
        found = [0.0] * len(sequences)
        for places in length_batches([len(s) for s in sequences], batch_tokens):
            for place, score in zip(places, self([sequences[p] for p in places]).tolist(), strict=True):
                found[place] = score
        return found

    def save(self, folder: Path) -> None:
        """Writes model and tokenizer in Hugging Face format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Places of the sequences, sorted by length and cut so that padded tokens stay within `batch_tokens`; a longer
    sequence is alone."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[place] <= batch_tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
