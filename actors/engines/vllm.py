"""Engine on vLLM 0.32, CPU and GPU builds alike; beside the worker extension the only file that imports vllm."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import EngineConfig
from actors.engines.protocol import Completion, EngineError, SamplingRequest, WeightUpdate
from rewards.trajectory import FinishReason, PolicyVersion, VersionSpan, VersionSpans

PROBE_PRIORITY = -1
"""Scheduled before rollouts, which have priority 0."""

ADAPTER_NAME, ADAPTER_ID = "policy", 1

SHUTDOWN_S = 10.0
"""Time the engine's processes get to end by themselves."""


class VLLMEngine:
    """One AsyncLLM whose engine core and workers are child processes.

    While weights change nothing reaches vLLM and nothing leaves it: requests wait at the gate and finished ones are
    withheld until `resume`. vLLM cannot score while it is paused, so `score` inside the bracket lets it run; frozen
    requests then go on under the new weights, correctly labelled, and their results leave only when `resume` says that
    the weights are good.

    `config.options` are passed to vLLM's AsyncEngineArgs, e.g. {"enable_lora": True, "max_lora_rank": 32}.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._llm: Any = None
        self._version = PolicyVersion(-1)
        self._adapter: Any = None
        self._num_loads = 0
        self._num_requests = 0
        self._gate = asyncio.Event()
        self._core_paused = False
        self._failure: str | None = None
        self._children: list[Any] = []
        self._streams: set[asyncio.Future[Any]] = set()
        self._in_flight = 0
        self._prompt_tokens = self._generated_tokens = 0
        self._busy_s, self._busy_since = 0.0, 0.0

    @property
    def version(self) -> PolicyVersion:
        return self._version

    @property
    def child_pids(self) -> tuple[int, ...]:
        """Engine core and workers: a supervisor must end them when this process was killed and they were not."""
        return tuple(process.pid for process in self._children)

    async def start(self, model_path: str, version: PolicyVersion) -> None:
        """Raises EngineError when the engine does not come up; its processes are then gone."""
        set_environment(self._config)
        try:
            self._llm = await asyncio.to_thread(_make_llm, self._config, model_path)
        except Exception as error:  # vLLM raises many types here; all of them mean that there is no engine
            raise EngineError(f"vLLM did not start with {model_path}: {type(error).__name__}: {error}") from error
        self._children = _child_processes(self._llm)
        await self.set_version(version)
        self._gate.set()
        await self.score((0, 0))  # the first request of a process is slow; nobody should have to wait for it later

    async def generate(self, prompt_token_ids: Sequence[int], request: SamplingRequest) -> list[Completion]:
        prompt = [int(token) for token in prompt_token_ids]
        self._check_length(len(prompt), request.max_new_tokens)
        async with self._counted(request.num_samples):
            output = await self._run(prompt, self._sampling_params(request), priority=0, gated=True)
        completions = [_completion(sample) for sample in sorted(output.outputs, key=lambda sample: sample.index)]
        self._prompt_tokens += len(prompt)
        self._generated_tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    async def score(self, token_ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        """As the protocol says; other temperatures than 1 are refused, because vLLM scores prompts at 1 only."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if temperature != 1.0:
            raise ValueError(f"vLLM scores given tokens at temperature 1 only, not {temperature}; use the learner")
        self._check_length(len(token_ids), 1)
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        if self._core_paused:
            await self._call(self._llm.resume_generation())
            self._core_paused = False
        tokens = [int(token) for token in token_ids]
        output = await self._run(tokens, params, priority=PROBE_PRIORITY, gated=False)
        values = [np.nan, *(entry[t].logprob for entry, t in zip(output.prompt_logprobs[1:], tokens[1:], strict=True))]
        return np.asarray(values, dtype=np.float32)

    async def pause(self) -> None:
        self._gate.clear()
        await self._pause_core()

    async def load_weights(self, update: WeightUpdate) -> None:
        if self._gate.is_set():
            raise EngineError("load_weights outside of pause and resume would mix weights within one token")
        if not self._core_paused:
            await self._pause_core()
        self._num_loads += 1
        try:
            if update.kind == "adapter":
                await self._load_adapter(update)
            else:
                path = str(Path(update.path) / "model.safetensors")
                await self._llm.collective_rpc("braid_load_weights", args=(path,))
        except Exception as error:  # whatever it was, the weights may be half old and half new
            self._fail(f"version {update.version} could not be loaded from {update.path}: {error}")
            raise EngineError(f"vLLM: {self._failure}") from error

    async def reset_prefix_cache(self, *, recompute_running: bool) -> bool:
        """Requests carry a salt that changes with every load, so older cache entries cannot match new ones.

        With `recompute_running` the cache is emptied too and running requests are prefilled again.
        """
        if not recompute_running:
            return True
        return await self._call(self._llm.reset_prefix_cache(reset_running_requests=True))

    async def set_version(self, version: PolicyVersion) -> None:
        await self._call(self._llm.update_weight_version(str(int(version))))
        self._version = version

    async def resume(self) -> None:
        if self._core_paused:
            await self._call(self._llm.resume_generation())
            self._core_paused = False
        self._gate.set()

    async def stats(self) -> dict[str, float]:
        running = min(self._in_flight, self._config.max_num_seqs)
        busy = time.perf_counter() - self._busy_since if self._in_flight else 0.0
        return {
            "running": float(running),
            "waiting": float(self._in_flight - running),
            "prompt_tokens": float(self._prompt_tokens),
            "generated_tokens": float(self._generated_tokens),
            "busy_s": self._busy_s + busy,
        }

    async def close(self) -> None:
        """Ends the engine's processes; afterwards none of `child_pids` is alive."""
        self._fail("the engine was closed")
        if self._streams:
            await asyncio.wait(self._streams, timeout=SHUTDOWN_S)
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
        del llm
        gc.collect()  # vLLM's finalizers fail when they run only at interpreter exit
        await asyncio.to_thread(_end_processes, self._children)

    # -- requests -----------------------------------------------------------------------------------------------

    async def _run(self, prompt: list[int], params: Any, *, priority: int, gated: bool) -> Any:
        """The final output of one request. Gated ones are submitted and answered only while the gate is open."""
        if gated:
            await self._gate.wait()
        self._check_alive()
        from vllm.inputs import tokens_input

        self._num_requests += 1
        stream = self._llm.generate(
            tokens_input(prompt, cache_salt=f"load-{self._num_loads}"),
            params,
            f"{'rollout' if gated else 'probe'}-{self._num_requests}",
            priority=priority,
            lora_request=self._adapter,
        )
        output = await self._until_failure(self._call(_last(stream)))
        if gated:
            await self._gate.wait()
        self._check_alive()
        return output

    async def _until_failure(self, answer: Coroutine[Any, Any, Any]) -> Any:
        """The answer, or EngineError as soon as the engine is given up, since a paused one would never answer."""
        task = asyncio.ensure_future(answer)
        self._streams.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._failure is None or (current is not None and current.cancelling()):
                raise  # it is the caller who was cancelled
            raise EngineError(f"vLLM: {self._failure}") from None
        finally:
            self._streams.discard(task)

    async def _call(self, call: Any) -> Any:
        """One call into vLLM; its death becomes EngineError for everyone."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            return await call
        except (EngineDeadError, EngineGenerateError) as error:
            cause = error.__cause__ or error
            self._fail(f"{type(cause).__name__}: {cause}")
            raise EngineError(f"vLLM: {self._failure}") from error

    async def _pause_core(self) -> None:
        self._check_alive()
        await self._call(self._llm.pause_generation(mode="keep", clear_cache=False))
        self._core_paused = True

    async def _load_adapter(self, update: WeightUpdate) -> None:
        from vllm.lora.request import LoRARequest

        if not self._config.options.get("enable_lora"):
            raise ValueError(
                "the engine takes no adapters: set enable_lora and max_lora_rank in rollout.engine.options"
            )
        await self._llm.add_lora(LoRARequest(ADAPTER_NAME, ADAPTER_ID, update.path, load_inplace=True))
        self._adapter = LoRARequest(ADAPTER_NAME, ADAPTER_ID, update.path)

    def _sampling_params(self, request: SamplingRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=request.num_samples,
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=True,  # only the given tokens stop a continuation
            seed=request.seed,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **request.extra,
        )

    def _check_length(self, num_prompt: int, num_new: int) -> None:
        limit = self._config.max_model_len
        if not num_prompt or num_prompt + num_new > limit:
            raise ValueError(
                f"prompt of {num_prompt} tokens plus {num_new} new ones: need a prompt, and at most "
                f"max_model_len={limit} together; raise it or shorten one of them"
            )

    @asynccontextmanager
    async def _counted(self, num_sequences: int) -> AsyncIterator[None]:
        if not self._in_flight:
            self._busy_since = time.perf_counter()
        self._in_flight += num_sequences
        try:
            yield
        finally:
            self._in_flight -= num_sequences
            if not self._in_flight:
                self._busy_s += time.perf_counter() - self._busy_since

    def _fail(self, reason: str) -> None:
        """The first reason stays; requests in flight and at the gate raise it."""
        self._failure = self._failure or reason
        self._gate.set()
        for stream in tuple(self._streams):
            stream.cancel()

    def _check_alive(self) -> None:
        if self._failure is not None or self._llm is None:
            raise EngineError(f"vLLM: {self._failure or 'the engine was not started'}")


def set_environment(config: EngineConfig) -> None:
    """What vLLM reads from the environment, stated instead of inherited; must precede its import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # models are folders here; nothing may be fetched behind the run's back
    os.environ["OMP_NUM_THREADS"] = str(config.threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = config.cores or "nobind"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def _make_llm(config: EngineConfig, model_path: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "kv_cache_memory_bytes": config.kv_cache_bytes,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "worker_extension_cls": "actors.engines.vllm_worker.WeightLoader",
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        arguments |= _cpu_arguments(config)
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**(arguments | config.options)))


def _cpu_arguments(config: EngineConfig) -> dict[str, Any]:
    """What the CPU build cannot do."""
    return {
        # Compiled graphs keep packed weights that an update does not reach.
        "enforce_eager": True,
        # A prompt that is prefilled in pieces winds its request's seeded generator back, which CPU generators refuse:
        # the engine core dies. So every prompt is prefilled whole.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(config.max_model_len, 4096),
        # The default of 128 caches no prompt shorter than that; 32 is the smallest the fast kernels take, and lets the
        # samples of a group, and all prompts of one chat template, share their first tokens.
        "block_size": 32,
    }


async def _last(stream: AsyncIterator[Any]) -> Any:
    outputs = [output async for output in stream]
    return outputs[-1]


def _completion(sample: Any) -> Completion:
    token_ids = np.asarray(list(sample.token_ids), dtype=np.int32)
    logprobs = sample.logprobs
    values = [logprobs.logprobs[start] for start in logprobs.start_indices] if logprobs is not None else []
    return Completion(
        token_ids=token_ids,
        logprobs=np.asarray(values, dtype=np.float32),
        versions=_spans(sample.weight_versions),
        finish_reason=FinishReason(sample.finish_reason),
    )


def _spans(spans: Sequence[Any] | None) -> VersionSpans:
    return tuple(VersionSpan(s.start, s.end, PolicyVersion(int(s.version))) for s in spans or () if s.end > s.start)


def _child_processes(llm: Any) -> list[Any]:
    """Engine core and workers as psutil processes, which cannot be mistaken for later ones of the same id."""
    import psutil

    manager = llm.engine_core.resources.engine_manager
    cores = [psutil.Process(process.pid) for process in manager.processes if process.pid is not None]
    return [process for core in cores for process in (core, *core.children(recursive=True))]


def _end_processes(processes: Sequence[Any]) -> None:
    """Waits for processes to end and kills those that do not."""
    import psutil

    _, stubborn = psutil.wait_procs(processes, timeout=SHUTDOWN_S)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=SHUTDOWN_S)
