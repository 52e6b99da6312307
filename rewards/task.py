"""A task, as the rest of the system sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
"""One chat message: at least `role` and `content`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertResponse:
    """An off-policy answer that comes with the task.

    Attributes:
        text: the answer as text; rendered once by the renderer.
        logprobs: per-token nats under whoever wrote it, when known; None stays unknown.
        author: who wrote it (dataset, model name).
        score: how good it is on record; the rejected answer of a preference pair has 0.
    """

    text: str
    logprobs: tuple[float, ...] | None = None
    author: str = "dataset"
    score: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem instance.

    Attributes:
        task_id: stable across runs; the key of the prompt ledger (`prompt_id` of groups).
        prompt: text of the user turn, or chat messages.
        reference: what the verifier compares with; None where the verifier needs none.
        metadata: JSON-serialisable, passed to the verifier (e.g. the entry of a procedural generator).
        expert: off-policy answers to this very task.
        tags: labels metrics are split by, e.g. {"coverage": "covered"}.
    """

    task_id: str
    prompt: str | tuple[Message, ...]
    reference: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expert: tuple[ExpertResponse, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def messages(self) -> tuple[Message, ...]:
        if isinstance(self.prompt, str):
            return ({"role": "user", "content": self.prompt},)
        return self.prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """Tasks a run trains on and tasks it is judged by; no problem stands in both.

    `tasks: my_pkg.tasks:load` names a function that returns one of these (or a plain list of training tasks).
    """

    train: tuple[Task, ...]
    heldout: tuple[Task, ...] = ()
