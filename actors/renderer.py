"""Messages to token ids and back: the one file that knows chat templates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards.task import Message


class RenderError(ValueError):
    """A chat template cannot express what is asked."""


class Renderer:
    """Renders prompts with a model's own chat template; answers are never re-tokenised.

    Args:
        model_path: folder with the tokenizer files.
        system_prompt: replaces the template's own system message; None keeps it.
    """

    def __init__(self, model_path: str, system_prompt: str | None = None) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_path)
        self._system_prompt = system_prompt
        if not self._tokenizer.chat_template:
            raise RenderError(f"the tokenizer in {model_path} has no chat template, so chat prompts cannot be rendered")
        self._stop = self._stop_ids()

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer and are part of it."""
        return self._stop

    @property
    def fingerprint(self) -> str:
        """Digest of vocabulary and template; engine, learner and resumed runs must agree on it."""
        content = json.dumps(self._tokenizer.get_vocab(), sort_keys=True) + str(self._tokenizer.chat_template)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the model answers."""
        return self._ids(self._text(self._with_system(messages), add_generation_prompt=True))

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer as the model would have sampled it, end-of-turn token included."""
        return [*self._ids(text), self._stop[0]]

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Text of sampled tokens without special tokens; a view for verifiers and people."""
        return self._tokenizer.decode([int(t) for t in token_ids], skip_special_tokens=True)

    def extend(self, token_ids: Sequence[int], messages: Sequence[Message]) -> list[int]:
        """The tokens that follow a sampled answer when further messages (tool results, user turns) come in.

        Renders a dummy conversation without and with the messages and takes the difference, so the ids sampled so far
        stay exactly as they are.

        Args:
            token_ids: the sequence so far, ending with an answer.

        Raises:
            RenderError: the template rewrites earlier turns, so a difference does not exist.
        """
        dummy = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        before = self._text(dummy, add_generation_prompt=False)
        after = self._text([*dummy, *messages], add_generation_prompt=True)
        stop_text = self._tokenizer.decode([self._stop[0]])
        end = before.rfind(stop_text)
        head = before[: end + len(stop_text)] if end >= 0 else before
        if not after.startswith(head):
            raise RenderError("the chat template rewrites earlier turns; a multi-turn episode cannot be extended")
        suffix = after[len(head) :]
        ended = bool(len(token_ids)) and int(token_ids[-1]) in self._stop
        return self._ids(suffix if ended else stop_text + suffix)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if self._system_prompt is None or any(m["role"] == "system" for m in messages):
            return list(messages)
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            roles = ", ".join(str(m.get("role")) for m in messages)
            raise RenderError(f"the chat template refuses a conversation of {roles}: {error}") from error

    def _ids(self, text: str) -> list[int]:
        """The template already wrote every special token, so none is added: no second BOS."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _stop_ids(self) -> tuple[int, ...]:
        """The token the template ends an assistant turn with, then the tokenizer's own end of sequence."""
        tokenizer = self._tokenizer
        marked = self._text(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "MARK"}], add_generation_prompt=False
        )
        tail = self._ids(marked[marked.rfind("MARK") + len("MARK") :])
        special = set(tokenizer.all_special_ids)
        stops = [token for token in tail[:1] if token in special]
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in stops:
            stops.append(tokenizer.eos_token_id)
        if not stops:
            raise RenderError("the tokenizer has neither an end-of-turn nor an end-of-sequence token")
        return tuple(stops)
