"""Engines under the contract tests, each with an independent answer to "what are the log-probs under version v"."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import EngineConfig
from actors.engines.protocol import Completion, Engine, WeightUpdate
from actors.engines.simulated import SimulatedEngine
from actors.engines.simulation import Faults, simulated_logprobs
from actors.model_store import fetch_model
from actors.renderer import Renderer
from actors.weights import write_version
from rewards.trajectory import PolicyVersion

CONFIG = EngineConfig(max_model_len=480, max_num_seqs=8, kv_cache_bytes=64 << 20, threads=1)
"""Float32, one thread."""


class Driver:
    """One engine, the versions it was given, and the log-probs it must report under each of them."""

    model_path: str = "simulated"

    def __init__(self, engine: Engine, prompt: list[int], stop_token_ids: tuple[int, ...]) -> None:
        self.engine, self.prompt, self.stop_token_ids = engine, prompt, stop_token_ids
        self.newest = PolicyVersion(0)

    def new_update(self, directory: Path, *, applied: bool = True) -> WeightUpdate:
        """Weights that differ from all before; with `applied=False` the probe is not that of the weights."""
        raise NotImplementedError

    def expected_logprobs(self, token_ids: list[int], version: int, temperature: float = 1.0) -> np.ndarray:
        """[T] under the weights of `version`, the first NaN."""
        raise NotImplementedError

    def assert_exact(self, completion: Completion, temperature: float = 1.0, atol: float = 1e-4) -> None:
        """Every token's log-prob is that of the version its span names, given everything before it."""
        ids = [*self.prompt, *completion.token_ids.tolist()]
        start = len(self.prompt)
        assert [s.start for s in completion.versions] == [0, *(s.end for s in completion.versions[:-1])]
        assert completion.versions[-1].end == len(completion.token_ids)
        for span in completion.versions:
            expected = self.expected_logprobs(ids, span.version, temperature)[start + span.start : start + span.end]
            np.testing.assert_allclose(completion.logprobs[span.start : span.end], expected, atol=atol)


class ModelDriver(Driver):
    """A real engine on the tiny model; the answers come from a plain transformers forward."""

    def __init__(self, engine: Engine, name: str = "tiny") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model_path = str(fetch_model(name))
        renderer = Renderer(self.model_path)
        prompt = renderer.prompt_ids([{"role": "user", "content": "Calculate 3 + 4. Reply with only the number."}])
        super().__init__(engine, prompt, renderer.stop_token_ids)
        torch.set_num_threads(1)
        model = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        self.models: dict[int, Any] = {0: model.eval()}

    def new_update(self, directory: Path, *, applied: bool = True) -> WeightUpdate:
        import copy

        import torch

        old, version = self.models[self.newest], PolicyVersion(max(self.models) + 1)
        model = copy.deepcopy(old)
        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in model.parameters():  # a tied head is its embedding
                parameter += 0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        self.models[version] = model
        written = model if applied else old
        if applied:
            self.newest = version
        probe = [*self.prompt, *range(40, 60)]
        return write_version(
            written.named_parameters(),
            directory,
            version=version,
            step=version,
            incarnation=0,
            dtype="float32",
            probe_token_ids=probe,
            probe_logprobs=self.expected_logprobs(probe, version).tolist(),
        )

    def expected_logprobs(self, token_ids: list[int], version: int, temperature: float = 1.0) -> np.ndarray:
        import torch

        ids = torch.tensor([token_ids])
        with torch.no_grad():
            logits = self.models[version](input_ids=ids).logits[0, :-1] / temperature
        logprobs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        return np.concatenate([[np.nan], logprobs.numpy()])


class SimulatedDriver(Driver):
    """The simulated engine at a speed that leaves time to interrupt it."""

    engine: SimulatedEngine

    def __init__(self) -> None:
        options = {"tokens_per_s": 400.0, "length": 10_000}
        engine = SimulatedEngine(CONFIG.model_copy(update={"kind": "simulated", "options": options}))
        super().__init__(engine, [5, 6, 7, 8], (1,))

    def new_update(self, directory: Path, *, applied: bool = True) -> WeightUpdate:
        self.newest = PolicyVersion(self.newest + 1)
        self.engine.faults = Faults(ignore_updates=not applied)
        probe = (*self.prompt, 11, 12)
        return WeightUpdate(
            version=self.newest,
            step=self.newest,
            incarnation=0,
            path="",
            digest="",
            probe_token_ids=probe,
            probe_logprobs=tuple(self.expected_logprobs(list(probe), self.newest).tolist()),
        )

    def expected_logprobs(self, token_ids: list[int], version: int, temperature: float = 1.0) -> np.ndarray:
        return simulated_logprobs(token_ids, PolicyVersion(version), temperature)


def make_driver(kind: str) -> Driver:
    """A driver whose engine is not started yet."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if kind == "simulated":
        return SimulatedDriver()
    if kind == "transformers":
        from actors.engines.transformers import TransformersEngine

        return ModelDriver(TransformersEngine(CONFIG.model_copy(update={"kind": "transformers"})))
    from actors.engines.vllm import VLLMEngine

    return ModelDriver(VLLMEngine(CONFIG))
