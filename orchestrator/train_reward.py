"""`braid train-reward`: a scalar reward model from preference pairs."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.commands import CommandError, hide_progress_bars

if TYPE_CHECKING:
    from rewards.preferences import PreferencePair

REPORT_FILE = "reward_report.json"


def train_reward(args: Namespace) -> int:
    """Trains, measures on held-out pairs, and writes the model with its report."""
    hide_progress_bars()
    from actors.model_store import ModelError, resolve_model
    from learner.config import OptimizerConfig
    from learner.reward_model import RewardModel
    from learner.reward_trainer import RewardTrainer, RewardTraining
    from rewards.preferences import read_pairs

    if args.target.exists() and (not args.target.is_dir() or any(args.target.iterdir())):
        raise CommandError(f"{args.target} exists and is not an empty folder: name another target")
    config = RewardTraining(
        optimizer=OptimizerConfig(learning_rate=args.learning_rate),
        pairs_per_step=args.pairs_per_step,
        num_epochs=args.epochs,
        max_length=args.max_length,
        seed=args.seed,
    )
    try:
        pairs, refused = read_pairs(args.pairs)
        model = RewardModel.load(resolve_model(args.model), max_length=config.max_length, seed=config.seed)
    except (ModelError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    trainer = RewardTrainer(config, model)
    train, heldout = _split(pairs, args.heldout, config.seed)
    encoded, left_out = trainer.encode(train)
    measured, heldout_left_out = trainer.encode(heldout)
    if not encoded or not measured:
        raise CommandError(
            f"{len(encoded)} pairs to train on and {len(measured)} to measure by, after {left_out + heldout_left_out} "
            f"were longer than --max-length {config.max_length}: supply more pairs, or raise it"
        )
    print(f"{len(encoded)} pairs to train on, {len(measured)} held out, refused: {dict(refused)}, {left_out} too long")
    for step in trainer.train(encoded):
        state = "skipped, no number" if step.skipped else f"accuracy {step.metrics['pair_accuracy']:.3f}"
        print(f"  step {step.step}: loss {step.loss:.4f}, {state}", flush=True)
    report = trainer.evaluate(measured, left_out=heldout_left_out)
    model.save(args.target)
    (args.target / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2), encoding="utf-8")
    e = report.accuracy.estimate
    print(
        f"{args.target}: held-out pair accuracy {e.value:.3f} [{e.low:.3f}, {e.high:.3f}], Brier score "
        f"{report.brier:.3f}; the longer answer is preferred in {report.longer_preferred:.2f} of the pairs and is the "
        f"better one in {report.longer_chosen:.2f}"
    )
    return 0


def _split(
    pairs: Sequence[PreferencePair], share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs; pairs of one prompt stay on one side."""
    prompts = list(dict.fromkeys(str(pair.messages) for pair in pairs))
    order = np.random.default_rng(seed).permutation(len(prompts))
    kept_aside = {prompts[i] for i in order[: max(1, round(share * len(prompts)))]}
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        sides[str(pair.messages) in kept_aside].append(pair)
    return sides
