"""A task in a context becomes token ids: what the engine continues, and what the learner conditions on.

What all groups of a task share comes first (the problem, then the help), so that the engine's prefix cache and the
learner's shared prompts compute it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from actors.renderer import Renderer
from rewards.task import Message, Task
from rewards.trajectory import Context
from rewards.verdict import Status, Verdict

PLAIN = Context()

CUES: dict[str, str] = {
    "hint": "Here is the beginning of a correct solution:\n{text}\nGo on from there and give the whole answer.",
    "plan": "This plan leads to a correct solution:\n{text}",
    "demo": "For your eyes only, a correct solution:\n{text}\nAnswer in your own words.",
    "feedback": "{text} Try again.",
    "role": "{text}",
}
"""Words around the help, by kind."""

FEEDBACK = {
    Status.SCORED: "That is not right.",
    Status.NO_ANSWER: "No answer could be found in that.",
    Status.REJECTED: "That answer was rejected.",
    Status.TIMEOUT: "That took too long.",
}
"""What is said about an attempt whose verifier said nothing in words; never the right answer."""

KINDS = frozenset({"none", "prefix", *CUES})


@dataclass(frozen=True, slots=True)
class Attempt:
    """An earlier answer to the same task and what became of it."""

    text: str
    verdict: Verdict | None

    @property
    def feedback(self) -> str:
        """In words, from `extras["feedback"]` of the verdict where its verifier wrote some."""
        if self.verdict is None:
            return FEEDBACK[Status.SCORED]
        own = self.verdict.extras.get("feedback")
        return own if isinstance(own, str) else FEEDBACK.get(self.verdict.status, "That did not work.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """Token ids of one group's prompt.

    Attributes:
        prompt_ids: everything up to where the answer begins.
        forced_ids: the beginning of every answer, which the policy has to continue.
        train_prompt_ids: the prompt the learner conditions on; None when it is the sampled one.
        context: what really stands in it; the record says nothing else.
    """

    prompt_ids: list[int]
    forced_ids: list[int]
    train_prompt_ids: list[int] | None
    context: Context

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.forced_ids)


def render_prompt(
    task: Task,
    context: Context,
    renderer: Renderer,
    *,
    cues: Mapping[str, str] | None = None,
    attempt: Attempt | None = None,
) -> RenderedPrompt:
    """The prompt of a task in a context; the plain one where the text that should be shown does not exist.

    Args:
        attempt: what feedback is about.

    Raises:
        ValueError: nobody knows this kind of context.
    """
    if context.kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ValueError(f"context of kind {context.kind!r}: nobody can show it; known kinds: {known}")
    plain = renderer.prompt_ids(task.messages)
    text = shown_text(task, context, attempt)
    if context.kind == "none" or not text:
        return RenderedPrompt(prompt_ids=plain, forced_ids=[], train_prompt_ids=None, context=PLAIN)
    if context.kind == "prefix":
        forced = cut_tokens(renderer, text, context)
        shown = replace(context, amount=float(len(forced)), unit="tokens")
        return RenderedPrompt(prompt_ids=plain, forced_ids=forced, train_prompt_ids=None, context=shown)
    messages = guided_messages(task, context, text, cues=cues, attempt=attempt)
    return RenderedPrompt(
        prompt_ids=renderer.prompt_ids(messages),
        forced_ids=[],
        train_prompt_ids=plain if context.removed else None,
        context=context,
    )


def guided_messages(
    task: Task, context: Context, text: str, *, cues: Mapping[str, str] | None = None, attempt: Attempt | None = None
) -> tuple[Message, ...]:
    """The conversation with the help in it: below the last user turn, or after the attempt it is about."""
    cue = (cues or {}).get(context.kind, CUES[context.kind]).replace("{text}", text)
    if context.kind == "feedback" and attempt is not None:
        answered: Message = {"role": "assistant", "content": attempt.text}
        return (*task.messages, answered, {"role": "user", "content": cue})
    *before, last = task.messages
    return (*before, {**last, "content": f"{last['content']}\n\n{cue}"})


def source_text(task: Task, context: Context) -> str | None:
    """The whole text a context takes its part of; None where the task has none, and for feedback."""
    if context.kind == "role":
        return context.reference
    if context.kind in ("none", "feedback"):
        return None
    if context.reference in (None, "expert"):
        return task.expert[0].text if task.expert else None
    found = task.metadata.get(context.reference)
    return found if isinstance(found, str) else None


def shown_text(task: Task, context: Context, attempt: Attempt | None = None) -> str | None:
    """The text that is shown; of a prefix the whole one, because it is cut in tokens."""
    if context.kind == "feedback":
        return attempt.feedback if attempt is not None else None
    text = source_text(task, context)
    if text is None or context.amount is None or context.kind == "prefix":
        return text
    if context.unit == "steps":
        return text[: _steps_end(text, int(context.amount))].rstrip()
    return _cut_words(text, context.amount)


def cut_tokens(renderer: Renderer, text: str, context: Context) -> list[int]:
    """The first tokens of an oracle answer, as the policy would have sampled them.

    A cut within a character is moved before it: its bytes alone are no text.
    """
    ids = renderer.answer_ids(text)[:-1]
    if context.amount is None:
        return ids
    if context.unit == "tokens":
        count = int(context.amount)
    elif context.unit == "steps":
        count = _tokens_covering(renderer, ids, _steps_end(text, int(context.amount)))
    else:
        count = int(context.amount * len(ids) + 1e-9)
    count = min(count, len(ids))
    while 0 < count < len(ids) and renderer.decode(ids[:count]).endswith("�"):
        count -= 1
    return ids[:count]


def _tokens_covering(renderer: Renderer, ids: list[int], num_characters: int) -> int:
    """The fewest leading tokens whose text has at least so many characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(renderer.decode(ids[:middle])) < num_characters:
            low = middle + 1
        else:
            high = middle
    return low


def _steps_end(text: str, num_steps: int) -> int:
    """Characters of the first `num_steps` lines that are not empty, line ends included."""
    end = seen = 0
    for line in text.splitlines(keepends=True):
        if seen == num_steps:
            break
        end += len(line)
        seen += bool(line.strip())
    return end


def _cut_words(text: str, share: float) -> str:
    """A share of the characters; a word or formula the cut falls into is left out."""
    end = round(share * len(text))
    while 0 < end < len(text) and not (text[end].isspace() or text[end - 1].isspace()):
        end -= 1
    return text[:end].rstrip()
