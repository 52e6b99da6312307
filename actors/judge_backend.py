"""JudgeBackend: judges behind a reward pool, tried before they are used, with attempts and limits."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from actors.judge_clients import JudgeClient, RefusedError, make_client
from rewards.combination import Parts
from rewards.config import RewardConfig
from rewards.judges.admission import NotAdmittedError, trials
from rewards.judges.config import JudgeConfig, JudgeService
from rewards.judges.replies import JudgeError, Question, ServiceError, UnreadableReplyError
from rewards.judges.table import ADMITTED_UNSEEN, check_judges, resolve_judge
from rewards.task import Task
from rewards.verdict import Status, Verdict

FIRST_PAUSE_S = 1.0
"""Before the second attempt; doubles with each further one, with up to a half more by chance."""
MAX_SHOWN = 3


class Attempts:
    """Calls a service until it answers, within its limits; shared by all kinds of services.

    A fault of the service, or a reply nobody can read, is worth another attempt; a verdict never is.
    """

    def __init__(self, limits: JudgeService, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        self._limits, self._sleep = limits, sleep
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._jitter = random.Random()  # not seeded: it spreads retries and decides nothing
        self.counts: Counter[str] = Counter()
        self.service_s = 0.0
        self.num_waiting = 0

    def resize(self, num: int) -> None:
        """Requests from now on; those in flight keep their places."""
        self._slots = asyncio.Semaphore(num)

    def stats(self) -> dict[str, float]:
        """Totals of requests, retries and faults, seconds they took, and requests that wait."""
        names = ("requests", "retried", "unreadable", "service_faults", "timeouts")
        counts = {name: float(self.counts[name]) for name in names}
        return {**counts, "queued": self.num_waiting, "service_s": self.service_s}

    async def __call__(self, call: Callable[[int], Awaitable[Any]]) -> Any:
        """The first result of `call(attempt)`.

        Raises:
            ServiceError: the service failed in each attempt, or time is up.
            JudgeError: it replied, and no reply could be read.
        """
        self.num_waiting += 1
        async with self._slots:
            self.num_waiting -= 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._limits.total_timeout_s):
                    return await self._attempts(call)
            except TimeoutError:
                self.counts["timeouts"] += 1
                raise ServiceError(f"no answer within total_timeout_s={self._limits.total_timeout_s}") from None
            finally:
                self.service_s += time.monotonic() - began

    async def _attempts(self, call: Callable[[int], Awaitable[Any]]) -> Any:
        fault: Exception = ServiceError("never asked")
        for attempt in range(self._limits.num_attempts):
            if attempt > 0:
                self.counts["retried"] += 1
                pause = getattr(fault, "pause_s", None)
                if pause is None:
                    pause = FIRST_PAUSE_S * 2 ** (attempt - 1) * (1 + self._jitter.random() / 2)
                await self._sleep(pause)
            self.counts["requests"] += 1
            try:
                async with asyncio.timeout(self._limits.attempt_timeout_s):
                    return await call(attempt)
            except UnreadableReplyError as error:
                self.counts["unreadable"] += 1
                fault = JudgeError(f"unreadable: {error}")
            except TimeoutError:
                fault = ServiceError(f"no answer within attempt_timeout_s={self._limits.attempt_timeout_s}")
            except RefusedError:
                raise
            except ServiceError as error:
                self.counts["service_faults"] += 1
                fault = error
        raise fault


class JudgeBackend:
    """Judges answers by asking a model in words.

    Consumes: answers with their tasks. Produces: a verdict per component. Waits for: the model. Unblocked by: its
    reply, or the limits of `JudgeConfig`.

    Args:
        config: of one pool, as `RewardConfig.pool` gives it.
        client: None reaches the model that the configuration names.

    Raises:
        ImportPathError, ValueError: a component names no judge, or one that does not take its options.
    """

    def __init__(
        self,
        config: RewardConfig,
        client: JudgeClient | None = None,
        *,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        assert isinstance(config.service, JudgeConfig)
        check_judges(config)
        self._config, self._service = config, config.service
        self._client = client or make_client(config.service)  # type: ignore[arg-type]
        self._judges = {name: resolve_judge(name, part) for name, part in config.components.items()}
        self._attempts = Attempts(config.service, sleep)  # type: ignore[arg-type]
        self._admission: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    @property
    def version(self) -> str:
        return self._client.version

    async def start(self) -> None:
        """Reaches the model and tries every judge.

        Raises:
            NotAdmittedError: a judge pays for answers without content, or could not be tried.
        """
        self._loop = asyncio.get_running_loop()
        if self._admission is None:
            self._admission = asyncio.ensure_future(self._admitted())
        await asyncio.shield(self._admission)

    async def judge_parts(self, answer: str, task: Task) -> Parts:
        await self.start()
        return await self._parts(answer, task)

    async def judge_group(self, answers: Sequence[str], task: Task) -> list[Parts]:
        await self.start()
        return await self._group_parts(answers, task)

    async def _parts(self, answer: str, task: Task) -> Parts:
        names = [name for name, part in self._config.components.items() if part.scope == "sample"]
        judged = await asyncio.gather(*(self._judged(name, answer, task) for name in names))
        return {name: _as_verdict(result, name) for name, result in zip(names, judged, strict=True)}

    async def _group_parts(self, answers: Sequence[str], task: Task) -> list[Parts]:
        names = [name for name, part in self._config.components.items() if part.scope == "group"]
        judged = await asyncio.gather(*(self._judged(name, answers, task) for name in names))
        rows: list[dict[str, Verdict]] = [{} for _ in answers]
        for name, results in zip(names, judged, strict=True):
            if isinstance(results, Verdict):  # the call failed
                results = [results] * len(answers)
            elif len(results) != len(answers):
                results = [_infra(f"{len(results)} verdicts for {len(answers)} answers")] * len(answers)
            for row, result in zip(rows, results, strict=True):
                row[name] = _as_verdict(result, name)
        return list(rows)

    async def _judged(self, name: str, subject: str | Sequence[str], task: Task) -> Any:
        """What a judge says; whatever else happens is a verdict without a score."""
        began = time.monotonic()
        try:
            return await self._judges[name](subject, task, self._ask, **self._config.components[name].options)
        except JudgeError as error:
            status, fault = Status.JUDGE_ERROR, str(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a service that failed, or a fault in the judge itself: attributed either way
            status = Status.CANCELLED if self._is_closed else Status.INFRA_ERROR
            fault = str(error) if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
        return Verdict.unscored(status, extras={"error": fault[:2000]}, seconds=time.monotonic() - began)

    async def _ask(self, question: Question) -> Any:
        async def attempt(number: int) -> Any:
            return question.read(await self._client.complete(question, _seed(question, number)))

        return await self._attempts(attempt)

    async def _admitted(self) -> None:
        await self._client.start()
        for name in self._config.components:
            if self._config.components[name].verifier not in ADMITTED_UNSEEN:
                await self._admit(name)

    async def _admit(self, name: str) -> None:
        """Pays less for answers without content than for right ones, in nearly all trials."""
        asked = list(trials(self._service.admission_trials))
        results = await asyncio.gather(*(self._trial(name, trial.canary, trial.right, trial.task) for trial in asked))
        if unknown := [error for paid, error in results if paid is None]:
            raise NotAdmittedError(
                f"reward.components.{name}: the judge {self.version} could not be tried, {len(unknown)} of "
                f"{len(asked)} trials gave no verdict, e.g. {unknown[0]}. Check the service; admission_trials=0 trusts "
                "it unseen"
            )
        fooled = [trial.canary for trial, (paid, _) in zip(asked, results, strict=True) if paid]
        if asked and len(fooled) / len(asked) > self._service.max_admission_rate:
            examples = ", ".join(repr(key[:40]) for key in dict.fromkeys(fooled))
            raise NotAdmittedError(
                f"reward.components.{name}: the judge {self.version} pays {len(fooled)} of {len(asked)} answers "
                f"without content as much as right ones ({examples[:300]}), more than max_admission_rate="
                f"{self._service.max_admission_rate}: a policy would learn to write those. Take another judge, let "
                "the component require a box or a number, or raise the rate"
            )

    async def _trial(self, name: str, canary: str, right: str, task: Task) -> tuple[bool | None, str]:
        """Whether the canary is paid as much as the right answer; None where that is not known."""
        if self._config.components[name].scope == "group":
            rows = await self._group_parts([canary, right], task)
            found = [row[name] for row in rows]
        else:
            found = [_as_verdict(await self._judged(name, answer, task), name) for answer in (canary, right)]
        scores = [self._config.floor if v.status is Status.NO_ANSWER else v.score for v in found]
        if scores[0] is None or scores[1] is None:
            return None, str(next(v for v in found if v.score is None).extras.get("error", "no reason given"))
        if found[0].status is Status.NO_ANSWER:
            return False, ""  # the judge is not asked about it, and it earns the floor
        return scores[0] >= scores[1], ""

    def resize(self, num_processes: int) -> None:
        """Requests in flight at a time."""
        self._attempts.resize(num_processes)

    def stats(self) -> Mapping[str, float]:
        """Totals of requests, retries and faults, seconds and tokens the model took, and requests that wait."""
        return {
            **self._attempts.stats(),
            "tokens": getattr(self._client, "tokens", 0),
        }

    def close(self) -> None:
        """Called from another thread while the loop runs; questions in flight come back as `cancelled`."""
        self._is_closed = True
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(timeout=60)


def _as_verdict(result: Any, name: str) -> Verdict:
    return result if isinstance(result, Verdict) else _infra(f"judge of {name!r} returned a {type(result).__name__}")


def _infra(message: str) -> Verdict:
    return Verdict.unscored(Status.INFRA_ERROR, extras={"error": message})


def _seed(question: Question, attempt: int) -> int:
    """Depends on what is asked alone, and differs between votes and attempts."""
    digest = hashlib.sha256(repr((question.messages, question.vote, attempt)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") >> 1
