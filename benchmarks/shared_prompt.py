"""B6: logical trained tokens/s with prompts computed once over a padding-free batch of whole sequences.

Both are Trainer.step on the same groups of eight; the ceiling is the ratio of computed tokens, 8(p+a)/(p+8a).

    python -m benchmarks.shared_prompt --repeats 12 --threads 1
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.learner_workload import arguments, random_group, save_random_model
from benchmarks.paired import alternate, print_result
from learner.config import ClippedSurrogate, LearnerConfig, Term
from learner.trainer import Trainer

SHAPES = ((64, 64), (256, 64), (512, 64))
GROUP_SIZE = 8
SHARE_OF_CEILING = 0.85


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--shapes", default=";".join(f"{p},{a}" for p, a in SHAPES), help="prompt,answer;...")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_random_model(Path(scratch), options.layers)
        shared, packed = (_trainer(folder, attention, options.threads) for attention in ("shared_prompt", "packed"))
    rng = np.random.default_rng(0)
    for prompt, answer in (map(int, shape.split(",")) for shape in options.shapes.split(";")):
        groups = [random_group(rng, prompt, [answer] * GROUP_SIZE, group_id=f"g{i}") for i in range(options.groups)]
        one, other = shared.step(groups, 0), packed.step(groups, 0)
        if abs(one.grad_norm - other.grad_norm) > 1e-2 * other.grad_norm:
            raise RuntimeError(f"the layouts disagree: gradient norms {one.grad_norm} and {other.grad_norm}")
        ratio = alternate(
            lambda groups=groups: shared.step(groups, 0),
            lambda groups=groups: packed.step(groups, 0),
            repeats=options.repeats,
        )
        ceiling = GROUP_SIZE * (prompt + answer) / (prompt + GROUP_SIZE * answer)
        print_result("B6 shared_prompt", ratio, SHARE_OF_CEILING * ceiling, prompt=prompt, answer=answer,
                     groups=options.groups, ceiling=round(ceiling, 4), layers=options.layers,
                     computed_tokens=[one.num_tokens, other.num_tokens])  # fmt: skip


def _trainer(folder: Path, attention: str, threads: int) -> Trainer:
    config = LearnerConfig(threads_per_rank=threads, attention=attention, max_tokens_per_micro_batch=1 << 20)
    return Trainer(config, [Term(loss=ClippedSurrogate())], folder, temperature=1.0)


if __name__ == "__main__":
    main()
