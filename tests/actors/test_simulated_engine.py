"""The simulated engine on a clock the test turns by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actors.config import EngineConfig
from actors.engines.protocol import EngineError, SamplingRequest, WeightUpdate
from actors.engines.simulated import SimulatedEngine
from actors.engines.simulation import Faults, simulated_logprobs
from rewards.trajectory import FinishReason, PolicyVersion, VersionSpan

PROMPT = [5, 6, 7]


class ManualClock:
    """Seconds pass only in `advance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Any]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self.now + delay, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        await settle()
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end + 1e-9:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
            await settle()
        self.now = end


class ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback, self.cancelled = callback, False

    def cancel(self) -> None:
        self.cancelled = True


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def make_engine(clock: ManualClock | None = None, *, max_num_seqs: int = 8, **options: Any) -> SimulatedEngine:
    values = {"tokens_per_s": 10.0, "length": 20} | options
    config = EngineConfig(kind="simulated", max_model_len=4096, max_num_seqs=max_num_seqs, options=values)
    engine = SimulatedEngine(config, clock=clock)
    await engine.start("unused", PolicyVersion(0))
    return engine


def ask(**changes: Any) -> SamplingRequest:
    return SamplingRequest(**({"max_new_tokens": 100, "stop_token_ids": (1,), "seed": 3} | changes))


def update(version: int) -> WeightUpdate:
    return WeightUpdate(version=PolicyVersion(version), step=version, incarnation=0, path="", digest="")


async def test_an_answer_takes_its_length_over_the_speed():
    clock = ManualClock()
    engine = await make_engine(clock)
    task = asyncio.create_task(engine.generate(PROMPT, ask()))  # 20 tokens and the stop token at 10 per second
    await clock.advance(2.0)
    assert not task.done()
    await clock.advance(0.1)
    completion = (await task)[0]
    assert (len(completion.token_ids), completion.token_ids[-1]) == (21, 1)
    assert completion.finish_reason is FinishReason.STOP
    assert (await engine.stats())["busy_s"] == pytest.approx(2.1)


async def test_a_pause_after_seven_tokens_splits_the_span_at_seven():
    clock = ManualClock()
    engine = await make_engine(clock)
    task = asyncio.create_task(engine.generate(PROMPT, ask()))
    await clock.advance(0.75)
    await engine.pause()
    await clock.advance(60.0)
    assert not task.done()
    await engine.load_weights(update(1))
    await engine.set_version(PolicyVersion(1))
    await engine.resume()
    await clock.advance(1.4)  # 14 tokens are left
    completion = (await task)[0]
    assert completion.versions == (VersionSpan(0, 7, PolicyVersion(0)), VersionSpan(7, 21, PolicyVersion(1)))
    ids = [*PROMPT, *completion.token_ids]
    old, new = (simulated_logprobs(ids, PolicyVersion(v))[3:] for v in (0, 1))
    np.testing.assert_array_equal(completion.logprobs, [*old[:7], *new[7:]])


async def test_a_pause_before_the_first_token_leaves_one_span():
    clock = ManualClock()
    engine = await make_engine(clock)
    task = asyncio.create_task(engine.generate(PROMPT, ask()))
    await clock.advance(0.05)
    await engine.pause()
    await engine.set_version(PolicyVersion(4))
    await engine.resume()
    await clock.advance(10.0)
    assert (await task)[0].versions == (VersionSpan(0, 21, PolicyVersion(4)),)


async def test_sequences_beyond_the_slots_wait_for_one():
    clock = ManualClock()
    engine = await make_engine(clock, max_num_seqs=2)
    task = asyncio.create_task(engine.generate(PROMPT, ask(num_samples=3)))
    await clock.advance(1.0)
    stats = await engine.stats()
    assert (stats["running"], stats["waiting"], stats["generated_tokens"]) == (2, 1, 20)
    await clock.advance(3.1)
    assert not task.done()
    await clock.advance(0.2)
    assert len(await task) == 3


async def test_lognormal_lengths_have_the_asked_mean_and_are_cut_at_the_limit():
    engine = await make_engine(tokens_per_s=None, length=None, mean_length=40.0, sigma=1.0)
    completions = await engine.generate(PROMPT, ask(num_samples=3000, max_new_tokens=4000, seed=1))
    lengths = [len(c.token_ids) - 1 for c in completions]
    # lognormal: variance = mean^2 (exp(sigma^2) - 1); three standard errors of the mean
    error = 40 * np.sqrt((np.e - 1) / 3000)
    assert abs(np.mean(lengths) - 40) < 3 * error
    cut = await engine.generate(PROMPT, ask(num_samples=200, max_new_tokens=30, seed=1))
    assert max(len(c.token_ids) for c in cut) == 30
    assert {c.finish_reason for c in cut if len(c.token_ids) < 30} == {FinishReason.STOP}


async def test_it_dies_at_the_scripted_token_and_tells_everyone():
    clock = ManualClock()
    engine = await make_engine(clock, faults={"die_after_tokens": 30})
    tasks = [asyncio.create_task(engine.generate(PROMPT, ask(seed=i))) for i in range(3)]
    await clock.advance(0.95)
    assert not any(task.done() for task in tasks)
    await clock.advance(0.06)  # three sequences of ten tokens
    for task in tasks:
        with pytest.raises(EngineError, match="after 30 tokens"):
            await task
    with pytest.raises(EngineError):
        await engine.generate(PROMPT, ask())


async def test_bad_logprobs_come_every_nth_time():
    engine = await make_engine(tokens_per_s=None, faults={"nan_logprobs_every": 2, "wrong_length_every": 3})
    completions = [(await engine.generate(PROMPT, ask(seed=i)))[0] for i in range(6)]
    assert [bool(np.isnan(c.logprobs).any()) for c in completions] == [False, True, False, True, False, True]
    assert [len(c.token_ids) - len(c.logprobs) for c in completions] == [0, 0, 1, 0, 0, 1]


async def test_a_learners_probe_is_reproduced_only_when_the_update_was_applied():
    engine = await make_engine()
    probe = WeightUpdate(
        version=PolicyVersion(1),
        step=1,
        incarnation=0,
        path="",
        digest="",
        probe_token_ids=(1, 2, 3),
        probe_logprobs=(float("nan"), -1.25, -2.5),
    )
    await engine.pause()
    engine.faults = Faults(ignore_updates=True)
    await engine.load_weights(probe)
    assert (await engine.score((1, 2, 3)))[1:].tolist() != [-1.25, -2.5]
    engine.faults = Faults()
    await engine.load_weights(probe)
    assert (await engine.score((1, 2, 3)))[1:].tolist() == [-1.25, -2.5]


async def test_an_update_that_fails_half_way_ends_the_engine():
    engine = await make_engine(faults={"fail_updates": True})
    await engine.pause()
    with pytest.raises(EngineError, match="half-way"):
        await engine.load_weights(update(1))
    with pytest.raises(EngineError):
        await engine.resume()


def test_logprobs_depend_on_token_predecessor_and_version():
    base = simulated_logprobs([1, 2, 3, 4], PolicyVersion(0))
    assert np.isnan(base[0])
    assert ((base[1:] < 0) & (base[1:] > -4)).all()
    other_token = simulated_logprobs([1, 2, 9, 4], PolicyVersion(0))
    assert (other_token[1] == base[1], other_token[2] == base[2], other_token[3] == base[3]) == (True, False, False)
    assert (simulated_logprobs([1, 2, 3, 4], PolicyVersion(1))[1:] != base[1:]).all()
    np.testing.assert_allclose(simulated_logprobs([1, 2, 3, 4], PolicyVersion(0), 2.0)[1:], base[1:] / 2, rtol=1e-6)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="token_per_s"):
        SimulatedEngine(EngineConfig(kind="simulated", options={"token_per_s": 3}))
    with pytest.raises(ValueError, match="explode"):
        SimulatedEngine(EngineConfig(kind="simulated", options={"faults": {"explode": True}}))


def test_it_needs_no_torch():
    code = "import sys, actors.engines.simulated, actors.weights; assert 'torch' not in sys.modules, 'torch imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
