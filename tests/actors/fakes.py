"""Simple in-process ports around a rollout worker, and a chat tokenizer of single characters."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.ports import RunFinished, StalledError, Ticket
from rewards.task import Task
from rewards.trajectory import Group, Trajectory
from rewards.verdict import Verdict

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<end>", "<system>", "<user>", "<assistant>", "<tool>")


def save_character_tokenizer(folder: Path) -> Path:
    """A chat tokenizer in Hugging Face format: one token per printable character, about 100 in all."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *string.printable))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
    )
    wrapped.save_pretrained(folder)
    return folder


class FakeReplay:
    """A replay cache without its rules: hands out tickets and keeps the books of each of them.

    Args:
        num_tickets: after these the run is finished.
        max_outstanding: a ticket beyond waits until one comes back.
        min_step: of the tickets, by their number.
    """

    def __init__(
        self, num_tickets: int, *, max_outstanding: int = 64, min_step: Callable[[int], int] = lambda number: 0
    ) -> None:
        self._num_tickets, self._max_outstanding, self._min_step = num_tickets, max_outstanding, min_step
        self._changed = asyncio.Condition()
        self._stalled = False
        self.issued: list[Ticket] = []
        self.fates: dict[str, str] = {}
        """Ticket id to "put" or the reason it was returned with."""
        self.groups: list[Group] = []
        self.refusal: str | None = None
        """Why no group is taken; None takes all."""
        self.waiting = 0

    @property
    def outstanding(self) -> int:
        return len(self.issued) - len(self.fates)

    async def take_ticket(self, worker_id: str, group_size: int, key: str = "") -> Ticket:
        self.waiting += 1
        try:
            async with self._changed:
                await self._changed.wait_for(self._may_go_on)
        finally:
            self.waiting -= 1
        if self._stalled:
            raise StalledError("scripted: nobody commits")
        if len(self.issued) >= self._num_tickets:
            raise RunFinished
        number = len(self.issued)
        ticket = Ticket(
            ticket_id=f"ticket-{number}", worker_id=worker_id, group_size=group_size, min_step=self._min_step(number)
        )
        self.issued.append(ticket)
        return ticket

    async def return_ticket(self, ticket_id: str, reason: str) -> None:
        await self._settle(ticket_id, reason)

    async def put(self, group: Group) -> str | None:
        assert group.ticket_id is not None
        self.groups.append(group)
        await self._settle(group.ticket_id, "put")
        return self.refusal

    async def allow(self, max_outstanding: int) -> None:
        self._max_outstanding = max_outstanding
        await self._notify()

    async def stall(self) -> None:
        """Every wait for a ticket ends with StalledError."""
        self._stalled = True
        await self._notify()

    def _may_go_on(self) -> bool:
        is_finished = len(self.issued) >= self._num_tickets
        return self._stalled or is_finished or self.outstanding < self._max_outstanding

    async def _settle(self, ticket_id: str, fate: str) -> None:
        assert ticket_id in {ticket.ticket_id for ticket in self.issued}
        assert ticket_id not in self.fates, f"{ticket_id} was settled as {self.fates[ticket_id]}, now {fate}"
        self.fates[ticket_id] = fate
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class FakeScoring:
    """Verdicts by a function of task and answer; `gate` holds back those of tasks that `holds` while it is not set."""

    def __init__(self, judge: Callable[[Task, str], float | Verdict]) -> None:
        self._judge = judge
        self.gate = asyncio.Event()
        self.gate.set()
        self.holds: Callable[[Task], bool] = lambda task: True
        self.calls: list[tuple[Task, tuple[str, ...], tuple[Trajectory, ...]]] = []

    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        self.calls.append((task, tuple(answers), tuple(trajectories)))
        if self.holds(task):
            await self.gate.wait()
        scores = [self._judge(task, answer) for answer in answers]
        return [score if isinstance(score, Verdict) else Verdict.scored(score) for score in scores]


class FakeReport:
    """Remembers events; numbers go nowhere."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    async def report(self, role: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        pass

    async def event(self, kind: str, details: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(details)))

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [details for name, details in self.events if name == kind]
