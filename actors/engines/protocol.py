"""What the rest of the system asks of a text generator: tokens in, tokens out, versions told per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rewards.trajectory import FinishReason, Float32Array, Int32Array, PolicyVersion, VersionSpans


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRequest:
    """How to continue one prompt.

    Attributes:
        num_samples: independent continuations of the same prompt.
        temperature: 0 is greedy; log-probs are then reported at temperature 1.
        stop_token_ids: end a continuation and are part of it.
        seed: makes the draw reproducible where the engine can.
    """

    max_new_tokens: int
    num_samples: int = 1
    temperature: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One continuation.

    Attributes:
        token_ids: [N] int32, the sampled tokens only.
        logprobs: [N] float32 nats of the sampled tokens under the distribution they were drawn from (temperature
            applied); for greedy requests at temperature 1.
        versions: spans over [0, N): which policy version sampled which token.
    """

    token_ids: Int32Array
    logprobs: Float32Array
    versions: VersionSpans
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """Where a published version lies and how to recognise it.

    Attributes:
        version: the policy version these weights are.
        step: committed learner steps they contain; `incarnation` counts restarts of the learner.
        path: folder on this node: `model.safetensors` (full weights, Hugging Face names) or a PEFT adapter folder.
        kind: full or adapter.
        digest: of the manifest (names, shapes, dtypes, per-tensor checksums).
        probe_token_ids, probe_logprobs: a fixed sequence and the learner's own log-probs of it under these weights
            ([T], first entry NaN), which the engine must reproduce.
    """

    version: PolicyVersion
    step: int
    incarnation: int
    path: str
    digest: str
    kind: str = "full"
    probe_token_ids: tuple[int, ...] = ()
    probe_logprobs: tuple[float, ...] = ()


class EngineError(RuntimeError):
    """The engine can no longer be trusted or reached; its worker must restart it."""


class Engine(Protocol):
    """One text generator, owned by one rollout worker. All methods are coroutines on one event loop.

    The update bracket is `pause -> load_weights -> reset_prefix_cache -> set_version -> resume`, driven by
    `actors.weights.activate`; an engine serves requests submitted while paused after `resume`.
    """

    @property
    def version(self) -> PolicyVersion: ...

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Processes a supervisor must end when this one was killed; empty for engines within their process."""
        ...

    async def start(self, model_path: str, version: PolicyVersion) -> None:
        """Loads the model folder and becomes able to generate."""

    async def generate(self, prompt_token_ids: Sequence[int], request: SamplingRequest) -> list[Completion]:
        """Raises EngineError when the engine died; ValueError when prompt plus answer exceed max_model_len."""
        ...

    async def score(self, token_ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        """[T] float32 log-probs of the given tokens, each given its predecessors; the first is NaN."""
        ...

    async def pause(self) -> None:
        """Freezes running requests (`keep`): no token is produced until `resume`."""

    async def load_weights(self, update: WeightUpdate) -> None:
        """Replaces the weights from `update.path`; a failure leaves the engine unusable (EngineError)."""

    async def reset_prefix_cache(self, *, recompute_running: bool) -> bool:
        """True when no cached state of older weights can be reused by new requests."""
        ...

    async def set_version(self, version: PolicyVersion) -> None:
        """Tokens sampled from here on carry this version."""

    async def resume(self) -> None: ...

    async def stats(self) -> dict[str, float]:
        """running, waiting, prompt_tokens, generated_tokens (totals), busy_s."""
        ...

    async def close(self) -> None: ...
