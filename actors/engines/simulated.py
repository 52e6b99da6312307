"""An engine without a model: scripted lengths, speed and faults, deterministic log-probs. Imports no torch.

For tests and for measuring everything around an engine. Progress is computed from the clock instead of ticking per
token, so a simulated answer of any length costs a few timer calls.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from actors.config import EngineConfig
from actors.engines.protocol import Completion, EngineError, SamplingRequest, WeightUpdate
from actors.engines.simulation import Faults, SimulatedOptions, simulated_logprobs
from rewards.trajectory import FinishReason, Float32Array, Int32Array, PolicyVersion, VersionSpan


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time in seconds and calls in the future; the event loop's own unless a test brings another."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer: ...


Script = Callable[[Sequence[int], int, np.random.Generator], Sequence[int]]
"""Prompt ids, index of the sample and a seeded generator to the answer's ids, without the stop token."""


@dataclass(slots=True, eq=False)
class _Sequence:
    """One answer being "decoded": its tokens are known, only how far it is depends on the clock."""

    tokens: Int32Array
    finish_reason: FinishReason
    finished: asyncio.Future[None]
    temperature: float
    done: int = 0
    anchor: float = 0.0
    timer: Timer | None = None
    span_starts: list[tuple[int, PolicyVersion]] = field(default_factory=list)


class SimulatedEngine:
    """Engine over a script. See `SimulatedOptions` and `Faults` for what `config.options` takes.

    Args:
        script: answers to prompts; by default ids drawn from the vocabulary, by request seed.
        clock: where time comes from.
    """

    def __init__(self, config: EngineConfig, *, script: Script | None = None, clock: Clock | None = None) -> None:
        self._config, self._options = config, SimulatedOptions.from_config(config.options)
        self.faults: Faults = self._options.faults
        """What goes wrong from now on; a test may replace it while the engine runs."""
        self._script, self._given_clock = script or self._default_script, clock
        self._version = self._weights = PolicyVersion(-1)
        self._probes: dict[tuple[int, ...], tuple[float, ...]] = {}
        """What the learner said the loaded weights give: a real learner can then drive this engine."""
        self._running: list[_Sequence] = []
        self._waiting: deque[_Sequence] = deque()
        self._paused = False
        self._dead: str | None = None
        self._draws = 0
        self._delivered = 0
        self._prompt_tokens = self._generated_tokens = 0
        self._busy_s, self._busy_since = 0.0, 0.0
        self._death: Timer | None = None

    @property
    def child_pids(self) -> tuple[int, ...]:
        return ()

    @property
    def version(self) -> PolicyVersion:
        return self._version

    async def start(self, model_path: str, version: PolicyVersion) -> None:
        """The model path is not read."""
        await asyncio.sleep(self._options.start_s)
        self._version = self._weights = version

    async def generate(self, prompt_token_ids: Sequence[int], request: SamplingRequest) -> list[Completion]:
        self._check_alive()
        total = len(prompt_token_ids) + request.max_new_tokens
        if total > self._config.max_model_len:
            raise ValueError(
                f"prompt of {len(prompt_token_ids)} tokens plus {request.max_new_tokens} new ones exceed "
                f"max_model_len={self._config.max_model_len}: raise it or shorten one of them"
            )
        loop = asyncio.get_running_loop()
        sequences = []
        for index in range(request.num_samples):
            tokens, reason = self._answer(prompt_token_ids, index, request)
            sequences.append(_Sequence(tokens, reason, loop.create_future(), request.temperature))
        self._prompt_tokens += len(prompt_token_ids)
        self._waiting.extend(sequences)
        self._fill_slots()
        try:
            await asyncio.gather(*(sequence.finished for sequence in sequences))
        except BaseException:
            self._forget(sequences)
            raise
        return [self._completion(list(prompt_token_ids), sequence) for sequence in sequences]

    async def score(self, token_ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        self._check_alive()
        known = self._probes.get(tuple(token_ids))
        if known is not None and temperature == 1.0:
            return np.asarray(known, dtype=np.float32)
        return simulated_logprobs(token_ids, self._weights, temperature)

    async def pause(self) -> None:
        self._check_alive()
        if not self._paused:
            self._paused = True
            self._freeze()

    async def load_weights(self, update: WeightUpdate) -> None:
        self._check_alive()
        if not self._paused:
            raise EngineError("load_weights outside of pause and resume would mix weights within one token")
        await asyncio.sleep(self._options.load_s)
        if self.faults.fail_updates:
            self._die("weight update failed half-way")
            self._check_alive()
        if not self.faults.ignore_updates:
            self._weights = update.version
            self._probes = {update.probe_token_ids: update.probe_logprobs} if update.probe_token_ids else {}

    async def reset_prefix_cache(self, *, recompute_running: bool) -> bool:
        return not self.faults.keep_cache

    async def set_version(self, version: PolicyVersion) -> None:
        self._check_alive()
        if not self._paused:
            self._freeze()
        self._version = version
        if not self._paused:
            self._thaw()

    async def resume(self) -> None:
        self._check_alive()
        if self._paused:
            self._paused = False
            self._thaw()
            self._fill_slots()

    async def stats(self) -> dict[str, float]:
        busy = self._busy_s + (self._clock.time() - self._busy_since if self._running else 0.0)
        generated = self._generated_tokens + sum(self._progress(s) - s.done for s in self._running)
        return {
            "running": float(len(self._running)),
            "waiting": float(len(self._waiting)),
            "prompt_tokens": float(self._prompt_tokens),
            "generated_tokens": float(generated),
            "busy_s": busy,
        }

    async def close(self) -> None:
        self._die("closed")

    # -- decoding -----------------------------------------------------------------------------------------------

    @property
    def _clock(self) -> Clock:
        return self._given_clock or asyncio.get_running_loop()

    @property
    def _token_s(self) -> float:
        return 0.0 if self._options.tokens_per_s is None else 1.0 / self._options.tokens_per_s

    def _fill_slots(self) -> None:
        while not self._paused and self._waiting and len(self._running) < self._config.max_num_seqs:
            sequence = self._waiting.popleft()
            if not self._running:
                self._busy_since = self._clock.time()
            self._running.append(sequence)
            self._run(sequence)
        self._schedule_death()

    def _run(self, sequence: _Sequence) -> None:
        """Sets the timer that ends the sequence; the version of its next tokens is the current one."""
        if not sequence.span_starts or sequence.span_starts[-1][1] != self._version:
            if sequence.span_starts and sequence.span_starts[-1][0] == sequence.done:
                sequence.span_starts.pop()
            sequence.span_starts.append((sequence.done, self._version))
        sequence.anchor = self._clock.time()
        left_s = (len(sequence.tokens) - sequence.done) * self._token_s
        sequence.timer = self._clock.call_later(left_s, lambda: self._finish(sequence))

    def _finish(self, sequence: _Sequence) -> None:
        self._advance(sequence, len(sequence.tokens))
        self._leave(sequence)
        if self._dead is None:
            sequence.finished.set_result(None)
            self._fill_slots()

    def _leave(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        if not self._running:
            self._busy_s += self._clock.time() - self._busy_since

    def _progress(self, sequence: _Sequence) -> int:
        """Tokens decoded by now."""
        if self._paused or self._token_s == 0.0:
            return sequence.done
        new = math.floor((self._clock.time() - sequence.anchor) / self._token_s + 1e-9)
        return min(len(sequence.tokens), sequence.done + new)

    def _advance(self, sequence: _Sequence, done: int) -> None:
        self._generated_tokens += done - sequence.done
        sequence.done = done
        limit = self.faults.die_after_tokens
        if limit is not None and self._generated_tokens >= limit:
            self._die(f"scripted fault after {self._generated_tokens} tokens")

    def _freeze(self) -> None:
        progress = [(sequence, self._progress_before_pause(sequence)) for sequence in self._running]
        for sequence, done in progress:
            if sequence.timer is not None:
                sequence.timer.cancel()
            self._advance(sequence, done)

    def _progress_before_pause(self, sequence: _Sequence) -> int:
        """A sequence whose timer is due but has not fired keeps its last token for after the pause."""
        if self._token_s == 0.0:
            return sequence.done
        new = math.floor((self._clock.time() - sequence.anchor) / self._token_s + 1e-9)
        return min(len(sequence.tokens) - 1, sequence.done + new)

    def _thaw(self) -> None:
        for sequence in list(self._running):
            self._run(sequence)
        self._schedule_death()

    def _forget(self, sequences: Sequence[_Sequence]) -> None:
        """The caller is gone or the engine died: nothing more is decoded for it."""
        for sequence in sequences:
            sequence.finished.cancel()
            if sequence.timer is not None:
                sequence.timer.cancel()
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            if sequence in self._running:
                self._advance(sequence, self._progress(sequence))
                if sequence in self._running:
                    self._leave(sequence)
        if self._dead is None:
            self._fill_slots()

    # -- faults -------------------------------------------------------------------------------------------------

    def _schedule_death(self) -> None:
        """All running sequences decode at one speed, so the moment of the n-th token is known."""
        limit = self.faults.die_after_tokens
        if self._death is not None:
            self._death.cancel()
        if limit is None or self._dead is not None or self._paused or not self._running or not self._token_s:
            return
        generated = self._generated_tokens + sum(self._progress(s) - s.done for s in self._running)
        steps = math.ceil((limit - generated) / len(self._running))
        self._death = self._clock.call_later(max(0, steps) * self._token_s, self._settle)

    def _settle(self) -> None:
        for sequence in list(self._running):
            done = self._progress(sequence)
            sequence.anchor += (done - sequence.done) * self._token_s
            self._advance(sequence, done)

    def _die(self, reason: str) -> None:
        if self._dead is not None:
            return
        if self.faults.kill_process and reason != "closed":
            os.kill(os.getpid(), signal.SIGKILL)
        self._dead = reason
        for sequence in (*self._running, *self._waiting):
            if sequence.timer is not None:
                sequence.timer.cancel()
            if not sequence.finished.done():
                sequence.finished.set_exception(EngineError(f"simulated engine: {reason}"))
                sequence.finished.exception()  # retrieved here: the request may already have seen a sibling's

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise EngineError(f"simulated engine: {self._dead}")

    # -- content ------------------------------------------------------------------------------------------------

    def _answer(self, prompt: Sequence[int], index: int, request: SamplingRequest) -> tuple[Int32Array, FinishReason]:
        """Tokens of one sample; greedy requests and equal seeds give equal ones."""
        if request.temperature == 0:
            rng = np.random.default_rng([self._options.seed, *prompt])
            index = 0
        elif request.seed is not None:
            rng = np.random.default_rng([self._options.seed, request.seed, index, *prompt])
        else:
            self._draws += 1
            rng = np.random.default_rng([self._options.seed, self._draws])
        ids = list(self._script(prompt, index, rng))
        if len(ids) < request.max_new_tokens:
            stop = request.stop_token_ids[:1]
            return np.asarray([*ids, *stop], dtype=np.int32), FinishReason.STOP
        return np.asarray(ids[: request.max_new_tokens], dtype=np.int32), FinishReason.LENGTH

    def _default_script(self, prompt: Sequence[int], index: int, rng: np.random.Generator) -> Sequence[int]:
        options = self._options
        length = options.length
        if length is None:
            mu = math.log(options.mean_length) - options.sigma**2 / 2
            length = max(1, round(rng.lognormal(mu, options.sigma)))
        return rng.integers(*options.vocabulary, size=length).tolist()

    def _completion(self, prompt: list[int], sequence: _Sequence) -> Completion:
        length = len(sequence.tokens)
        ends = [start for start, _ in sequence.span_starts[1:]] + [length]
        spans = tuple(
            VersionSpan(start, end, version)
            for (start, version), end in zip(sequence.span_starts, ends, strict=True)
            if end > start
        )
        everything = np.asarray([*prompt, *sequence.tokens], dtype=np.int32)
        logprobs = np.empty(length, dtype=np.float32)
        temperature = sequence.temperature or 1.0
        for span in spans:
            values = simulated_logprobs(everything.tolist(), span.version, temperature)[len(prompt) :]
            logprobs[span.start : span.end] = values[span.start : span.end]
        return Completion(
            token_ids=sequence.tokens,
            logprobs=self._with_faults(logprobs),
            versions=spans,
            finish_reason=sequence.finish_reason,
        )

    def _with_faults(self, logprobs: Float32Array) -> Float32Array:
        self._delivered += 1
        faults, n = self.faults, self._delivered
        if faults.nan_logprobs_every and n % faults.nan_logprobs_every == 0:
            logprobs[len(logprobs) // 2] = np.nan
        if faults.wrong_length_every and n % faults.wrong_length_every == 0:
            return logprobs[:-1]
        return logprobs
