"""B3: tokens/s of Trainer.step over plain transformers + F.linear_cross_entropy + fused AdamW, same packed batch.

python -m benchmarks.learner_step --repeats 12 --threads 1
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.learner_workload import arguments, random_group, save_random_model
from benchmarks.paired import alternate, print_result
from benchmarks.plain_learner import PlainLearner
from learner.config import LearnerConfig, NegativeLogLikelihood, Term
from learner.trainer import Trainer
from rewards.trajectory import Source

BAR = 0.95


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=129, help="tokens of a sequence; all but the first are targets")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    groups = [
        random_group(rng, 1, [options.length - 1], group_id=f"e{i}", source=Source.EXPERT)
        for i in range(options.sequences)
    ]
    sequences = [t.token_ids for g in groups for t in g.trajectories]
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_random_model(Path(scratch), options.layers)
        plain = PlainLearner.load(folder)
        config = LearnerConfig(threads_per_rank=options.threads, attention="packed", max_tokens_per_micro_batch=1 << 20)
        trainer = Trainer(config, [Term(loss=NegativeLogLikelihood(), source="expert")], folder, temperature=1.0)
    expected, got = plain.step(sequences), trainer.step(groups, 0)
    if abs(expected - got.loss) > 1e-4 * abs(expected):
        raise RuntimeError(f"the two learners do not do the same work: losses {got.loss} and {expected}")
    ratio = alternate(lambda: trainer.step(groups, 0), lambda: plain.step(sequences), repeats=options.repeats, warmup=1)
    tokens = sum(len(s) - 1 for s in sequences)
    print_result("B3 learner_step", ratio, BAR, tokens=tokens, layers=options.layers,
                 tokens_per_s=round(tokens / ratio.ours_s, 1))  # fmt: skip


if __name__ == "__main__":
    main()
