"""The model side of the learner on one CUDA device: correctness, B3, B5, B6 and MFU, one JSON line each.

Needs torch, transformers and numpy only (no Ray, no vLLM, no pydantic); says so and stops without a GPU.

    python -m benchmarks.gpu_check --repeats 12
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learner_workload import QWEN3_600M, SMOLLM2_135M, model_config, random_group
from benchmarks.paired import alternate, environment, print_result, seconds
from benchmarks.plain_learner import PlainLearner
from learner.attention import choose_backend
from learner.batch import MicroBatch, collate, training_sequences
from learner.logprobs import token_logprobs
from learner.policy import Policy
from rewards.trajectory import Group

GROUP_SIZE = 8
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
"""Dense bf16 tensor-core FLOP/s by part of the device's name, from the vendor's data sheets."""


class BareLearner:
    """Policy, loss and optimizer of a training step, without the recipe around them: imitates every answer token."""

    def __init__(self, model: Any, *, compute_dtype: torch.dtype, chunk_tokens: int = 1024) -> None:
        self.policy = Policy(model, compute_dtype=compute_dtype, chunk_tokens=chunk_tokens).cuda()
        self._optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-6, weight_decay=0.0, fused=True)

    def collate(self, groups: Sequence[Group], *, share_prefixes: bool) -> MicroBatch:
        masks = [t.sampled_mask for g in groups for t in g.trajectories]
        dtype, device = self.policy.compute_dtype, self.policy.device
        backend = choose_backend(device, dtype, share_prefixes=share_prefixes)
        return collate(
            training_sequences(groups, masks), {}, share_prefixes=share_prefixes, backend=backend, device=device,
            dtype=dtype,
        )  # fmt: skip

    def step(self, batch: MicroBatch) -> float:
        loss = -self.policy(batch)[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def new_model(shape: dict[str, int], **changes: Any) -> Any:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(model_config(shape, **changes)).cuda()


def make_groups(count: int, prompt: int, answer: int, vocabulary: int, size: int = GROUP_SIZE) -> list[Group]:
    rng = np.random.default_rng(0)
    return [random_group(rng, prompt, [answer] * size, group_id=f"g{i}", vocabulary=vocabulary) for i in range(count)]


def check_correctness() -> bool:
    """Flex attention over shared prefixes and over whole sequences against one forward pass per sequence, fp32."""
    model = new_model(SMOLLM2_135M, num_hidden_layers=3, initializer_range=0.05)
    groups = make_groups(3, 75, 50, SMOLLM2_135M["vocab_size"])
    expected = separate_logprobs(model, groups)
    weights = torch.linspace(-1, 1, len(expected), device="cuda")
    (expected * weights).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    learner = BareLearner(model, compute_dtype=torch.float32)
    passed = True
    for share_prefixes in (True, False):
        model.zero_grad(set_to_none=True)
        batch = learner.collate(groups, share_prefixes=share_prefixes)
        got = learner.policy(batch)[0]
        (got * weights).sum().backward()
        value_error = float((got - expected).detach().abs().max())
        gradient_error = max(
            float((p.grad - gradients[n]).abs().max() / gradients[n].abs().max()) for n, p in model.named_parameters()
        )
        holds = value_error < 1e-4 and gradient_error < 1e-4
        passed &= holds
        print(json.dumps({"check": "log-probs and gradients", "share_prefixes": share_prefixes,
                          "backend": batch.layout.backend, "value_error": value_error,
                          "gradient_error": gradient_error, "passed": holds, **environment()}))  # fmt: skip
    return passed


def separate_logprobs(model: Any, groups: Sequence[Group]) -> Tensor:
    model.set_attn_implementation("sdpa")
    parts = []
    for trajectory in (t for g in groups for t in g.trajectories):
        ids = torch.as_tensor(trajectory.token_ids, dtype=torch.int64, device="cuda")
        table = model(ids[None]).logits[0].log_softmax(-1)
        positions = torch.as_tensor(np.flatnonzero(trajectory.sampled_mask), device="cuda")
        parts.append(table[positions - 1, ids[positions]])
    return torch.cat(parts)


def compare_step(repeats: int) -> None:
    """B3 in fp32 masters, bf16 compute: 8 sequences of 1024 tokens."""
    vocabulary = SMOLLM2_135M["vocab_size"]
    groups = make_groups(8, 1, 1024, vocabulary, size=1)
    sequences = [t.token_ids for g in groups for t in g.trajectories]
    plain = PlainLearner(new_model(SMOLLM2_135M))
    ours = BareLearner(new_model(SMOLLM2_135M), compute_dtype=torch.bfloat16)

    def plain_step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            plain.step(sequences)

    ratio = alternate(
        lambda: ours.step(ours.collate(groups, share_prefixes=False)), plain_step, repeats=repeats, warmup=3
    )
    print_result("B3 learner_step (GPU)", ratio, 0.95, tokens=8 * 1024)


def compare_head() -> None:
    """B5: peak memory of the head on 16k tokens of a 152k vocabulary, bf16 hidden states."""
    tokens, width, vocabulary = 16384, QWEN3_600M["hidden_size"], QWEN3_600M["vocab_size"]
    hidden = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, width, device="cuda")).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), device="cuda")
    rows = torch.arange(tokens, device="cuda")

    def tiled() -> Tensor:
        return token_logprobs(hidden, weight, rows, targets, chunk_tokens=1024)[0]

    def full() -> Tensor:
        return (hidden @ weight.to(torch.bfloat16).T).float().log_softmax(-1)[rows, targets]

    peaks = [peak_bytes(head, hidden, weight) for head in (tiled, full)]
    print(json.dumps({"bench": "B5 head_memory (GPU)", "ratio": round(peaks[0] / peaks[1], 4), "bar": 0.25,
                      "ours_mib": peaks[0] >> 20, "reference_mib": peaks[1] >> 20, **environment()}))  # fmt: skip


def peak_bytes(head: Callable[[], Tensor], *inputs: Tensor) -> int:
    for tensor in inputs:
        tensor.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head().sum().backward()
    return torch.cuda.max_memory_allocated() - before


def compare_layouts(repeats: int) -> None:
    """B6 with bf16 compute."""
    learner = BareLearner(new_model(SMOLLM2_135M), compute_dtype=torch.bfloat16)
    for prompt, answer in ((64, 64), (256, 64), (512, 64)):
        groups = make_groups(8, prompt, answer, SMOLLM2_135M["vocab_size"])
        shared, packed = (learner.collate(groups, share_prefixes=share) for share in (True, False))
        ratio = alternate(
            lambda batch=shared: learner.step(batch),
            lambda batch=packed: learner.step(batch),
            repeats=repeats,
            warmup=3,
        )
        ceiling = GROUP_SIZE * (prompt + answer) / (prompt + GROUP_SIZE * answer)
        print_result("B6 shared_prompt (GPU)", ratio, 0.85 * ceiling, prompt=prompt, answer=answer,
                     ceiling=round(ceiling, 4), backends=[shared.layout.backend, packed.layout.backend])  # fmt: skip


def measure_mfu() -> None:
    """Model FLOP utilisation at 16k packed tokens of a 0.6B model: 6 per weight and token, plus attention."""
    model = new_model(QWEN3_600M)
    learner = BareLearner(model, compute_dtype=torch.bfloat16)
    length, count = 2048, 8
    groups = make_groups(count, 1, length, QWEN3_600M["vocab_size"], size=1)
    batch = learner.collate(groups, share_prefixes=False)
    for _ in range(3):
        learner.step(batch)
    step_s = float(np.median([seconds(lambda: learner.step(batch)) for _ in range(10)]))
    weights = sum(p.numel() for p in model.parameters())  # the tied matrix works once, as the head
    heads = QWEN3_600M["num_attention_heads"] * QWEN3_600M["head_dim"]
    attention = 6 * count * length**2 * heads * QWEN3_600M["num_hidden_layers"]  # causal half of 12 L^2 d
    flops = 6 * weights * count * length + attention
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    print(json.dumps({"bench": "MFU (GPU)", "tokens": count * length, "weights": weights, "step_s": round(step_s, 4),
                      "tokens_per_s": round(count * length / step_s), "tflops": round(flops / step_s / 1e12, 1),
                      "mfu": None if peak is None else round(flops / step_s / peak, 4),
                      "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1), **environment()}))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=12)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked")
        return 0
    if not check_correctness():
        print("log-probs or gradients are wrong on this device; rates would mean nothing", file=sys.stderr)
        return 1
    compare_step(options.repeats)
    compare_head()
    compare_layouts(options.repeats)
    measure_mfu()
    return 0


if __name__ == "__main__":
    sys.exit(main())
