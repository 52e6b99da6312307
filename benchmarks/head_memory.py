"""B5: memory of the tiled head over full logits, and rate of a whole training step over one with full logits.

Memory is how far a child process grows (Linux) while it runs the head forward and backward once; the gradients of
hidden states and weight are included on both sides.

    python -m benchmarks.head_memory --repeats 12 --threads 1
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.learner_workload import SMOLLM2_135M, arguments, random_group, save_random_model
from benchmarks.paired import alternate, environment, print_result
from learner import policy
from learner.config import LearnerConfig, NegativeLogLikelihood, Term
from learner.logprobs import token_logprobs
from learner.trainer import Trainer
from rewards.trajectory import Source

MEMORY_BAR = 0.25
RATE_BAR = 0.9
MEMORY_REPEATS = 5


def full_logits_logprobs(
    hidden: Tensor, weight: Tensor, rows: Tensor, targets: Tensor, *, temperature: float = 1.0, **_: object
) -> tuple[Tensor, None]:
    """The opponent: the whole table of log-probs."""
    table = ((hidden @ weight.T).float() / temperature).log_softmax(-1)
    return table[rows, targets], None


HEADS = {"tiled": token_logprobs, "full": full_logits_logprobs}


def measure_child(head: str, tokens: int) -> None:
    """Prints the bytes by which the process grew at most while the head ran forward and backward."""
    torch.manual_seed(0)
    width, vocabulary = SMOLLM2_135M["hidden_size"], SMOLLM2_135M["vocab_size"]
    hidden = torch.empty(tokens, width).normal_().requires_grad_()
    weight = torch.empty(vocabulary, width).normal_(std=0.02).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,))
    (hidden[:64] @ weight[:64].T).sum()  # libraries set up their buffers
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    HEADS[head](hidden, weight, torch.arange(tokens), targets)[0].sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


def head_bytes(head: str, tokens: int) -> int:
    command = [sys.executable, "-m", "benchmarks.head_memory", "--child", head, "--tokens", str(tokens)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare_memory(tokens: int) -> None:
    sizes = {head: statistics.median(head_bytes(head, tokens) for _ in range(MEMORY_REPEATS)) for head in HEADS}
    line = {
        "bench": "B5 head_memory",
        "ratio": round(sizes["tiled"] / sizes["full"], 4),
        "bar": MEMORY_BAR,
        "repeats": MEMORY_REPEATS,
        "ours_mib": round(sizes["tiled"] / 2**20, 1),
        "reference_mib": round(sizes["full"] / 2**20, 1),
        "tokens": tokens,
        **environment(),
    }
    print(json.dumps(line))


def compare_steps(layers: int, threads: int, repeats: int) -> None:
    rng = np.random.default_rng(0)
    groups = [random_group(rng, 1, [128], group_id=f"e{i}", source=Source.EXPERT) for i in range(8)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_random_model(Path(scratch), layers)
        config = LearnerConfig(threads_per_rank=threads, attention="packed")
        trainer = Trainer(config, [Term(loss=NegativeLogLikelihood(), source="expert")], folder, temperature=1.0)

    def step_with(head: str) -> float:
        policy.token_logprobs = HEADS[head]  # the one call that differs
        return trainer.step(groups, 0).loss

    ratio = alternate(lambda: step_with("tiled"), lambda: step_with("full"), repeats=repeats)
    print_result("B5 head_rate", ratio, RATE_BAR, layers=layers, tokens=8 * 128)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--child", choices=HEADS, help="internal: measure one head in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        measure_child(options.child, options.tokens)
        return
    compare_memory(options.tokens)
    compare_steps(options.layers, options.threads, options.repeats)


if __name__ == "__main__":
    main()
