"""One pool of judges with its cache and its numbers; the same class in a Ray actor and in one process."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rewards.combination import Parts
from rewards.config import RewardConfig
from rewards.isolation import ChildPool
from rewards.judges.config import JudgeConfig
from rewards.rubric import SANDBOXED
from rewards.sandbox import is_skipping_allowed
from rewards.sandbox_check import self_test
from rewards.task import Task
from rewards.verdict import Status

CACHED_STATUSES = frozenset({Status.SCORED, Status.NO_ANSWER, Status.REJECTED})
"""Verdicts that say something about the answer alone; the others say something about this moment."""
NUM_SLOWEST = 16
"""Samples the pool remembers as its slowest."""


class Backend(Protocol):
    """Who judges behind a pool: killable children, or a model or an endpoint that keeps its own limits.

    It answers within its limits for every sample: a fault of its own is an unscored verdict, never an exception and
    never a number. `judge_group` serves components of scope `group`.
    """

    async def start(self) -> None: ...

    async def judge_parts(self, answer: str, task: Task) -> Parts: ...

    async def judge_group(self, answers: Sequence[str], task: Task) -> list[Parts]: ...

    def resize(self, num_processes: int) -> None: ...

    def stats(self) -> Mapping[str, float]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """What a pool says of one answer, and whether it knew already."""

    parts: Parts
    is_cached: bool = False


class RewardPool:
    """Judges answers by the components of one pool.

    Consumes: answers with their tasks. Produces: one verdict per component. Waits for: its backend. Unblocked by: a
    verdict, or the backend's time limit.

    Args:
        config: what `RewardConfig.pool` gives for this pool.
        backend: None takes what `config` asks for: children that run the verifiers, or its service.
    """

    def __init__(self, config: RewardConfig, backend: Backend | None = None) -> None:
        self._config = config
        self.backend: Backend = backend or _make_backend(config)
        self._content_id = json.dumps(config.model_dump(mode="json", include={"components", "floor"}))
        self._cache: OrderedDict[bytes, Parts] = OrderedDict()
        self._num_cached = 0
        self._slowest: list[tuple[float, int, dict[str, Any]]] = []
        self._order = itertools.count()
        self._sandbox_check: asyncio.Task[None] | None = None
        self.scopes = frozenset(component.scope for component in config.components.values())

    async def start(self) -> None:
        """Starts the backend, after the sandbox has shown what it is worth.

        Raises:
            SandboxError: programs would be run, and the sandbox does not keep its promises on this machine.
            ChildStartError: a verifier cannot be imported or is misconfigured.
        """
        await self._check_sandbox()
        await self.backend.start()

    async def _check_sandbox(self) -> None:
        """The self-test, once, where a component runs model-written programs and no isolation is not allowed."""
        guarded = [c for c in self._config.components.values() if c.verifier in SANDBOXED]
        if all(is_skipping_allowed(c.options.get("unsafe_no_sandbox", False)) for c in guarded):
            return
        if self._sandbox_check is None:
            self._sandbox_check = asyncio.ensure_future(asyncio.to_thread(lambda: self_test().require()))
        await asyncio.shield(self._sandbox_check)

    async def judge(self, answer: str, task: Task) -> Judged:
        """Verdicts of the components that judge each answer by itself."""
        key = self._key(answer, task)
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self._num_cached += 1
            return Judged({name: replace(verdict, seconds=0.0) for name, verdict in known.items()}, is_cached=True)
        await self._check_sandbox()
        parts = await self.backend.judge_parts(answer, task)
        self._remember_slow(parts, task, answer)
        if self._config.cache_size and all(verdict.status in CACHED_STATUSES for verdict in parts.values()):
            self._cache[key] = parts
            if len(self._cache) > self._config.cache_size:
                self._cache.popitem(last=False)
        return Judged(parts)

    async def judge_group(self, answers: Sequence[str], task: Task) -> list[Parts]:
        """Verdicts of the components that judge a group as a whole, per answer; never from the cache."""
        judged = await self.backend.judge_group(answers, task)
        for parts, answer in zip(judged, answers, strict=True):
            self._remember_slow(parts, task, answer)
        return judged

    def _key(self, answer: str, task: Task) -> bytes:
        """Hash of all a verdict may depend on: the answer, the task, the components and the backend's version.

        A backend without a `version` runs code that does not change while this process lives. A task that cannot be
        written down is like no other: the backend says what is wrong with it.
        """
        prompt = task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt]
        version = str(getattr(self.backend, "version", ""))
        content = [self._content_id, version, task.task_id, prompt, task.reference, task.metadata, answer]
        try:
            text = json.dumps(content, default=repr)
        except (TypeError, ValueError, RecursionError):
            return secrets.token_bytes(32)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def _remember_slow(self, parts: Parts, task: Task, answer: str) -> None:
        seconds = sum(verdict.seconds for verdict in parts.values())
        if len(self._slowest) == NUM_SLOWEST and seconds <= self._slowest[0][0]:
            return
        statuses = {name: verdict.status.value for name, verdict in parts.items()}
        details = {"task_id": task.task_id, "seconds": seconds, "characters": len(answer), "statuses": statuses}
        heapq.heappush(self._slowest, (seconds, next(self._order), details))
        if len(self._slowest) > NUM_SLOWEST:
            heapq.heappop(self._slowest)

    def slowest(self) -> list[dict[str, Any]]:
        """The samples that took longest since the start, the slowest first."""
        return [details for _, _, details in sorted(self._slowest, reverse=True)]

    def stats(self) -> dict[str, float]:
        """The backend's numbers, and how often and how much the cache knows."""
        return {**self.backend.stats(), "cached": self._num_cached, "cache_entries": len(self._cache)}

    async def close(self) -> None:
        await asyncio.to_thread(self.backend.close)


def _make_backend(config: RewardConfig) -> Backend:
    """Who judges in a pool by its configuration; each brings its own heavy imports, here and in no other process."""
    if config.service is None:
        return ChildPool(config)
    if isinstance(config.service, JudgeConfig):
        from actors.judge_backend import JudgeBackend

        return JudgeBackend(config)
    from actors.score_backend import make_score_backend

    return make_score_backend(config)
