"""A world small enough to know everything about: softmax tables in place of a model, recipes as they are.

A prompt is a number, its right answer a fixed string of tokens, the policy one softmax per prompt and position. Task
feed, guidance, samplers, rules, donors, advantages and losses are the system's own, set by a recipe; only sampling and
the gradient step on the table are of this file. Success probabilities are computed, never estimated.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from actors.contexts.policy import GuidancePolicy
from actors.finisher import Decision, Finisher
from actors.group_maker import counted, merged, outcome_of
from actors.ports import LeasedTask
from actors.rules.actions import Drop, Grow, Keep, Redo
from actors.rules.config import donor_tables, measured_picks
from actors.samplers.order import make_order
from actors.task_feed import TaskFeed
from learner.objective import Objective
from orchestrator.config import RunConfig
from rewards.task import ExpertResponse, Task
from rewards.trajectory import (
    Context,
    Group,
    PolicyVersion,
    Role,
    SamplingRecord,
    Source,
    Trajectory,
    VersionSpan,
)
from rewards.verdict import Verdict

COPIED_LOGIT = 20.0
"""Of a token the prompt shows."""
PLAIN = Context()

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class World:
    """What is asked, and what the policy can do at first.

    Attributes:
        length, vocabulary: of every answer.
        logit: [prompts] the right token's advantage in logits at every position at first; the others have 0.
        shared_positions: one softmax for all positions of a prompt, and all right tokens equal.
        shared_contexts: what is learned behind a hint counts for the plain prompt as well, except for what it shows.
        words: text of each prompt, for samplers that read it.
    """

    length: int
    vocabulary: int
    logit: Floats
    shared_positions: bool = False
    shared_contexts: bool = True
    words: Sequence[str] = ()

    @property
    def num_prompts(self) -> int:
        return len(self.logit)

    @property
    def tasks(self) -> list[Task]:
        """Each with its right answer as the expert's."""
        expert = (ExpertResponse(text="right"),)
        words = self.words or [f"prompt {i}" for i in range(self.num_prompts)]
        return [Task(task_id=str(i), prompt=text, reference="right", expert=expert) for i, text in enumerate(words)]


class TabularPolicy:
    """[rows, vocabulary] logits. Token 0 is right everywhere; which one that is means nothing to a softmax."""

    HINTS = (None, 0.25, 0.5, 0.75)

    def __init__(self, world: World, learning_rate: float) -> None:
        self.world, self._rate = world, learning_rate
        per_context = world.num_prompts * (1 if world.shared_positions else world.length)
        contexts = 1 if world.shared_contexts else 1 + len(self.HINTS)
        logits = np.zeros((contexts * per_context + 1, world.vocabulary))
        repeats = 1 if world.shared_positions else world.length
        logits[:-1, 0] = np.tile(np.repeat(world.logit, repeats), contexts)
        logits[-1, 0] = COPIED_LOGIT
        self._per_context = per_context
        self.logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        self._initial = self.logits.detach().clone()

    def rows(self, prompt: int, context: Context) -> Ints:
        """[length] row of the table each position is read from."""
        world, positions = self.world, np.arange(self.world.length)
        rows = np.full(world.length, prompt) if world.shared_positions else prompt * world.length + positions
        if context.kind not in ("hint", "demo"):
            return rows
        if not world.shared_contexts:
            rows = rows + (1 + self.HINTS.index(context.amount)) * self._per_context
        shown = cut(context, world.length) if context.amount is not None else 0
        return np.where(positions < shown, len(self.logits) - 1, rows)

    def log_table(self) -> Floats:
        return torch.log_softmax(self.logits.detach(), dim=1).numpy()

    def success(self, context: Context = PLAIN) -> Floats:
        """[prompts] probability of the right answer."""
        table = self.log_table()
        return np.exp([table[self.rows(i, context), 0].sum() for i in range(self.world.num_prompts)])

    def step(self, objective: Objective, groups: Sequence[Group], step: int) -> float:
        """One step down the objective's gradient; its norm."""
        plan = objective.plan(groups)
        members = [t for group in groups for t in group.trajectories]
        mask = np.concatenate(plan.trained)
        if not mask.any():
            return 0.0
        rows = np.concatenate([np.concatenate([[0], trained_rows(self, t)]) for t in members])[mask]
        tokens = np.concatenate([t.token_ids for t in members]).astype(np.int64)[mask]
        columns = {
            name: torch.tensor(np.concatenate(arrays)[mask], dtype=torch.float64)
            for name, arrays in plan.columns.items()
        }
        behavior = np.concatenate([t.behavior_logprobs for t in members])[mask]
        columns["behavior_logprobs"] = torch.tensor(behavior, dtype=torch.float64)
        places = torch.tensor(rows), torch.tensor(tokens)
        columns["reference_logprobs"] = torch.log_softmax(self._initial, dim=1)[places]
        columns["logprobs"] = torch.log_softmax(self.logits, dim=1)[places]
        loss, _ = objective.loss(columns, step)
        (gradient,) = torch.autograd.grad(loss, self.logits)
        gradient[-1] = 0.0  # what a prompt shows is not learned
        with torch.no_grad():
            self.logits -= self._rate * gradient
        return float(gradient.norm())


def cut(context: Context, length: int) -> int:
    """Tokens a share covers, as prefixes are cut."""
    return int((context.amount or 0.0) * length + 1e-9)


def trained_rows(policy: TabularPolicy, member: Trajectory) -> Ints:
    context = PLAIN if member.sample_context.removed else member.sample_context
    return policy.rows(int(member.token_ids[0]), context)


@dataclass
class Lab:
    """One run of a recipe in a world.

    Attributes:
        rollouts: answers sampled so far, superseded and dropped ones included.
        max_tries: groups asked for in one step beyond which it goes on with what it has.
        gradient_norms: of the steps so far; exactly 0 where nothing was learned.
    """

    recipe: RunConfig
    world: World
    seed: int
    learning_rate: float
    groups_per_step: int
    max_tries: int = 64
    rollouts: int = 0
    steps: int = 0
    gradient_norms: list[float] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.policy = TabularPolicy(self.world, self.learning_rate)
        self._finisher, self._objective = Finisher(self.recipe.rollout.rules), Objective(self.recipe.terms)
        self._rng = np.random.default_rng(self.seed)
        self._folder = Path(tempfile.mkdtemp(prefix="claim-"))
        tasks, curriculum = self.world.tasks, self.recipe.curriculum
        self.feed = TaskFeed(
            tasks,
            seed=self.seed,
            log_dir=self._folder,
            order=make_order(curriculum.sampler, tasks, self.seed),
            guidance=GuidancePolicy(self.recipe.guidance, self.seed),
            stages=curriculum.stages,
            tables=donor_tables(self.recipe.rollout.rules),
            donors_from=curriculum.donors_from,
        )
        self._loop = asyncio.new_event_loop()
        self._used: deque[tuple[Group, int]] = deque()
        """Groups that may be trained on again, with how often they were."""

    def close(self) -> None:
        self.feed.close()
        self._loop.close()
        shutil.rmtree(self._folder)

    def run(self, *, max_rollouts: int, max_steps: int, goal: float = 2.0) -> Lab:
        """Until the mean success probability reaches the goal, or rollouts or steps are used up."""
        while self.rollouts < max_rollouts and self.steps < max_steps and self.policy.success().mean() < goal:
            self.step()
        return self

    def step(self) -> None:
        max_uses = self.recipe.replay.max_uses.get("live", 1)
        num_again = min(len(self._used), self.groups_per_step * (max_uses - 1) // max_uses)
        again = [self._used.popleft() for _ in range(num_again)]
        fresh: list[Group] = []
        for _ in range(self.max_tries):
            if len(fresh) + len(again) >= self.groups_per_step:
                break
            group = self._loop.run_until_complete(self._filled())
            fresh += [] if group is None else [group]
        uses = [*again, *((group, 0) for group in fresh)]
        groups = [group for group, _ in uses]
        self.gradient_norms.append(self.policy.step(self._objective, groups, self.steps) if groups else 0.0)
        self._used.extend((group, count + 1) for group, count in uses if count + 1 < max_uses)
        self.steps += 1

    async def _filled(self) -> Group | None:
        """One task of the feed to its end, as a rollout worker does it; None where the group is dropped."""
        leased = await self.feed.lease_task("lab")
        leased = replace(leased, donors=self._donors(leased))
        decision = self._settled(leased)
        self.fates[decision.fate] += 1
        await self.feed.finish_task(outcome_of(leased, decision))
        return decision.group if isinstance(decision.action, Keep) else None

    def _settled(self, leased: LeasedTask) -> Decision:
        group = self._sampled(leased, leased.context, self.recipe.rollout.group_size, 0)
        for attempt in range(1, self._finisher.max_attempts + 1):
            decision = self._finisher.decide(group, leased)
            match decision.action:
                case Redo(context=context):
                    fresh = self._sampled(leased, context, self.recipe.rollout.group_size, attempt)
                    group = replace(fresh, history=counted(group, "redo"))
                case Grow(num=num, context=context):
                    group = merged(group, self._sampled(leased, context, num, attempt))
                case _:
                    return decision
        return Decision(Drop("attempts_exhausted"), group)

    def _sampled(self, leased: LeasedTask, context: Context, num: int, attempt: int) -> Group:
        prompt, length = int(leased.task.task_id), self.world.length
        forced = cut(context, length) if context.kind == "prefix" else 0
        logs = self.policy.log_table()[self.policy.rows(prompt, context)]
        draws = self._rng.random((num, length, 1)) > np.exp(logs).cumsum(axis=1)[None, :, :-1]
        tokens = draws.sum(axis=2)
        tokens[:, :forced] = 0
        self.rollouts += num
        group_id = f"{leased.lease_id}.{attempt}"
        members = tuple(
            self._member(f"{group_id}/{i}", group_id, prompt, answer, logs, forced, context, attempt)
            for i, answer in enumerate(tokens)
        )
        return Group(
            group_id=group_id,
            prompt_id=leased.task.task_id,
            source=Source.LIVE,
            trajectories=members,
            num_asked=num,
            context=context,
        )

    def _member(
        self,
        trajectory_id: str,
        group_id: str,
        prompt: int,
        answer: Ints,
        logs: Floats,
        forced: int,
        context: Context,
        attempt: int,
        source: Source = Source.LIVE,
    ) -> Trajectory:
        length, version = len(answer), PolicyVersion(self.steps)
        roles = np.array([Role.CONTEXT, *[Role.FORCED] * forced, *[Role.SAMPLED] * (length - forced)], np.int8)
        recorded = np.full(length + 1, np.nan, np.float32)
        if source is Source.LIVE:
            recorded[1 + forced :] = logs[np.arange(length), answer][forced:]
        return Trajectory(
            trajectory_id=trajectory_id,
            group_id=group_id,
            source=source,
            token_ids=np.array([prompt, *answer], np.int32),
            roles=roles,
            behavior_logprobs=recorded,
            versions=(VersionSpan(1 + forced, length + 1, version),) if source is Source.LIVE else None,
            sample_context=context,
            verdict=Verdict.scored(float(not answer.any())),
            sampling=SamplingRecord(seed=attempt),
        )

    def _donors(self, leased: LeasedTask) -> Mapping[str, tuple[Trajectory, ...]]:
        """With the expert's answer, and measured where rules pick by what the policy thinks of a donor now."""
        donors = dict(leased.donors)
        prompt, logs = int(leased.task.task_id), self.policy.log_table()
        right = np.zeros(self.world.length, np.int64)
        donors["expert"] = (self._member("expert/0", "expert", prompt, right, logs, 0, PLAIN, 0, source=Source.EXPERT),)
        if "surest" in measured_picks(self.recipe.rollout.rules):
            for table, found in donors.items():
                donors[table] = tuple(_measured(donor, logs[trained_rows(self.policy, donor)]) for donor in found)
        return donors


def _measured(donor: Trajectory, logs: Floats) -> Trajectory:
    assert donor.verdict is not None
    mean = float(logs[np.arange(len(logs)), donor.token_ids[1:]].mean())
    return donor.with_verdict(replace(donor.verdict, extras={**donor.verdict.extras, "logprob_now": mean}))
