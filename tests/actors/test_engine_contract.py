"""What every engine must do, checked on all of them. The vLLM rows need `-m vllm`."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
import pytest_asyncio

from actors.engines.protocol import EngineError, SamplingRequest
from actors.weights import ProbeFailedError, activate
from rewards.trajectory import FinishReason
from tests.actors.engine_drivers import Driver, make_driver

KINDS = ["simulated", "transformers", pytest.param("vllm", marks=pytest.mark.vllm)]
TOLERANCE = 1e-4
LONG = 400

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("tiny_model_path")]
folders = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def driver(request):
    driver = make_driver(request.param)
    await driver.engine.start(driver.model_path, driver.newest)
    yield driver
    await driver.engine.close()


@pytest.fixture
def update(driver: Driver, tmp_path):
    return driver.new_update(tmp_path)


def ask(driver: Driver, **changes) -> SamplingRequest:
    return SamplingRequest(**({"max_new_tokens": 12, "stop_token_ids": driver.stop_token_ids, "seed": 3} | changes))


async def sample(driver: Driver, **changes):
    return await driver.engine.generate(driver.prompt, ask(driver, **changes))


async def change_weights(driver: Driver, update, clear_cache: bool = True):
    return await activate(driver.engine, update, tolerance=TOLERANCE, clear_cache=clear_cache)


async def test_tokens_logprobs_and_versions_have_one_length_and_the_agreed_dtypes(driver):
    completions = await sample(driver, num_samples=3)
    assert len(completions) == 3
    for completion in completions:
        assert (completion.token_ids.dtype, completion.logprobs.dtype) == (np.int32, np.float32)
        assert 1 <= len(completion.token_ids) == len(completion.logprobs) <= 12
        assert (completion.versions[0].start, completion.versions[-1].end) == (0, len(completion.token_ids))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_the_distribution_sampled_from(driver, temperature):
    for completion in await sample(driver, num_samples=4, temperature=temperature, stop_token_ids=()):
        driver.assert_exact(completion, temperature)


async def test_greedy_is_deterministic_and_reports_temperature_one(driver):
    first, second = [await sample(driver, temperature=0.0, seed=seed) for seed in (1, 2)]
    assert first[0].token_ids.tolist() == second[0].token_ids.tolist()
    driver.assert_exact(first[0], temperature=1.0)


async def test_equal_seeds_draw_equal_tokens_and_samples_differ(driver):
    request = {"num_samples": 6, "temperature": 2.0, "stop_token_ids": ()}
    first, again, other = [
        [c.token_ids.tolist() for c in await sample(driver, seed=seed, **request)] for seed in (7, 7, 9000)
    ]
    assert first == again
    assert len({tuple(tokens) for tokens in first}) == 6
    assert not {tuple(tokens) for tokens in first} & {tuple(tokens) for tokens in other}


async def test_a_stop_token_ends_the_answer_and_is_part_of_it(driver):
    free = (await sample(driver, temperature=2.0, stop_token_ids=()))[0]
    assert (len(free.token_ids), free.finish_reason) == (12, FinishReason.LENGTH)
    if "Simulated" in type(driver.engine).__name__:
        return  # scripted answers end where the script ends
    stop = int(free.token_ids[4])
    position = free.token_ids.tolist().index(stop)
    stopped = (await sample(driver, temperature=2.0, stop_token_ids=(stop,)))[0]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.token_ids.tolist() == free.token_ids.tolist()[: position + 1]


async def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(driver):
    with pytest.raises(ValueError, match="max_model_len=480"):
        await sample(driver, max_new_tokens=480)


async def test_scores_of_given_tokens_equal_the_independent_ones(driver):
    tokens = [*driver.prompt, 30, 31, 32]
    scores = await driver.engine.score(tokens)
    assert scores.dtype == np.float32
    assert np.isnan(scores[0])
    expected = driver.expected_logprobs(tokens, driver.engine.version)
    np.testing.assert_allclose(scores[1:], expected[1:], atol=TOLERANCE)


async def test_an_update_in_mid_sequence_gives_two_spans_each_exact_under_its_own_weights(driver, update):
    before = driver.engine.version
    running = asyncio.create_task(sample(driver, max_new_tokens=LONG, num_samples=2, stop_token_ids=()))
    await asyncio.sleep(0.3)
    report = await change_weights(driver, update)
    assert not running.done()
    completions = await running
    assert report.probe_max_error < TOLERANCE
    for completion in completions:
        assert [span.version for span in completion.versions] == [before, update.version]
        assert len(completion.token_ids) == LONG
        driver.assert_exact(completion)


async def test_a_cached_prompt_is_computed_again_under_new_weights(driver, update):
    await sample(driver, num_samples=2)
    await change_weights(driver, update)
    completion = (await sample(driver, num_samples=1, stop_token_ids=()))[0]
    assert [span.version for span in completion.versions] == [update.version]
    driver.assert_exact(completion)


async def test_without_recomputing_new_requests_still_see_only_new_weights(driver, update):
    running = asyncio.create_task(sample(driver, max_new_tokens=LONG, stop_token_ids=()))
    await asyncio.sleep(0.2)
    await change_weights(driver, update, clear_cache=False)
    completion = (await sample(driver, seed=5))[0]
    driver.assert_exact(completion)
    assert len((await running)[0].versions) == 2


async def test_an_update_that_was_not_applied_fails_the_probe_and_nothing_leaves_the_engine(driver, tmp_path):
    good = driver.new_update(tmp_path / "good")
    running = asyncio.create_task(sample(driver, max_new_tokens=100, stop_token_ids=()))
    await asyncio.sleep(0.05)
    wrong = driver.new_update(tmp_path / "wrong", applied=False)
    with pytest.raises(ProbeFailedError, match="differ from the learner's by"):
        await change_weights(driver, wrong)
    await asyncio.sleep(1.0)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    later = driver.new_update(tmp_path / "later")
    await change_weights(driver, later)  # a good push makes the engine serve again
    driver.assert_exact((await sample(driver))[0])
    assert good.version < later.version


async def test_paused_means_no_answer_until_resume_also_for_requests_that_come_meanwhile(driver):
    running = asyncio.create_task(sample(driver, max_new_tokens=60, stop_token_ids=()))
    await asyncio.sleep(0.05)
    await driver.engine.pause()
    late = asyncio.create_task(sample(driver, max_new_tokens=3, stop_token_ids=()))
    await asyncio.sleep(1.0)
    assert not running.done()
    assert not late.done()
    await driver.engine.resume()
    assert [len((await task)[0].token_ids) for task in (running, late)] == [60, 3]


async def test_a_cancelled_request_leaves_room_for_others(driver):
    tasks = [asyncio.create_task(sample(driver, max_new_tokens=LONG, num_samples=8)) for _ in range(2)]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    completions = await asyncio.wait_for(sample(driver, num_samples=8), timeout=10)
    assert len(completions) == 8
    assert (await driver.engine.stats())["running"] == 0


async def test_more_requests_than_slots_are_all_answered_exactly(driver):
    groups = await asyncio.gather(*(sample(driver, num_samples=6, seed=seed) for seed in range(4)))
    for completion in itertools.chain(*groups):
        driver.assert_exact(completion)


async def test_a_burst_of_seeded_prompts_larger_than_one_prefill_is_answered(driver):
    prompts = [[*driver.prompt, *range(40, 130), 40 + i] for i in range(64)]
    answers = await asyncio.gather(
        *(driver.engine.generate(prompt, ask(driver, max_new_tokens=2, seed=i)) for i, prompt in enumerate(prompts))
    )
    assert all(len(completion.token_ids) >= 1 for [completion] in answers)


async def test_stats_count_tokens_and_busy_time(driver):
    before = await driver.engine.stats()
    completions = await sample(driver, num_samples=2)
    after = await driver.engine.stats()
    assert set(after) >= {"running", "waiting", "prompt_tokens", "generated_tokens", "busy_s"}
    assert after["prompt_tokens"] - before["prompt_tokens"] == len(driver.prompt)
    assert after["generated_tokens"] - before["generated_tokens"] == sum(len(c.token_ids) for c in completions)
    assert after["busy_s"] > before["busy_s"]


async def test_loading_weights_outside_of_the_bracket_is_refused(driver, update):
    with pytest.raises(EngineError, match="outside of pause"):
        await driver.engine.load_weights(update)
    await change_weights(driver, update)


@pytest.mark.parametrize("kind", KINDS)
async def test_closing_ends_requests_in_flight_with_an_engine_error(kind):
    driver = make_driver(kind)
    await driver.engine.start(driver.model_path, driver.newest)
    running = asyncio.create_task(sample(driver, max_new_tokens=LONG, stop_token_ids=()))
    await asyncio.sleep(0.1)
    children = getattr(driver.engine, "child_pids", ())
    await driver.engine.close()
    with pytest.raises(EngineError):
        await asyncio.wait_for(running, timeout=10)
    with pytest.raises(EngineError):
        await sample(driver)
    if children:
        import psutil

        assert not [pid for pid in children if psutil.pid_exists(pid)]
