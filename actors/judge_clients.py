"""Reaches the models behind judges: an OpenAI-compatible server, or an engine in this process."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from typing import Any, Protocol

from actors.engines.protocol import Engine, SamplingRequest
from rewards.judges.config import EndpointJudge, EngineJudge, ServiceConfig
from rewards.judges.replies import JudgeError, Question, Reply, ServiceError
from rewards.trajectory import FinishReason, PolicyVersion

RETRIED_CODES = frozenset({408, 409, 425, 429})
"""Beside every 5xx: the server may do better next time."""
TOP_LOGPROBS = 20
"""Replies of one token whose log-probs a server names."""


class RefusedError(ServiceError):
    """The service will never answer this: asking again is no use."""


class JudgeClient(Protocol):
    """One attempt at one question."""

    @property
    def version(self) -> str: ...

    async def start(self) -> None: ...

    async def complete(self, question: Question, seed: int) -> Reply:
        """Raises ServiceError where another attempt may succeed, RefusedError or JudgeError where none will."""
        ...

    async def close(self) -> None: ...


class EndpointClient:
    """A chat model behind an OpenAI-compatible server."""

    def __init__(self, config: EndpointJudge) -> None:
        self._config = config
        self._http = Http(config, config.api_key_env)
        self.tokens = 0

    @property
    def version(self) -> str:
        return f"{self._config.url} {self._config.model}@{self._config.revision} T={self._config.temperature}"

    async def start(self) -> None:
        """The first question tells whether the server is there."""

    async def complete(self, question: Question, seed: int) -> Reply:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [dict(message) for message in question.messages],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
            "seed": seed,
        }
        if question.labels is not None:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS, "max_tokens": 1, "temperature": 0.0}
        data = await self._http.post(f"{self._config.url.rstrip('/')}/chat/completions", body)
        try:
            self.tokens += int((data.get("usage") or {}).get("total_tokens", 0))
            choice = data["choices"][0]
            if question.labels is not None:
                return _label_reply(choice["logprobs"]["content"][0]["top_logprobs"], question.labels)
            return Reply(text=choice["message"]["content"] or "", is_cut=choice.get("finish_reason") == "length")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ServiceError(f"the reply is no chat completion: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        await self._http.close()


class EngineClient:
    """A chat model in an engine of its own in this process."""

    def __init__(self, config: EngineJudge) -> None:
        self._config = config
        self._engine: Engine | None = None
        self.tokens = 0

    @property
    def version(self) -> str:
        return f"{self._config.model} T={self._config.temperature}"

    async def start(self) -> None:
        from actors.assembly import make_engine  # assembly builds reward workers, which build this
        from actors.config import EngineConfig
        from actors.model_store import resolve_model
        from actors.renderer import Renderer

        path = str(resolve_model(self._config.model))
        self._renderer = Renderer(path)
        self._engine = make_engine(EngineConfig.model_validate(self._config.engine))
        await self._engine.start(path, PolicyVersion(0))

    async def complete(self, question: Question, seed: int) -> Reply:
        if self._engine is None:
            await self.start()
        assert self._engine is not None
        prompt = self._renderer.prompt_ids(question.messages)
        try:
            if question.labels is not None:
                return await self._label_reply(self._engine, prompt, question.labels)
            request = SamplingRequest(
                max_new_tokens=self._config.max_tokens,
                temperature=self._config.temperature,
                stop_token_ids=self._renderer.stop_token_ids,
                seed=seed,
            )
            (completion,) = await self._engine.generate(prompt, request)
        except ValueError as error:
            raise JudgeError(f"the question does not fit into the judge's context: {error}") from error
        self.tokens += len(prompt) + len(completion.token_ids)
        text = self._renderer.decode(completion.token_ids)
        return Reply(text=text, is_cut=completion.finish_reason is FinishReason.LENGTH)

    async def _label_reply(self, engine: Engine, prompt: list[int], labels: tuple[str, ...]) -> Reply:
        """Exact: each label's tokens are scored behind the prompt."""
        found = {}
        for label in labels:
            ids = self._renderer.answer_ids(label)[:-1]
            logprobs = await engine.score([*prompt, *ids])
            found[label] = float(logprobs[-len(ids) :].sum())
            self.tokens += len(prompt) + len(ids)
        return Reply(text="", label_logprobs=found)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()


class Http:
    """POST of JSON with the faults sorted into those worth another attempt and those that are not."""

    def __init__(self, config: ServiceConfig, key_env: str | None) -> None:
        self._config, self._key_env = config, key_env
        self._client: Any = None

    async def post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises ServiceError, RefusedError."""
        import httpx

        if self._client is None:
            limits = httpx.Limits(max_connections=self._config.concurrency)
            self._client = httpx.AsyncClient(timeout=self._config.attempt_timeout_s, limits=limits)
        key = os.environ.get(self._key_env, "") if self._key_env else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            response = await self._client.post(url, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ServiceError(f"{url}: {type(error).__name__}: {error}") from error
        if response.status_code in RETRIED_CODES or response.status_code >= 500:
            raise ServiceError(f"{url}: HTTP {response.status_code}: {response.text[:200]}", _pause_of(response))
        if response.status_code >= 400:
            raise RefusedError(f"{url}: HTTP {response.status_code}: {response.text[:200]}")
        try:
            data = response.json()
        except ValueError as error:
            raise ServiceError(f"{url}: the reply is no JSON: {response.text[:80]!r}") from error
        if not isinstance(data, dict):
            raise ServiceError(f"{url}: the reply is a JSON {type(data).__name__}, no object")
        return data

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def make_client(config: EndpointJudge | EngineJudge) -> JudgeClient:
    """The client of a service that answers in words."""
    return EndpointClient(config) if isinstance(config, EndpointJudge) else EngineClient(config)


def _label_reply(top: list[dict[str, Any]], labels: tuple[str, ...]) -> Reply:
    """Probabilities of spellings of one label, with and without a blank in front, add up."""
    shares: dict[str, float] = defaultdict(float)
    for entry in top:
        for label in labels:
            if str(entry["token"]).strip() == label:
                shares[label] += math.exp(float(entry["logprob"]))
    found = {label: math.log(share) for label, share in shares.items() if share > 0}
    return Reply(text="", label_logprobs=found, bound=min(float(entry["logprob"]) for entry in top))


def _pause_of(response: Any) -> float | None:
    """Seconds the server asks for, where it says so in digits."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else None
