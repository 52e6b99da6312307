"""The demo's graph with real vLLM on a tiny model, and what it leaves: a folder that transformers and vLLM load."""

from __future__ import annotations

import numpy as np
import pytest

from actors.config import EngineConfig
from actors.engines.protocol import SamplingRequest
from rewards.trajectory import PolicyVersion
from tests.cluster.runs import Run, wait_until_gone
from tests.cluster.test_run import assert_sound

pytestmark = [pytest.mark.cluster, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

SETTINGS = ("num_steps=4", "tasks.num_heldout=32", "evaluation.every=2", "rollout.group_size=4")


async def test_the_demo_runs_on_vllm_and_its_model_is_served_by_transformers_and_vllm_alike(tmp_path, tiny_model_path):
    run = Run(tmp_path, "demo", settings=(f"model={tiny_model_path}", *SETTINGS), recipe="arithmetic_demo")
    run.wait_for_step(1, timeout_s=400)
    processes = run.processes()
    assert run.wait(400) == 0, run.log
    assert wait_until_gone(processes) == []
    assert_sound(run, 4)
    summary = run.summary()
    assert summary["before"]["all"]["n"] == summary["after"]["all"]["n"] == 32
    errors = [line["probe_mean_error"] for line in run.lines("events.jsonl") if line["kind"] == "activated"]
    assert len(errors) >= 4
    assert max(errors) < 1e-4
    ids = list(range(20, 60))
    np.testing.assert_allclose(await vllm_logprobs(str(run.folder / "model"), ids), hf_logprobs(run, ids), atol=1e-4)


def hf_logprobs(run: Run, ids: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.folder / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


async def vllm_logprobs(folder: str, ids: list[int]) -> np.ndarray:
    from actors.engines.vllm import VLLMEngine

    engine = VLLMEngine(EngineConfig(max_model_len=128, max_num_seqs=4, kv_cache_bytes=1 << 26))
    await engine.start(folder, PolicyVersion(0))
    try:
        scores = await engine.score(ids)
        [completion] = await engine.generate(ids, SamplingRequest(max_new_tokens=4, temperature=0.0))
        assert len(completion.token_ids) == 4
        return scores[1:]
    finally:
        await engine.close()
