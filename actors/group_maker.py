"""GroupMaker: samples and judges the answers of one task in one context, and reads what the group came to."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from actors.assemble import expert_group, group_from_completions
from actors.config import RolloutConfig
from actors.contexts.render import PLAIN, Attempt, RenderedPrompt, guided_messages, render_prompt, shown_text
from actors.draws import sampling_seed
from actors.engines.protocol import Completion, Engine, SamplingRequest
from actors.finisher import Decision
from actors.likelihood import Likelihoods
from actors.ports import LeasedTask, Outcome, ScorePort, Ticket
from actors.renderer import Renderer
from actors.rules.actions import Fork
from actors.search.sampling import search_answers
from rewards.task import Task
from rewards.trajectory import Group, SamplingRecord, Trajectory


class GroupMaker:
    """Knows engine, chat template and judges; decides nothing.

    Args:
        cues: words around the help in a prompt, by kind of context, where the usual ones do not fit.
        seconds, counts: of the worker it belongs to.
    """

    def __init__(
        self,
        config: RolloutConfig,
        engine: Engine,
        renderer: Renderer,
        scoring: ScorePort,
        *,
        cues: Mapping[str, str],
        seed: int,
        seconds: defaultdict[str, float],
        counts: Counter[str],
    ) -> None:
        self._config, self._engine, self._renderer, self._scoring = config, engine, renderer, scoring
        self._likelihoods = Likelihoods(engine, renderer, config.engine.max_model_len)
        self._cues, self._seed, self._seconds, self._counts = cues, seed, seconds, counts

    async def sample(
        self,
        leased: LeasedTask,
        ticket: Ticket,
        num: int,
        attempt: int,
        *,
        previous: Group | None = None,
        temperature: float | None = None,
    ) -> Group:
        """`num` judged answers in the lease's context.

        Args:
            attempt: of this ticket; each has other draws.
            previous: the group that holds the answer a context of kind feedback is about.
            temperature: instead of the configured one, for probes that are never trained on.
        """
        sampling, is_trained = self._config.sampling, temperature is None
        temperature = sampling.temperature if temperature is None else temperature
        prompt = self._rendered(leased, previous)
        seed = sampling_seed(self._seed, leased.index, leased.attempt, attempt)
        request = SamplingRequest(
            max_new_tokens=sampling.max_new_tokens,
            num_samples=num,
            temperature=temperature,
            stop_token_ids=self._renderer.stop_token_ids,
            seed=seed,
        )
        began = time.monotonic()
        shown = [*prompt.prompt_ids, *prompt.forced_ids]
        if is_trained and self._is_searched(leased):
            completions = await self._searched(leased.task, shown, len(prompt.prompt_ids), request)
        else:
            completions = await self._engine.generate(shown, request)
        self._seconds["generate_s"] += time.monotonic() - began
        group = group_from_completions(
            replace(leased, context=prompt.context),
            ticket,
            prompt.prompt_ids,
            completions,
            SamplingRecord(temperature=temperature, seed=seed),
            group_id=f"{ticket.ticket_id}.{leased.index}.{attempt}",
            forced_ids=prompt.forced_ids,
            train_prompt_ids=prompt.train_prompt_ids,
        )
        group = await self._judged(leased.task, group)
        if self._config.likelihood is None or not is_trained:
            return group
        return await self._likelihoods.paid(leased.task, group, self._config.likelihood)

    def _is_searched(self, leased: LeasedTask) -> bool:
        search = self._config.search
        if search is None or leased.row is None or leased.donors.get(search.table):
            return False
        return search.when.holds(leased.row, epoch=0)

    async def _searched(
        self, task: Task, shown: list[int], num_prompt: int, request: SamplingRequest
    ) -> list[Completion]:
        """Answers of one tree; what ends on the way is judged at once, a forced beginning with it."""
        assert self._config.search is not None  # _is_searched looks

        async def judge(answers: Sequence[Completion]) -> list[bool]:
            texts = [self._renderer.decode([*shown[num_prompt:], *answer.token_ids.tolist()]) for answer in answers]
            verdicts = await self._scoring.score(task, texts, ())
            return [verdict.is_right for verdict in verdicts]

        self._counts["groups_searched"] += 1
        return await search_answers(self._engine, shown, request, judge, self._config.search)

    async def with_experts(self, leased: LeasedTask) -> LeasedTask:
        """The lease with the task's own expert answers among its donors, judged like anybody's; rejected ones not."""
        donors = dict(leased.donors)
        chosen = tuple(response for response in leased.task.expert if response.score >= 1.0)
        if chosen:
            answers = [self._renderer.answer_ids(response.text) for response in chosen]
            prompt_ids = self._renderer.prompt_ids(leased.task.messages)
            group = expert_group(replace(leased.task, expert=chosen), prompt_ids, answers)
            room = self._config.engine.max_model_len
            members = tuple(t for t in group.trajectories if len(t.token_ids) <= room)
            if members:
                donors["expert"] = (await self._judged(leased.task, replace(group, trajectories=members))).trajectories
        return replace(leased, donors=donors)

    async def with_measures(self, leased: LeasedTask, picks: Collection[str]) -> LeasedTask:
        """The lease with what rules pick its donors by: `understood`, `surest`."""
        donors = dict(leased.donors)
        for table, found in donors.items():
            if "understood" in picks:
                found = [await self._likelihoods.understood(leased.task, donor) for donor in found]
            if "surest" in picks:
                found = [await self._likelihoods.surest(donor) for donor in found]
            donors[table] = tuple(found)
        return replace(leased, donors=donors)

    def forked(self, fork: Fork, group: Group) -> Task:
        """The new task: its prompt is the whole conversation the context makes of the old one."""
        task, context, attempt = fork.task, fork.context, self._attempt(group, fork.attempt)
        text = shown_text(task, context, attempt)
        if context.kind == "none" or text is None:
            return task
        messages = guided_messages(task, context, text, cues=self._cues, attempt=attempt)
        return replace(task, prompt=tuple(messages), expert=())

    def _rendered(self, leased: LeasedTask, previous: Group | None) -> RenderedPrompt:
        """The prompt in its context, or the plain one where the answer would not fit behind it."""
        attempt = None if previous is None else self._attempt(previous, leased.context.reference)
        prompt = render_prompt(leased.task, leased.context, self._renderer, cues=self._cues, attempt=attempt)
        room = self._config.engine.max_model_len - self._config.sampling.max_new_tokens
        if prompt.num_tokens > room and prompt.context != PLAIN:
            self._counts["contexts_too_long"] += 1
            return render_prompt(leased.task, PLAIN, self._renderer)
        return prompt

    def _attempt(self, group: Group, trajectory_id: str | None) -> Attempt | None:
        for member in group.trajectories:
            if member.trajectory_id == trajectory_id:
                return Attempt(self._renderer.decode(member.token_ids[member.num_context_tokens :]), member.verdict)
        return None

    async def _judged(self, task: Task, group: Group) -> Group:
        """With one verdict per answer; a forced beginning is part of what is judged."""
        began = time.monotonic()
        answers = [self._renderer.decode(t.token_ids[t.num_context_tokens :]) for t in group.trajectories]
        verdicts = await self._scoring.score(task, answers, group.trajectories)
        self._seconds["score_s"] += time.monotonic() - began
        members = tuple(t.with_verdict(v) for t, v in zip(group.trajectories, verdicts, strict=True))
        return replace(group, trajectories=members)


def merged(group: Group, more: Group) -> Group:
    """The members of both under the first one's id."""
    offset = len(group.trajectories)
    extra = tuple(
        replace(t, group_id=group.group_id, trajectory_id=f"{group.group_id}/{offset + i}")
        for i, t in enumerate(more.trajectories)
    )
    return replace(
        group,
        trajectories=(*group.trajectories, *extra),
        num_asked=group.num_asked + len(extra),
        history=counted(group, "grow"),
    )


def counted(group: Group, action: str) -> dict[str, int]:
    """The group's history with one more superseded sampling."""
    history = Counter(group.history)
    history[action] += 1
    return dict(history)


def outcome_of(leased: LeasedTask, decision: Decision, forks: Sequence[Task] = ()) -> Outcome:
    """What the ledger learns of a group: answers of the policy itself, apart by whether they had help."""
    group = decision.group
    scored = [t for t in group.own_members if t.score is not None]
    plain = [t for t in scored if not t.sample_context.is_help]
    helped = [t for t in scored if t.sample_context.is_help]
    scores = [t.score for t in scored if t.score is not None]
    return Outcome(
        lease_id=leased.lease_id,
        group_id=group.group_id,
        prompt_id=group.prompt_id,
        num_scored=len(plain),
        num_correct=sum(t.is_right for t in plain),
        mean_score=sum(scores) / len(scores) if scores else None,
        version=group.oldest_version,
        fate=decision.fate,
        helped_scored=len(helped),
        helped_correct=sum(t.is_right for t in helped),
        context=group.context,
        history=group.history,
        is_retired=decision.is_retired,
        stashed=_stashed(decision),
        forks=tuple(forks),
    )


def _stashed(decision: Decision) -> dict[str, tuple[Trajectory, ...]]:
    """Members by table; what training conditions on is the plain prompt from here on."""
    tables: dict[str, tuple[Trajectory, ...]] = {}
    for stash in decision.stashes:
        chosen = [t for t in decision.group.trajectories if not stash.members or t.trajectory_id in stash.members]
        tables[stash.table] = (*tables.get(stash.table, ()), *chosen)
    return tables
