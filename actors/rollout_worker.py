"""RolloutWorker: fills tickets with scored groups from one engine, and follows the newest weights."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.config import RolloutConfig, WeightsConfig
from actors.contexts.render import PLAIN
from actors.engines.protocol import Engine, EngineError, SamplingRequest, WeightUpdate
from actors.finisher import Decision, Finisher
from actors.group_maker import GroupMaker, counted, merged, outcome_of
from actors.model_folder import keep_as_model
from actors.ports import (
    LeasedTask,
    ReportPort,
    RolloutReplayPort,
    RunFinished,
    ScorePort,
    StalledError,
    TaskPort,
    Ticket,
    WeightPort,
)
from actors.renderer import Renderer
from actors.rules.actions import Drop, Grow, Keep, Redo
from actors.rules.config import donor_sources, measured_picks
from actors.weights import ActivationReport, ReadLease, VersionGoneError, activate
from rewards.task import Task
from rewards.trajectory import Group, PolicyVersion
from rewards.verdict import Verdict

WEIGHT_POLL_S = 30.0
"""How long one wait for newer weights lasts before it is asked again."""

GONE_RETRY_S = 0.2
"""Pause before the store is asked again when a version was deleted before it could be read."""


@dataclass(frozen=True, slots=True)
class RolloutPorts:
    """Everything a rollout worker talks to."""

    tasks: TaskPort
    replay: RolloutReplayPort
    scoring: ScorePort
    weights: WeightPort
    report: ReportPort


@dataclass(frozen=True, slots=True)
class EvaluatedTask:
    """One held-out task with its answers and verdicts."""

    task_id: str
    tags: dict[str, str]
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class PinnedEvaluation:
    """Held-out answers that one policy version gave."""

    version: PolicyVersion
    step: int
    seconds: float
    tasks: tuple[EvaluatedTask, ...]
    kept: bool = False


class RolloutWorker:
    """Fills tickets with scored groups from one engine. Knows nothing of Ray.

    Consumes tickets, tasks and weight updates; produces scored groups and outcomes; waits for a ticket (and for
    weights new enough for it); unblocked by the learner's commits and publications.
    """

    def __init__(
        self,
        worker_id: str,
        config: RolloutConfig,
        weights: WeightsConfig,
        engine: Engine,
        renderer: Renderer,
        finisher: Finisher,
        ports: RolloutPorts,
        *,
        seed: int,
        cues: Mapping[str, str] | None = None,
        weights_timeout_s: float = 600.0,
    ) -> None:
        self._id, self._config, self._weights_config = worker_id, config, weights
        self._engine, self._renderer, self._finisher, self._ports = engine, renderer, finisher, ports
        self._seed, self._weights_timeout_s = seed, weights_timeout_s
        self._base_model = Path()
        self._active: WeightUpdate | None = None
        self._active_lease: ReadLease | None = None
        """Keeps the active version's files: an evaluation may copy them long after newer ones are out."""
        self._activated = asyncio.Condition()
        self._pin = asyncio.Lock()
        """Held while weights change and while an evaluation needs them not to."""
        self._drained = asyncio.Event()
        self._life, self._num_requests = secrets.token_hex(4), itertools.count()
        """Keys of requests: what is asked for twice, because a reply was lost, is given once."""
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._measures = measured_picks(config.rules)
        self._shows_experts = "expert" in donor_sources(config.rules)
        self._maker = GroupMaker(
            config,
            engine,
            renderer,
            ports.scoring,
            cues=cues or {},
            seed=seed,
            seconds=self._seconds,
            counts=self._counts,
        )

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self, model_path: str) -> None:
        """Starts the engine and activates the newest published version; nothing is served before that succeeded."""
        self._base_model = Path(model_path)
        await self._ports.tasks.release_worker(self._id)
        await self._engine.start(model_path, PolicyVersion(-1))
        pids = list(self._engine.child_pids)
        await self._ports.report.event("engine_started", {"worker": self._id, "pid": os.getpid(), "pids": pids})
        await self._catch_up(0)

    async def run(self, *, sample: bool = True) -> None:
        """Samples until the run finishes; an engine fault ends the loop after its tickets were given back.

        Args:
            sample: False only follows the weights, for runs that train on stored data and evaluate here.
        """
        num_loops = self._config.concurrent_groups if sample else 0
        loops = [asyncio.create_task(self._fill_loop()) for _ in range(num_loops)]
        work: asyncio.Future[Any] = asyncio.gather(*loops) if loops else asyncio.ensure_future(self._drained.wait())
        follower = asyncio.create_task(self._follow_weights())
        try:
            await asyncio.wait([work, follower], return_when=asyncio.FIRST_COMPLETED)
            if follower.done():
                follower.result()
            await work
        finally:
            for task in (*loops, work):
                task.cancel()
            async with self._pin:  # a change of weights is not cut short: it would leave the engine paused
                follower.cancel()
            await asyncio.gather(*loops, work, follower, return_exceptions=True)

    async def drain(self) -> None:
        """No new tickets; groups in flight are finished, then `run` returns."""
        self._drained.set()

    async def close(self) -> None:
        """Ends the engine and lets go of its version's files."""
        await self._engine.close()
        if self._active_lease is not None:
            self._active_lease.release()

    async def stats(self) -> dict[str, float]:
        """Counters since start: engine totals, groups by fate, seconds by cause."""
        engine = await self._engine.stats()
        counts = {name: float(n) for name, n in self._counts.items()}
        return {**engine, **counts, **self._seconds, "policy_version": float(self._active_version)}

    # -- weights ------------------------------------------------------------------------------------------------

    @property
    def _active_version(self) -> PolicyVersion:
        """The last verified one; the engine's own label is already newer while a change of weights goes on."""
        return PolicyVersion(-1) if self._active is None else self._active.version

    async def _follow_weights(self) -> None:
        """Until cancelled, also while draining: a group in flight may still wait for newer weights."""
        while True:
            update = await self._ports.weights.wait_newer(self._active_version, WEIGHT_POLL_S)
            if update is not None:
                await self._activate(update)

    async def _activate(self, update: WeightUpdate) -> ActivationReport | None:
        """Verified or raised; None when a newer version became active while this one waited its turn."""
        async with self._pin:
            if self._active is not None and update.version <= self._active.version:
                return None
            began = time.monotonic()
            try:
                lease = ReadLease(Path(update.path)) if update.path else None
            except VersionGoneError:  # deleted since it was announced, so a newer one is out or about to be
                await asyncio.sleep(GONE_RETRY_S)
                return None
            try:
                report = await activate(
                    self._engine,
                    update,
                    tolerance=self._weights_config.probe_tolerance,
                    clear_cache=self._weights_config.clear_cache,
                )
            except BaseException:
                if lease is not None:
                    lease.release()
                raise
            if self._active_lease is not None:
                self._active_lease.release()
            self._active, self._active_lease = update, lease
            self._seconds["activate_s"] += time.monotonic() - began
        async with self._activated:
            self._activated.notify_all()
        await self._ports.report.event("activated", {"worker": self._id, **report.as_dict()})
        return report

    async def _catch_up(self, min_step: int) -> None:
        """Activates until the weights contain `min_step` committed steps, whether or not `run` is following."""
        while self._active is None or self._active.step < min_step:
            update = await self._ports.weights.wait_newer(self._active_version, WEIGHT_POLL_S)
            if update is not None:
                await self._activate(update)

    async def _wait_for_step(self, min_step: int) -> None:
        """Raises StalledError when no weights with that many committed steps became active in time."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._weights_timeout_s), self._activated:
                await self._activated.wait_for(lambda: self._active is not None and self._active.step >= min_step)
        except TimeoutError as error:
            step = None if self._active is None else self._active.step
            raise StalledError(
                f"{self._id} waited {self._weights_timeout_s:g} s for weights with {min_step} committed steps; those "
                f"it runs have {step}. Its ticket has expired meanwhile: look at why the learner publishes nothing, or "
                "raise replay.ticket_timeout_s if its steps take that long."
            ) from error
        finally:
            self._seconds["weights_wait_s"] += time.monotonic() - began

    # -- sampling -----------------------------------------------------------------------------------------------

    async def _fill_loop(self) -> None:
        while not self._drained.is_set():
            ticket = await self._take_ticket()
            if ticket is None:
                return
            await self._fill(ticket)

    async def _take_ticket(self) -> Ticket | None:
        """None when there is nothing more to do. A ticket that arrives after draining began goes straight back: the
        wait is not cut short, because a grant already on its way would then be held by nobody."""
        began = time.monotonic()
        try:
            ticket = await self._ports.replay.take_ticket(self._id, self._config.group_size, self._key())
        except RunFinished:
            return None
        except StalledError:
            if self._drained.is_set():
                return None
            raise
        finally:
            self._seconds["ticket_wait_s"] += time.monotonic() - began
        if not self._drained.is_set():
            return ticket
        await self._ports.replay.return_ticket(ticket.ticket_id, "drained")
        return None

    def _key(self) -> str:
        return f"{self._life}-{next(self._num_requests)}"

    async def _fill(self, ticket: Ticket) -> None:
        """Turns one ticket into one stored group, or gives it back with a reason."""
        settled = False
        try:
            await self._wait_for_step(ticket.min_step)
            leased = await self._ports.tasks.lease_task(self._id, self._key())
            decision = await self._sample_until_settled(leased, ticket)
            if isinstance(decision.action, Keep):
                decision = replace(decision, refusal=await self._ports.replay.put(decision.group))
            else:
                await self._ports.replay.return_ticket(ticket.ticket_id, decision.fate)
            settled = True
            self._counts[f"groups_{decision.fate.replace(':', '_')}"] += 1
            forks = [self._maker.forked(fork, decision.group) for fork in decision.forks]
            await self._ports.tasks.finish_task(outcome_of(leased, decision, forks))
        except EngineError as error:
            await self._ports.report.event("engine_failed", {"worker": self._id, "error": str(error)})
            raise
        finally:
            if not settled:
                await asyncio.shield(self._ports.replay.return_ticket(ticket.ticket_id, "failed"))

    async def _sample_until_settled(self, leased: LeasedTask, ticket: Ticket) -> Decision:
        """Samples, judges and applies the recipe's rules; redo and grow stay on the same ticket."""
        leased = await self._prepared(leased)
        solved = await self._probed(leased, ticket)
        if solved is not None:
            return Decision(Drop("probe_solved"), solved)
        group = await self._sampled(leased, ticket, 0)
        for attempt in itertools.count(1):
            decision = self._finisher.decide(group, leased)
            match decision.action:
                case Keep() | Drop():
                    return decision
                case Redo() | Grow() if attempt >= self._finisher.max_attempts:
                    return Decision(Drop("attempts_exhausted"), group)
                case Redo(context=context):
                    again = replace(leased, context=context)
                    fresh = await self._sampled(again, ticket, attempt, previous=group)
                    group = replace(fresh, history=counted(group, "redo"))
                case Grow(num=num, context=context):
                    again = replace(leased, context=context)
                    group = merged(group, await self._maker.sample(again, ticket, num, attempt, previous=group))
        raise AssertionError("unreachable: the loop above has no end")

    async def _sampled(
        self, leased: LeasedTask, ticket: Ticket, attempt: int, *, previous: Group | None = None
    ) -> Group:
        """A whole group, with the greedy answer as its last member where the recipe compares with it."""
        group = await self._maker.sample(leased, ticket, ticket.group_size, attempt, previous=previous)
        if not self._config.greedy_baseline:
            return group
        greedy = await self._maker.sample(leased, ticket, 1, attempt, previous=previous, temperature=0.0)
        return replace(merged(group, greedy), history=group.history)

    async def _prepared(self, leased: LeasedTask) -> LeasedTask:
        """The lease with the donors that rules ask for."""
        if self._shows_experts:
            leased = await self._maker.with_experts(leased)
        return await self._maker.with_measures(leased, self._measures) if self._measures else leased

    async def _probed(self, leased: LeasedTask, ticket: Ticket) -> Group | None:
        """The greedy answer alone, when it is right and the recipe learns from what is not."""
        if not self._config.drop_greedily_solved:
            return None
        probe = await self._maker.sample(replace(leased, context=PLAIN), ticket, 1, -1, temperature=0.0)
        return probe if probe.trajectories[0].is_right else None

    # -- evaluation ---------------------------------------------------------------------------------------------

    async def evaluate(
        self,
        tasks: Sequence[Task],
        *,
        min_step: int,
        samples_per_task: int = 1,
        temperature: float = 0.0,
        keep_in: Path | None = None,
        better_than: float = -1.0,
    ) -> PinnedEvaluation:
        """Answers held-out tasks at one pinned version with at least `min_step` committed steps.

        Rollouts go on meanwhile, at the same version: weights are not changed until the evaluation is done.

        Args:
            keep_in: where the version is kept as a model folder when its accuracy is above `better_than`.
        """
        await self._catch_up(min_step)
        async with self._pin:
            assert self._active is not None
            active, began = self._active, time.monotonic()
            limit = asyncio.Semaphore(max(1, self._config.engine.max_num_seqs // samples_per_task))
            judged = await asyncio.gather(
                *(self._evaluate_task(limit, task, samples_per_task, temperature) for task in tasks)
            )
            seconds = time.monotonic() - began
            kept = keep_in is not None and _share_right(judged) > better_than
            if kept and keep_in is not None:
                await asyncio.to_thread(keep_as_model, active, self._base_model, keep_in)
            return PinnedEvaluation(active.version, active.step, seconds, tuple(judged), kept)

    async def _evaluate_task(
        self, limit: asyncio.Semaphore, task: Task, num_samples: int, temperature: float
    ) -> EvaluatedTask:
        request = SamplingRequest(
            max_new_tokens=self._config.sampling.max_new_tokens,
            num_samples=num_samples,
            temperature=temperature,
            stop_token_ids=self._renderer.stop_token_ids,
            seed=self._seed,
        )
        async with limit:
            completions = await self._engine.generate(self._renderer.prompt_ids(task.messages), request)
        answers = tuple(self._renderer.decode(c.token_ids) for c in completions)
        verdicts = await self._ports.scoring.score(task, answers, ())
        return EvaluatedTask(task.task_id, dict(task.tags), answers, tuple(verdicts))


def _share_right(tasks: Sequence[EvaluatedTask]) -> float:
    scored = [v for task in tasks for v in task.verdicts if v.score is not None]
    return sum(v.is_right for v in scored) / len(scored) if scored else 0.0
