"""B4: samples/s of Trainer.step over TRL's GRPOTrainer on the same prompts and given completions, groups of eight.

TRL runs its own training loop with its own loss, optimizer and fused LM head; only generation and rewards are
replaced by given completions and advantages. One of our steps runs after each of its steps. The ceiling is the ratio
of computed tokens, 8(p+a)/(p+8a). TRL is no dependency; point PYTHONPATH to a folder that holds it:

    pip install --no-deps --target /tmp/trl trl==1.16.0
    PYTHONPATH=/tmp/trl python -m benchmarks.learner_vs_trl --repeats 12 --threads 1
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from benchmarks.learner_workload import arguments, random_group, save_random_model
from benchmarks.paired import print_result, ratio_of, seconds
from learner.config import ClippedSurrogate, LearnerConfig, Term
from learner.trainer import Trainer
from rewards.trajectory import Group

GROUP_SIZE = 8
SHARE_OF_CEILING = 0.85
LEARNING_RATE = 1e-6


def given_batch(groups: Sequence[Group], prompt: int) -> dict[str, torch.Tensor]:
    """What GRPOTrainer makes of generated and scored completions; all have one length, so nothing is padding."""
    trajectories = [t for g in groups for t in g.trajectories]
    ids = torch.as_tensor(np.stack([t.token_ids for t in trajectories]), dtype=torch.int64)
    scores = torch.tensor([[t.score for t in g.trajectories] for g in groups], dtype=torch.float32)
    advantages = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    mask = torch.ones_like(ids)
    return {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": mask[:, :prompt],
        "completion_ids": ids[:, prompt:],
        "completion_mask": mask[:, prompt:],
        "advantages": advantages.flatten(),
        "num_items_in_batch": mask[:, prompt:].sum(),
    }


class AfterEachStep(TrainerCallback):
    """Times TRL's steps, from the batch to the updated weights, and runs ours in between."""

    def __init__(self, ours: Callable[[], Any]) -> None:
        self.pairs: list[tuple[float, float]] = []
        self._ours = ours
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        reference_s = time.perf_counter() - self._began
        self.pairs.append((seconds(self._ours), reference_s))


def run_trl(folder: Path, batch: dict[str, torch.Tensor], steps: int, callback: TrainerCallback) -> None:
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    class GivenCompletions(GRPOTrainer):
        def _prepare_inputs(self, generation_batch: Any) -> dict[str, torch.Tensor]:
            return batch

    size = len(batch["prompt_ids"])
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=1,
        num_generations=GROUP_SIZE,
        max_completion_length=batch["completion_ids"].shape[1],
        learning_rate=LEARNING_RATE,
        optim="adamw_torch_fused",
        max_steps=steps,
        beta=0.0,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = GivenCompletions(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["given"] * size}),
        processing_class=word_tokenizer(),
        callbacks=[callback],
    )
    trainer.train()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """GRPOTrainer asks for a tokenizer, though it never tokenises here."""
    from tokenizers import Tokenizer, models

    vocabulary = {"<pad>": 0, "<eos>": 1, "given": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="given")),
        pad_token="<pad>",
        eos_token="<eos>",
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--groups", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        import trl  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit("TRL is not importable; see the first lines of this file for how to put it beside this environment")
    rng = np.random.default_rng(0)
    groups = [
        random_group(rng, options.prompt, [options.answer] * GROUP_SIZE, group_id=f"g{i}")
        for i in range(options.groups)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_random_model(Path(scratch), options.layers)
        config = LearnerConfig(threads_per_rank=options.threads)
        trainer = Trainer(config, [Term(loss=ClippedSurrogate())], folder, temperature=1.0)
        callback = AfterEachStep(lambda: trainer.step(groups, 0))
        run_trl(folder, given_batch(groups, options.prompt), options.repeats + 1, callback)
    ratio = ratio_of(callback.pairs[1:])  # the first pair warms up
    prompt, answer = options.prompt, options.answer
    ceiling = GROUP_SIZE * (prompt + answer) / (prompt + GROUP_SIZE * answer)
    samples = options.groups * GROUP_SIZE
    print_result(
        "B4 learner_vs_trl", ratio, SHARE_OF_CEILING * ceiling, prompt=prompt, answer=answer, groups=options.groups,
        ceiling=round(ceiling, 4), layers=options.layers,
        samples_per_s=round(samples / ratio.ours_s, 2), trl=trl.__version__,
        reference_settings="fp32, fused AdamW, fused LM head, beta 0, one micro-batch, entropy measured",
        our_settings="fp32, fused AdamW, tiled head, no reference, one micro-batch, shared prefixes",
    )  # fmt: skip


if __name__ == "__main__":
    main()
