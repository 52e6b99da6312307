"""RewardModelBackend: a scalar reward model inside the reward actor, which scores waiting answers together."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from actors.model_store import resolve_model
from learner.reward_model import RewardModel, TooLongError
from rewards.combination import Parts
from rewards.config import RewardConfig
from rewards.judges.config import ScalarModel
from rewards.judges.prompts import judged_part
from rewards.judges.table import check_judges
from rewards.task import Task
from rewards.verdict import Status, Verdict

Waiting = tuple[list[int], "asyncio.Future[float]"]


class RewardModelBackend:
    """Scores answers by one number each.

    Consumes: answers with their tasks. Produces: a verdict per component. Waits for: the model, which takes all answers
    that wait at once. Unblocked by: a forward pass, or `total_timeout_s`.
    """

    def __init__(self, config: RewardConfig) -> None:
        assert isinstance(config.service, ScalarModel)
        check_judges(config)
        self._service, self._names = config.service, tuple(config.components)
        self._folder = resolve_model(config.service.model)
        self._version = _identity(self._folder)
        self._model: RewardModel | None = None
        self._waiting: list[Waiting] = []
        self._runner: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._num_scored = self._num_passes = 0
        self._service_s = 0.0

    @property
    def version(self) -> str:
        return self._version

    async def start(self) -> None:
        """Loads the model.

        Raises:
            ValueError: the folder holds no scalar reward model.
        """
        if self._model is None:
            await asyncio.to_thread(self._load)

    def _load(self) -> None:
        with self._lock:
            if self._model is None:
                device = self._service.device or ("cuda" if torch.cuda.is_available() else "cpu")
                model = RewardModel.load(self._folder, max_length=self._service.max_length)
                self._model = model.to(device)

    async def judge_parts(self, answer: str, task: Task) -> Parts:
        return dict.fromkeys(self._names, await self._verdict(answer, task))

    async def judge_group(self, answers: Sequence[str], task: Task) -> list[Parts]:
        del task
        return [{} for _ in answers]

    async def _verdict(self, answer: str, task: Task) -> Verdict:
        part = judged_part(answer, think_tag=self._service.think_tag, requires=None)
        if part is None:
            return Verdict.floor(Status.NO_ANSWER)
        if self._service.with_reference and task.reference is None:
            return Verdict.unscored(Status.INVALID_GOLD, extras={"error": "the model reads the task's reference"})
        began = time.monotonic()
        try:
            await self.start()
            assert self._model is not None
            reference = task.reference if self._service.with_reference else None
            ids = await asyncio.to_thread(self._model.encode, task.messages, part, reference)
            async with asyncio.timeout(self._service.total_timeout_s):
                score = await self._score(ids)
        except TooLongError as error:
            return Verdict.unscored(Status.JUDGE_ERROR, extras={"error": str(error)})
        except Exception as error:  # attributed: whatever the model's library does is no verdict
            status = Status.CANCELLED if self._is_closed else Status.INFRA_ERROR
            return Verdict.unscored(status, extras={"error": f"{type(error).__name__}: {error}"[:2000]})
        return Verdict.scored(score, seconds=time.monotonic() - began)

    def _score(self, ids: list[int]) -> asyncio.Future[float]:
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((ids, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.ensure_future(self._run())
        return future

    async def _run(self) -> None:
        """Scores what waits, then what came meanwhile, until nobody waits."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                scores = await asyncio.to_thread(self._scores, [ids for ids, _ in batch])
            except Exception as error:  # attributed: told to everybody who waits
                for _, future in batch:
                    if not future.done():
                        future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
                continue
            for (_, future), score in zip(batch, scores, strict=True):
                if not future.done():
                    future.set_result(score)

    def _scores(self, sequences: list[list[int]]) -> list[float]:
        assert self._model is not None
        began = time.monotonic()
        logits = self._model.scores(sequences, batch_tokens=self._service.batch_tokens)
        self._service_s += time.monotonic() - began
        self._num_scored += len(sequences)
        self._num_passes += 1
        if self._service.squash == "sigmoid":
            return torch.sigmoid(torch.tensor(logits, dtype=torch.float64)).tolist()
        return logits

    def resize(self, num_processes: int) -> None:
        """The model takes whatever waits; there is nothing to resize."""

    def stats(self) -> Mapping[str, float]:
        """Answers scored, batches they came in, seconds of the model, and answers that wait."""
        return {
            "judged": self._num_scored,
            "batches": self._num_passes,
            "service_s": self._service_s,
            "queued": len(self._waiting),
        }

    def close(self) -> None:
        """Called from another thread; nothing outlives the process."""
        self._is_closed = True


def _identity(folder: Path) -> str:
    """Digest of the names, sizes and times of a model's files."""
    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(repr((str(folder), files)).encode()).hexdigest()[:16]
