"""Engine on plain transformers: slower than vLLM, exact, and runs wherever torch runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.config import EngineConfig
from actors.engines.batch_decoder import BatchDecoder, DecodedSequence
from actors.engines.protocol import Completion, EngineError, SamplingRequest, WeightUpdate
from rewards.trajectory import PolicyVersion

T = TypeVar("T")


class TransformersEngine:
    """Continuous batching in one worker thread; the event loop stays free.

    Everything that touches the model runs in that thread, one call after another, so weights change between tokens
    and never within one. `config.options` takes `device`; without it CUDA is used when there is one.
    """

    def __init__(self, config: EngineConfig) -> None:
        unknown = set(config.options) - {"device"}
        if unknown:
            raise ValueError(f"rollout.engine.options {sorted(unknown)}: a transformers engine knows only 'device'")
        self._config = config
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformers-engine")
        self._version = PolicyVersion(-1)
        self._model: Any = None
        self._base: dict[str, Tensor] = {}
        """Weights an adapter is added to, kept from the first adapter update on."""
        self._decoder: BatchDecoder | None = None
        self._decoding: asyncio.Task[None] | None = None
        self._results: dict[DecodedSequence, asyncio.Future[None]] = {}
        self._may_run, self._work_arrived = asyncio.Event(), asyncio.Event()
        self._between_tokens = asyncio.Lock()
        self._failure: str | None = None
        self._prompt_tokens = self._generated_tokens = 0
        self._busy_s = 0.0

    @property
    def child_pids(self) -> tuple[int, ...]:
        return ()

    @property
    def version(self) -> PolicyVersion:
        return self._version

    async def start(self, model_path: str, version: PolicyVersion) -> None:
        await self._in_thread(self._load_model, model_path)
        self._version = version
        self._may_run.set()
        self._decoding = asyncio.create_task(self._decode())

    async def generate(self, prompt_token_ids: Sequence[int], request: SamplingRequest) -> list[Completion]:
        self._check_alive()
        self._check_request(prompt_token_ids, request)
        decoder, loop = self._ready_decoder(), asyncio.get_running_loop()
        sequences = [_new_sequence(prompt_token_ids, request, index) for index in range(request.num_samples)]
        self._prompt_tokens += len(prompt_token_ids)
        for sequence in sequences:
            self._results[sequence] = loop.create_future()
        waited = [self._results[sequence] for sequence in sequences]
        await self._in_thread(decoder.add, sequences)
        self._work_arrived.set()
        try:
            await asyncio.gather(*waited)
        except asyncio.CancelledError:
            await asyncio.shield(self._in_thread(decoder.remove, sequences))
            raise
        finally:
            for sequence in sequences:
                self._results.pop(sequence, None)
        return [_completion(sequence) for sequence in sequences]

    async def score(self, token_ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        self._check_alive()
        return await self._in_thread(self._ready_decoder().score, token_ids, temperature)

    async def pause(self) -> None:
        self._check_alive()
        self._may_run.clear()
        async with self._between_tokens:  # the step in flight has ended
            return

    async def load_weights(self, update: WeightUpdate) -> None:
        self._check_alive()
        if self._may_run.is_set():
            raise EngineError("load_weights outside of pause and resume would mix weights within one token")
        load = self._load_adapter if update.kind == "adapter" else self._load_full
        try:
            await self._in_thread(load, Path(update.path))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            self._fail(f"version {update.version} could not be loaded from {update.path}: {error}")
            raise EngineError(self._failure) from error

    async def reset_prefix_cache(self, *, recompute_running: bool) -> bool:
        """Nothing is shared between requests, so only running sequences have state to forget."""
        if recompute_running:
            await self._in_thread(self._ready_decoder().forget_cache)
        return True

    async def set_version(self, version: PolicyVersion) -> None:
        async with self._between_tokens:
            self._version = version

    async def resume(self) -> None:
        self._check_alive()
        self._may_run.set()

    async def stats(self) -> dict[str, float]:
        decoder = self._decoder
        return {
            "running": float(decoder.num_running if decoder else 0),
            "waiting": float(decoder.num_waiting if decoder else 0),
            "prompt_tokens": float(self._prompt_tokens),
            "generated_tokens": float(self._generated_tokens),
            "busy_s": self._busy_s,
        }

    async def close(self) -> None:
        self._fail("the engine was closed")
        if self._decoding is not None:
            self._decoding.cancel()
            await asyncio.gather(self._decoding, return_exceptions=True)
        self._thread.shutdown(wait=True)
        self._decoder = self._model = None

    # -- decoding -----------------------------------------------------------------------------------------------

    async def _decode(self) -> None:
        """Steps while there is work and no pause; a fault in the model ends the engine for all waiting requests."""
        decoder = self._ready_decoder()
        try:
            while True:
                if not decoder.has_work:
                    self._work_arrived.clear()
                    await self._work_arrived.wait()
                await self._may_run.wait()
                async with self._between_tokens:
                    if self._may_run.is_set():
                        await self._step(decoder)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # attributed to every request below; nothing may wait for ever
            self._fail(f"decoding failed: {type(error).__name__}: {error}")

    async def _step(self, decoder: BatchDecoder) -> None:
        began = time.perf_counter()
        finished = await self._in_thread(decoder.step, self._version)
        self._busy_s += time.perf_counter() - began
        self._generated_tokens += decoder.num_running + len(finished)
        for sequence in finished:
            result = self._results.get(sequence)
            if result is not None and not result.done():
                result.set_result(None)

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        for result in self._results.values():
            if not result.done():
                result.set_exception(EngineError(f"transformers engine: {self._failure}"))

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(f"transformers engine: {self._failure}")

    def _check_request(self, prompt: Sequence[int], request: SamplingRequest) -> None:
        total, limit = len(prompt) + request.max_new_tokens, self._config.max_model_len
        if not prompt or total > limit:
            raise ValueError(
                f"prompt of {len(prompt)} tokens plus {request.max_new_tokens} new ones: need a prompt, and at most "
                f"max_model_len={limit} together; raise it or shorten one of them"
            )
        if request.extra:
            raise ValueError(f"sampling options {sorted(request.extra)} are not known to a transformers engine")

    def _ready_decoder(self) -> BatchDecoder:
        if self._decoder is None:
            raise EngineError("the engine was not started")
        return self._decoder

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    # -- in the worker thread -----------------------------------------------------------------------------------

    def _load_model(self, model_path: str) -> None:
        torch.set_num_threads(self._config.threads)
        device = self._config.options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, self._config.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
        self._model = model.to(device).eval()
        self._decoder = BatchDecoder(self._model, self._config.max_num_seqs)

    def _load_full(self, folder: Path) -> None:
        """Overwrites every parameter in place; a tied head follows its embedding."""
        parameters = dict(self._model.named_parameters())
        with safe_open(folder / "model.safetensors", framework="pt") as file, torch.no_grad():
            names = set(file.keys())
            if names != set(parameters):
                missing, unknown = set(parameters) - names, names - set(parameters)
                raise ValueError(
                    f"{len(missing)} parameters missing, {len(unknown)} unknown: {sorted(missing | unknown)[:3]}"
                )
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(name))

    def _load_adapter(self, folder: Path) -> None:
        """W = base + scaling * B A for every adapted weight."""
        scaling = _adapter_scaling(json.loads((folder / "adapter_config.json").read_text()))
        parameters = dict(self._model.named_parameters())
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118 - not a dict
                if not name.endswith(".lora_A.weight"):
                    continue
                target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                parameter = parameters[target]
                base = self._base.setdefault(target, parameter.detach().clone())
                down, up = (file.get_tensor(name.replace("lora_A", part)).float() for part in ("lora_A", "lora_B"))
                parameter.copy_(base.float() + scaling * (up @ down).to(base.device))


def _adapter_scaling(config: Mapping[str, Any]) -> float:
    """Raises ValueError for PEFT settings whose effect is not a plain scaled product."""
    exotic = [key for key in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if config.get(key)]
    if exotic or config.get("bias", "none") != "none":
        raise ValueError(f"adapter settings {exotic or ['bias']} are not supported here; use the vllm engine")
    rank = config["r"]
    return config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)


def _new_sequence(prompt: Sequence[int], request: SamplingRequest, index: int) -> DecodedSequence:
    seed = None if request.seed is None else [request.seed, index]
    return DecodedSequence(
        prompt=tuple(int(token) for token in prompt),
        temperature=request.temperature,
        max_new_tokens=request.max_new_tokens,
        stop_token_ids=frozenset(request.stop_token_ids),
        uniforms=np.random.default_rng(seed),
    )


def _completion(sequence: DecodedSequence) -> Completion:
    assert sequence.finish_reason is not None
    return Completion(
        token_ids=np.asarray(sequence.tokens, dtype=np.int32),
        logprobs=np.asarray(sequence.logprobs, dtype=np.float32),
        versions=sequence.versions,
        finish_reason=sequence.finish_reason,
    )
