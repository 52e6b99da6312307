from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.config import EngineConfig
from actors.engines.protocol import SamplingRequest
from actors.engines.transformers import TransformersEngine
from actors.renderer import Renderer
from actors.tiny_model import MAX_OPERAND, build_tiny_model
from rewards.trajectory import FinishReason, PolicyVersion


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def barely_trained(tmp_path_factory) -> Path:
    """The real build, two steps long."""
    folder = tmp_path_factory.mktemp("barely")
    build_tiny_model(folder, num_steps=2)
    return folder


@pytest.fixture(scope="module")
def renderer(barely_trained) -> Renderer:
    return Renderer(str(barely_trained))


def test_equal_seeds_give_equal_bytes_whatever_the_process_did_before(barely_trained, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(77)
        state = torch.get_rng_state()
        build_tiny_model(tmp_path / "again", num_steps=2)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    build_tiny_model(tmp_path / "other", num_steps=2, seed=1)
    again, other = digests(tmp_path / "again"), digests(tmp_path / "other")
    assert again == digests(barely_trained)
    assert {name for name in other if other[name] != again[name]} == {"model.safetensors"}


def test_it_is_a_folder_that_others_load(barely_trained):
    model: Any = AutoModelForCausalLM.from_pretrained(barely_trained)
    tokenizer = AutoTokenizer.from_pretrained(barely_trained)
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert json.loads((barely_trained / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_each_digit_is_a_token(renderer):
    assert [renderer.decode([t]) for t in renderer.answer_ids("1907")] == ["1", "9", "0", "7", ""]


@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(renderer, text):
    if "<|" not in text:
        assert renderer.decode(renderer.answer_ids(text)) == text


async def share_right(path: Path, problems: list[tuple[int, str, int]], temperature: float) -> tuple[float, float]:
    """Share of right answers, and of answers that ended by themselves."""
    renderer = Renderer(str(path))

    async def answer(seed: int, a: int, sign: str, b: int) -> tuple[bool, bool]:
        question = f"Calculate {a} {sign} {b}. Reply with only the number."
        request = SamplingRequest(
            max_new_tokens=16, temperature=temperature, stop_token_ids=renderer.stop_token_ids, seed=seed
        )
        prompt = renderer.prompt_ids([{"role": "user", "content": question}])
        (completion,) = await engine.generate(prompt, request)
        numbers = re.findall(r"-?\d+", renderer.decode(completion.token_ids))
        is_right = bool(numbers) and int(numbers[-1]) == (a + b if sign == "+" else a - b)
        return is_right, completion.finish_reason is FinishReason.STOP

    engine = TransformersEngine(EngineConfig(kind="transformers", max_model_len=80, max_num_seqs=100))
    await engine.start(str(path), PolicyVersion(0))
    try:
        answers = await asyncio.gather(*(answer(seed, *problem) for seed, problem in enumerate(problems)))
    finally:
        await engine.close()
    right, ended = np.mean(answers, axis=0)
    return float(right), float(ended)


def problems(low: int, high: int, count: int = 100) -> list[tuple[int, str, int]]:
    rng = random.Random(5)
    return [(rng.randint(low, high), rng.choice("+-"), rng.randint(low, high)) for _ in range(count)]


async def test_it_answers_its_own_lessons_so_that_something_is_left_to_learn(tiny_model_path):
    for temperature in (0.0, 1.0):
        right, ended = await share_right(tiny_model_path, problems(0, MAX_OPERAND), temperature)
        assert 0.15 <= right <= 0.8, temperature
        assert ended >= 0.95, temperature
    beyond, _ = await share_right(tiny_model_path, problems(30, 99), 0.0)
    assert beyond <= 0.15
