"""Reads what judges reply. Whatever leaves the agreed form is no verdict: nothing is guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.task import Message
from rewards.verifiers import math_text

INTEGER = re.compile(r"[+-]?\d{1,9}")
MAX_LOG_ODDS = 10.0
"""Nats; beyond it a judge is as sure as it will be heard."""


class UnreadableReplyError(ValueError):
    """A reply that is none of those asked for."""


class JudgeError(RuntimeError):
    """A judge that gave no readable reply within its attempts."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said to one question.

    Attributes:
        is_cut: it ended at the token limit.
        label_logprobs: nats of each label as the reply, where labels were asked for; one the service did not name is
            missing.
        bound: nats that a label which is missing has at most.
    """

    text: str
    is_cut: bool = False
    label_logprobs: Mapping[str, float] | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call.

    Attributes:
        read: turns the reply into a value, or raises UnreadableReplyError.
        labels: ask for the log-probs of these replies instead of a text.
        vote: other votes on the same thing are drawn with other seeds.
    """

    messages: tuple[Message, ...]
    read: Callable[[Reply], Any]
    labels: tuple[str, ...] | None = None
    vote: int = 0


class Ask(Protocol):
    """How a judge reaches its model. Raises JudgeError, or ServiceError where the service itself failed."""

    def __call__(self, question: Question, /) -> Awaitable[Any]: ...


class ServiceError(RuntimeError):
    """The service could not be reached or broke: a fault of the infrastructure. `pause_s`: as it asked for."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def text_of(reply: Reply) -> str:
    """The text of a reply that was not cut.

    Raises:
        UnreadableReplyError: it was cut, or is empty.
    """
    if reply.is_cut:
        raise UnreadableReplyError("the reply ended at its token limit")
    if not reply.text.strip():
        raise UnreadableReplyError("the reply is empty")
    return reply.text


def label(reply: Reply, labels: Sequence[str]) -> str:
    """The reply as one of the labels, blind to case, outer blanks and one final full stop."""
    text = text_of(reply).strip().removesuffix(".").strip().casefold()
    for known in labels:
        if text == known.casefold():
            return known
    raise UnreadableReplyError(f"{reply.text[:80]!r} is none of {list(labels)}")


def boxed_integer(reply: Reply, low: int, high: int) -> int:
    """The whole number in the last box, in [low, high]."""
    content = (math_text.last_box(text_of(reply)) or "").strip()
    if not INTEGER.fullmatch(content) or not low <= int(content) <= high:
        raise UnreadableReplyError(f"the last box holds {content[:40]!r}, no whole number from {low} to {high}")
    return int(content)


def json_object(reply: Reply, key: str) -> dict[str, Any]:
    """The first balanced JSON object of the reply that holds `key`; its keys must not repeat."""
    text, decoder = text_of(reply), json.JSONDecoder(object_pairs_hook=_unique)
    position = text.find("{")
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError):
            position = text.find("{", position + 1)
            continue
        if isinstance(found, dict) and key in found:
            return found
        position = text.find("{", end)
    raise UnreadableReplyError(f"no JSON object with the key {key!r} in {text[:80]!r}")


def integers(data: object, names: Sequence[str], low: int, high: int) -> dict[str, int]:
    """A whole number in [low, high] for each name, and for no other."""
    if not isinstance(data, Mapping) or set(data) != set(names):
        raise UnreadableReplyError(f"expected a value for each of {list(names)}, got {data!r:.200}")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UnreadableReplyError(f"{name}: {value!r:.40} is no whole number from {low} to {high}")
    return {name: data[name] for name in names}


def log_odds(reply: Reply, yes: str, no: str) -> float:
    """log P(yes) - log P(no) in nats, within MAX_LOG_ODDS.

    Of a label that the service did not name among the likeliest replies its bound is taken, if the other one is there.

    Source: RLBFF, arXiv:2509.21319: the reward is the difference of the two log-probabilities.
    """
    found = reply.label_logprobs or {}
    if yes not in found and no not in found:
        raise UnreadableReplyError(f"neither {yes!r} nor {no!r} is among the likeliest replies")
    bound = math.nan if reply.bound is None else reply.bound
    difference = found.get(yes, bound) - found.get(no, bound)
    if not math.isfinite(difference):
        raise UnreadableReplyError(f"log-probs {dict(found)} are no numbers")
    return min(max(difference, -MAX_LOG_ODDS), MAX_LOG_ODDS)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableReplyError(f"a key stands twice in {[name for name, _ in pairs]}")
    return found
