"""What one rank of a learner group does in the multi-rank tests; imported by the spawned processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.multiprocessing
from torch import Tensor

from learner.config import (
    ClippedSurrogate,
    CovarianceClippedSurrogate,
    CovariancePenaltySurrogate,
    EntropyBonus,
    EntropyWeightedLikelihood,
    EntropyWeightedPolicyGradient,
    GroupRegression,
    KLToReference,
    LearnerConfig,
    MomentClippedSurrogate,
    NegativeLogLikelihood,
    OneTokenRollout,
    OptimalBaselineGradient,
    OptimizerConfig,
    PairwisePreference,
    ProspectPreference,
    ProtectedSurrogate,
    QuotientClippedSurrogate,
    Term,
    TraceWeightedPolicyGradient,
)
from learner.trainer import StepReport, Trainer
from rewards.trajectory import Group, Source
from rewards.verdict import Verdict
from tests.learner.tiny_policy import random_groups

TERMS = (
    Term(loss=ClippedSurrogate(), advantage="centered"),
    Term(loss=KLToReference(), weight=0.1),
    Term(loss=EntropyBonus(), weight=0.01, aggregation="sequence"),
    Term(loss=NegativeLogLikelihood(token_weight="phi"), source="expert", weight=0.5),
)
CONFIG = LearnerConfig(
    max_tokens_per_micro_batch=120,
    # A large eps keeps Adam from blowing up rounding differences of gradients that are almost zero.
    optimizer=OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.5, weight_decay=0.01, eps=1e-4),
    logprob_chunk_tokens=16,
)


def make_trainer(folder: Path, config: LearnerConfig = CONFIG, terms: Sequence[Term] = TERMS, **ranks) -> Trainer:
    return Trainer(config, terms, folder, temperature=1.0, **ranks)


def batch(step: int) -> list[Group]:
    """Live groups of three sizes, one without any difference in scores, and expert sequences."""
    live = random_groups([(6, (5, 3, 9, 2)), (30, (20, 31, 8)), (3, (2, 2))], seed=step)
    level = live[2]
    members = tuple(t.with_verdict(level.trajectories[0].verdict) for t in level.trajectories)
    live[2] = replace(level, trajectories=members)
    return [*live, *random_groups([(8, (6,)), (15, (12,))], seed=100 + step, source=Source.EXPERT, tag="e")]


def poisoned_batch() -> list[Group]:
    """A faulty reward paid 1e38 for one answer: finite, so that the record takes it, but not its gradient's norm."""
    poisoned, *others = batch(7)
    first, *siblings = poisoned.trajectories
    return [replace(poisoned, trajectories=(first.with_verdict(Verdict.scored(1e38)), *siblings)), *others]


WHOLE_UPDATE_TERMS = (
    Term(loss=GroupRegression(), advantage="centered", aggregation="sequence"),
    Term(loss=PairwisePreference(), advantage="score", aggregation="sequence"),
    Term(loss=MomentClippedSurrogate(budget=0.5)),
    Term(loss=QuotientClippedSurrogate(target=1.5)),
    Term(loss=CovarianceClippedSurrogate(share=0.2, low=0.0, high=50.0)),
    Term(loss=CovariancePenaltySurrogate(share=0.2)),
    Term(loss=OptimalBaselineGradient(), advantage="score"),
    Term(loss=ProtectedSurrogate(share=0.6, min_ratio=0.01)),
    Term(loss=ProspectPreference(), advantage="centered", aggregation="sequence"),
    Term(loss=TraceWeightedPolicyGradient(), advantage="centered"),
    Term(loss=EntropyWeightedPolicyGradient()),
    Term(loss=EntropyWeightedLikelihood(), source="expert"),
    Term(loss=OneTokenRollout(draws=4, miss_reward=-0.1), source="expert", weight=0.1),
)
"""What reads more than its own tokens: the group, or the whole update."""


def run_whole_update_terms(rank: int, world_size: int, model: Path, out: Path) -> None:
    """One step; rank 0 writes losses per term and weights to `out`."""
    torch.set_num_threads(1)
    meeting = f"file://{out}.meeting"
    trainer = make_trainer(model, CONFIG, WHOLE_UPDATE_TERMS, rank=rank, world_size=world_size, init_method=meeting)
    report = trainer.step(batch(0), 0)
    result = {**weights(trainer), "terms": report.terms}
    if rank == 0:
        torch.save(result, out)
    torch.distributed.destroy_process_group()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.named_weights()}


def run_rank(rank: int, world_size: int, model: Path, out: Path, checkpoint: Path | None, steps: Sequence[int]) -> None:
    """Trains the given steps, then a poisoned one; rank 0 writes everything it saw to `out`."""
    torch.set_num_threads(1)
    trainer = make_trainer(model, rank=rank, world_size=world_size, init_method=f"file://{out}.meeting")
    reports: list[StepReport] = []
    for step in steps:
        reports.append(trainer.step(batch(step), step))
        trainer.probe_logprobs([1, 2, 3])  # as before each publishing; it must not leave old weights gathered
    if checkpoint is not None:
        trainer.begin_save(checkpoint).result()
    trained = weights(trainer)
    skipped = trainer.step(poisoned_batch(), 7)
    after = weights(trainer)
    probe = trainer.probe_logprobs([1, 2, 3, 4, 5])
    trainer.export(out.parent / "exported")
    if rank == 0:
        result = {"trained": trained, "after_poison": after, "probe": torch.from_numpy(probe)}
        result |= {f"loss/{i}": torch.tensor(r.loss) for i, r in enumerate(reports)}
        result |= {f"norm/{i}": torch.tensor(r.grad_norm) for i, r in enumerate(reports)}
        result["skipped"] = torch.tensor(skipped.skipped)
        result["terms"] = {f"{t}/{m}": v for t, ms in reports[-1].terms.items() for m, v in ms.items()}
        torch.save(result, out)
    torch.distributed.destroy_process_group()


def spawn_ranks(world_size: int, *arguments: object) -> None:
    torch.multiprocessing.spawn(run_rank, (world_size, *arguments), nprocs=world_size)
