"""Backends of reward pools whose service returns a number for each answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from actors.judge_backend import Attempts
from actors.judge_clients import Http
from actors.reward_pool import Backend
from rewards.combination import Parts
from rewards.config import RewardConfig
from rewards.judges.config import ScalarModel, ScoreEndpoint
from rewards.judges.replies import JudgeError, ServiceError, UnreadableReplyError
from rewards.judges.table import check_judges
from rewards.task import Task
from rewards.verdict import Status, Verdict


def make_score_backend(config: RewardConfig) -> Backend:
    """The backend of a pool whose service is a scalar reward model or a score endpoint."""
    if isinstance(config.service, ScalarModel):
        from actors.reward_model_backend import RewardModelBackend

        return RewardModelBackend(config)
    return EndpointBackend(config)


class EndpointBackend:
    """An HTTP service that scores answers.

    Consumes: answers with their tasks. Produces: a verdict per component. Waits for: the service. Unblocked by: its
    reply, or the limits of `ServiceConfig`. A service that fails, and a score it could not give, is no number.
    """

    def __init__(self, config: RewardConfig) -> None:
        assert isinstance(config.service, ScoreEndpoint)
        check_judges(config)
        self._service, self._names = config.service, tuple(config.components)
        self._http = Http(config.service, config.service.api_key_env)
        self._attempts = Attempts(config.service)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    @property
    def version(self) -> str:
        return f"{self._service.url}@{self._service.revision}"

    async def start(self) -> None:
        """The first answer tells whether the service is there."""
        self._loop = asyncio.get_running_loop()

    async def judge_parts(self, answer: str, task: Task) -> Parts:
        await self.start()
        item = {
            "task_id": task.task_id,
            "prompt": [dict(message) for message in task.messages],
            "answer": answer,
            "reference": task.reference,
            "metadata": dict(task.metadata),
        }

        async def attempt(_: int) -> float | None:
            return _score(await self._http.post(self._service.url, {"items": [item]}))

        try:
            score = await self._attempts(attempt)
        except (ServiceError, JudgeError) as error:
            status = Status.CANCELLED if self._is_closed else Status.INFRA_ERROR
            verdict = Verdict.unscored(status, extras={"error": str(error)[:2000]})
        else:
            error = {"error": f"{self._service.url} could not score the answer"}
            verdict = Verdict.unscored(Status.JUDGE_ERROR, extras=error) if score is None else Verdict.scored(score)
        return dict.fromkeys(self._names, verdict)

    async def judge_group(self, answers: Sequence[str], task: Task) -> list[Parts]:
        del task
        return [{} for _ in answers]

    def resize(self, num_processes: int) -> None:
        """Requests in flight at a time."""
        self._attempts.resize(num_processes)

    def stats(self) -> Mapping[str, float]:
        """Totals of requests, retries and faults, seconds they took, and requests that wait."""
        return self._attempts.stats()

    def close(self) -> None:
        """Called from another thread while the loop runs."""
        self._is_closed = True
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._http.close(), self._loop).result(timeout=60)


def _score(data: dict[str, Any]) -> float | None:
    """The only score of a reply; null is an answer the service could not score."""
    scores = data.get("scores")
    if not isinstance(scores, list) or len(scores) != 1:
        raise UnreadableReplyError(f'expected {{"scores": [number or null]}} for one item, got {str(data)[:200]}')
    (score,) = scores
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise UnreadableReplyError(f"score {score!r} is no finite number")
    return float(score)
