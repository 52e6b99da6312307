"""One rank of the learner group: groups in, one optimizer step, weights out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from learner import checkpoint, export
from learner.attention import choose_backend
from learner.batch import Columns, MicroBatch, TrainingSequence, collate, training_sequences
from learner.config import LearnerConfig, Term
from learner.objective import BatchPlan, Objective, is_maximum, join_metrics
from learner.packing import choose_layout, split_micro_batches
from learner.policy import Policy, TokenOutputs
from learner.sharding import add_over_ranks, init_ranks, rank_device, reduce_over_ranks, shard_policy, total_grad_norm
from learner.statistics import MEASURES, Float64Array, statistic_columns
from rewards.trajectory import Float32Array, Group


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did, over all ranks.

    Attributes:
        step: 0-based learner step.
        loss: weighted sum of the terms.
        terms: per term label, numbers to read (see `Objective.report`).
        grad_norm: global 2-norm before clipping.
        skipped: the optimizer was left alone; `skip_reason` says why.
        reset: the step began with a reset of reference or optimizer (`ResetConfig`).
        num_tokens: tokens the model computed; `num_logical_tokens`: tokens of all trained sequences, each counted
            alone; `num_trained_tokens`: tokens with a loss.
        num_micro_batches: forward and backward passes of each rank.
        shared_prefixes: common prefixes were computed once.
        seconds: wall time of this rank by phase.
    """

    step: int
    loss: float
    terms: Mapping[str, Mapping[str, float]]
    grad_norm: float
    learning_rate: float
    skipped: bool = False
    skip_reason: str | None = None
    reset: bool = False
    num_tokens: int = 0
    num_logical_tokens: int = 0
    num_trained_tokens: int = 0
    num_micro_batches: int = 0
    shared_prefixes: bool = True
    seconds: Mapping[str, float] = field(default_factory=dict)


class Trainer:
    """Model, optimizer and objective of one rank. Every method with "collective" in its text is called on all ranks."""

    def __init__(
        self,
        config: LearnerConfig,
        terms: Sequence[Term],
        model_path: str | Path,
        *,
        temperature: float,
        companions: Mapping[str, Path] | None = None,
        rank: int = 0,
        world_size: int = 1,
        init_method: str | None = None,
    ) -> None:
        """Loads the model; collective when there are several ranks.

        Args:
            temperature: of sampling; log-probs are taken at the same. 0 (greedy) is reported at 1 by the engines.
            companions: folders of the other models, "reference" and "teacher"; `model_path` where one is not named.

        Raises:
            ValueError: a term needs something this trainer cannot supply.
        """
        self.config, self.rank, self.world_size = config, rank, world_size
        self.objective, self._terms = Objective(terms), tuple(terms)
        missing = self.objective.needs - config.supplies
        if missing:
            raise ValueError(
                f"the terms need {sorted(missing)}, which a learner with these settings cannot supply: name the model "
                "they come from (learner.teacher for teacher_logprobs and divergence), or drop those terms"
            )
        self.device = rank_device(rank)
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads_per_rank)
        init_ranks(rank, world_size, init_method)
        torch.manual_seed(config.seed)
        self._model_path, self._companions = Path(model_path), dict(companions or {})
        self._dtype = torch.bfloat16 if config.compute_dtype == "bfloat16" else torch.float32
        self._temperature = temperature or 1.0
        self.policy = self._make_policy(self._model_path, trained=True)
        self.reference = self._make_reference()
        """The frozen copy, unless nobody reads it or the weights below the adapters are it."""
        reads_teacher = self.objective.needs & {"teacher_logprobs", "divergence"}
        self.teacher = self._make_policy(self._companion("teacher"), trained=False) if reads_teacher else None
        self.optimizer = _make_optimizer(config, self.policy)
        self.steps_done = 0
        """Optimizer steps applied by this model's history, skipped ones not counted."""

    @property
    def weights_kind(self) -> str:
        """What `named_weights` yields: "full" or "adapter"."""
        return "full" if self.config.lora is None else "adapter"

    def step(self, groups: Sequence[Group], step: int) -> StepReport:
        """One optimizer step on whole groups; collective, with the same groups on every rank.

        A loss or gradient that is NaN or infinite on any rank leaves weights and optimizer of all ranks untouched.

        Args:
            step: 0-based learner step, for schedules.
        """
        clock = _Clock()
        self._reset_if_due(step)
        with clock.phase("plan"):
            plan = self.objective.plan(groups)
            sequences = training_sequences(groups, plan.trained)
        if not sequences:
            return self._report(plan, {}, step, clock, reason="no token of the batch is trained by any term")
        totals = self._accumulate(groups, plan, sequences, step, clock)
        with clock.phase("optimizer"):
            totals["grad_norm"] = torch.tensor(total_grad_norm(self._trained_parameters()))
            reason = _why_not_finite(float(totals["loss"]), float(totals["grad_norm"]))
            if reason is None:
                self._update(step, float(totals["grad_norm"]))
            self.optimizer.zero_grad(set_to_none=True)
        return self._report(plan, totals, step, clock, reason)

    def _report(
        self, plan: BatchPlan, totals: Mapping[str, Tensor], step: int, clock: _Clock, reason: str | None
    ) -> StepReport:
        def total(name: str) -> float:
            return float(totals.get(name, 0.0))

        return StepReport(
            step=step,
            loss=total("loss"),
            terms=self.objective.report(plan, totals, step),
            grad_norm=total("grad_norm"),
            learning_rate=self._learning_rate(step),
            skipped=reason is not None,
            skip_reason=reason,
            reset=self.config.resets.due(step),
            num_tokens=int(total("num_tokens")),
            num_logical_tokens=int(total("num_logical_tokens")),
            num_trained_tokens=plan.num_trained_tokens,
            num_micro_batches=int(total("num_micro_batches")) // self.world_size,
            shared_prefixes=bool(total("shared_prefixes")),
            seconds=clock.seconds,
        )

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face (or, for adapters, PEFT) names with whole CPU tensors, gathered one by one; collective.

        A tied head is left out. The tensors may share memory with the weights: copy before the next step.
        """
        return export.adapter_weights(self.policy) if self.config.lora else export.full_weights(self.policy)

    def adapter_config(self) -> dict[str, Any] | None:
        """Contents of PEFT's `adapter_config.json` for the tensors of `named_weights`; None without LoRA."""
        return export.adapter_config(self.policy) if self.config.lora else None

    def probe_logprobs(self, token_ids: Sequence[int]) -> Float32Array:
        """[T] float32 log-probs at temperature 1, the first NaN, that an engine with these weights must reproduce;
        collective."""
        return self.policy.sequence_logprobs(token_ids)

    def export(self, folder: Path) -> None:
        """A complete Hugging Face folder, adapters merged and, beside it, in PEFT layout; collective."""
        export.write_model_folder(self.policy, self._model_path, folder, writes=self.rank == 0)

    def begin_save(self, folder: Path) -> Future[Any]:
        """Copies the sharded state of model, optimizer and trainer; steps may go on; collective.

        The future is done when this rank's part is in `folder`.
        """
        return checkpoint.begin_save(self, folder)

    def load(self, folder: Path) -> None:
        """Continues from `begin_save`, also of another number of ranks; collective."""
        checkpoint.load(self, folder)

    def _make_policy(self, folder: Path, *, trained: bool) -> Policy:
        policy = Policy.load(
            folder,
            temperature=self._temperature,
            chunk_tokens=self.config.logprob_chunk_tokens,
            compute_dtype=self._dtype,
            lora=self.config.lora if trained else None,
        ).to(self.device)
        if not trained:
            policy.requires_grad_(False)
        elif self.config.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            policy.model.train()
        return shard_policy(policy, self.world_size)

    def _companion(self, role: str) -> Path:
        return self._companions.get(role, self._model_path)

    def _make_reference(self) -> Policy | None:
        below_adapters = self.config.lora is not None and "reference" not in self._companions
        if "reference_logprobs" not in self.objective.needs or below_adapters:
            return None
        reference = self._make_policy(self._companion("reference"), trained=False)
        shapes = [[p.shape for p in model.parameters()] for model in (reference, self.policy)]
        if self.config.resets.moves_reference and shapes[0] != shapes[1]:
            raise ValueError(
                f"learner.resets copies the policy into the reference, but {self._companions['reference']} is a model "
                "of another shape: leave learner.reference.model out, or set learner.resets.reference=false"
            )
        return reference

    @torch.no_grad()
    def _reset_if_due(self, step: int) -> None:
        resets = self.config.resets
        if not resets.due(step):
            return
        if resets.reference and self.reference is not None:
            for frozen, current in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                frozen.copy_(current)
        if resets.optimizer:
            self.optimizer.state.clear()

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.policy.parameters() if p.requires_grad]

    def _accumulate(
        self, groups: Sequence[Group], plan: BatchPlan, sequences: Sequence[TrainingSequence], step: int, clock: _Clock
    ) -> dict[str, Tensor]:
        """Gradients of the whole batch; returns loss, token counts and metrics summed over micro-batches and ranks."""
        inputs = [s.input_ids for s in sequences]
        share_prefixes = choose_layout(self.config.attention, inputs) == "shared_prompt"
        columns = {**self._columns(groups, plan)}
        if "reference_logprobs" in self.objective.needs:
            with clock.phase("reference"):
                table = self._measure(plan, sequences, share_prefixes, 1, self._reference_logprobs)
            columns["reference_logprobs"] = plan.spread(table[0])
        if self.teacher is not None and "teacher_logprobs" in self.objective.needs:
            with clock.phase("teacher"):
                table = self._measure(plan, sequences, share_prefixes, 1, partial(_frozen_logprobs, self.teacher))
            columns["teacher_logprobs"] = plan.spread(table[0])
        if self.objective.has_statistics:
            with clock.phase("first_pass"):
                first = self._first_pass(plan, sequences, share_prefixes)
            behavior = [t.behavior_logprobs for g in groups for t in g.trajectories]
            columns |= statistic_columns(self._terms, plan, behavior, first, step)
        taught, measured = _split_by_gradient(plan, [term.weight.at(step) for term in self._terms], sequences)
        parts = []
        for part, backward in ((taught, True), (measured, False)):
            for chunk in self._my_chunks(part, plan, share_prefixes):
                with clock.phase("collate"):
                    batch = self._collate(chunk, columns, share_prefixes)
                with torch.set_grad_enabled(backward):
                    parts.append(self._pass(batch, step, clock, backward=backward))
        totals = reduce_over_ranks(join_metrics(parts), is_maximum=is_maximum, world_size=self.world_size)
        return {**totals, "shared_prefixes": torch.tensor(float(share_prefixes))}

    def _first_pass(
        self, plan: BatchPlan, sequences: Sequence[TrainingSequence], share_prefixes: bool
    ) -> dict[str, Float64Array]:
        """MEASURES of all trained tokens at the start of the update, [num_trained_tokens] each; collective."""
        floor = self.objective.vocabulary_floor
        names = MEASURES[:1] if floor is None else MEASURES

        def evaluate(batch: MicroBatch) -> Tensor:
            outputs: TokenOutputs = self.policy(batch, vocabulary_floor=floor)
            self.policy.release()
            logprobs = outputs.logprobs[None]
            return logprobs if outputs.measures is None else torch.cat([logprobs, outputs.measures])

        table = self._measure(plan, sequences, share_prefixes, len(names), evaluate)
        return dict(zip(names, table, strict=True))

    def _reference_logprobs(self, batch: MicroBatch) -> Tensor:
        if self.reference is not None:
            return _frozen_logprobs(self.reference, batch)
        with self.policy.without_adapter():
            return _frozen_logprobs(self.policy, batch)

    @torch.no_grad()
    def _measure(
        self,
        plan: BatchPlan,
        sequences: Sequence[TrainingSequence],
        share_prefixes: bool,
        num_rows: int,
        evaluate: Callable[[MicroBatch], Tensor],
    ) -> Float64Array:
        """[num_rows, num_trained_tokens] what `evaluate` says of all trained tokens, without gradient; collective, and
        the same on every rank.

        Args:
            evaluate: [num_rows, N] of a micro-batch's tokens.
        """
        ends = np.cumsum([np.count_nonzero(mask) for mask in plan.trained])
        measured = torch.zeros(num_rows, plan.num_trained_tokens, dtype=torch.float64, device=self.device)
        for chunk in self._my_chunks(sequences, plan, share_prefixes):
            rows = evaluate(self._collate(chunk, {}, share_prefixes))
            places = [torch.arange(len(s.positions)) + (ends[s.trajectory] - len(s.positions)) for s in chunk]
            if places:
                measured[:, torch.cat(places).to(self.device)] = rows.double()
        return add_over_ranks(measured, self.world_size).cpu().numpy()

    def _my_chunks(
        self, sequences: Sequence[TrainingSequence], plan: BatchPlan, share_prefixes: bool
    ) -> list[list[TrainingSequence]]:
        """This rank's micro-batches; as many as every other rank's."""
        if not sequences:
            return []
        chunks = split_micro_batches(
            [s.input_ids for s in sequences],
            max_tokens=self.config.max_tokens_per_micro_batch,
            num_ranks=self.world_size,
            share_prefixes=share_prefixes,
            together=[plan.groups[s.trajectory] for s in sequences] if plan.whole_groups else None,
        )
        return [[sequences[i] for i in chunk] for chunk in chunks[self.rank]]

    def _columns(self, groups: Sequence[Group], plan: BatchPlan) -> Columns:
        columns: dict[str, Sequence[Float32Array]] = dict(plan.columns)
        if "behavior_logprobs" in self.objective.needs:
            columns["behavior_logprobs"] = [t.behavior_logprobs for g in groups for t in g.trajectories]
        return columns

    def _collate(self, sequences: Sequence[TrainingSequence], columns: Columns, share_prefixes: bool) -> MicroBatch:
        return collate(
            sequences,
            columns,
            share_prefixes=share_prefixes,
            backend=choose_backend(self.device, self._dtype, share_prefixes=share_prefixes),
            device=self.device,
            dtype=self._dtype,
        )

    def _pass(self, batch: MicroBatch, step: int, clock: _Clock, *, backward: bool) -> dict[str, Tensor]:
        """One micro-batch forward and, if asked, backward; its loss, counts and metrics."""
        mixture, teacher = self.objective.teacher_mixture, None
        if self.teacher is not None and mixture is not None:
            with clock.phase("teacher"):
                teacher = self.teacher.as_teacher(batch, mixture)
        with clock.phase("forward"):
            outputs = self.policy(batch, with_entropy="entropy" in self.objective.needs, teacher=teacher)
            own = {name: column for name, column in outputs._asdict().items() if column is not None}
            loss, metrics = self.objective.loss({**batch.columns, **own}, step)
        with clock.phase("backward"):
            if backward:
                # FSDP averages gradients over the ranks; the objective's parts are meant to be added.
                (loss * self.world_size).backward()
            else:
                self.policy.release()
        if teacher is not None and self.teacher is not None:
            self.teacher.release()
        counts = {
            "num_tokens": batch.num_tokens,
            "num_logical_tokens": batch.num_logical_tokens,
            "num_micro_batches": 1,
        }
        counted = {name: torch.tensor(float(value), device=self.device) for name, value in counts.items()}
        return {**metrics, **counted, "loss": loss.detach()}

    def _learning_rate(self, step: int) -> float:
        return self.config.optimizer.learning_rate * self.config.optimizer.schedule.at(step)

    def _update(self, step: int, grad_norm: float) -> None:
        """Clips and applies the gradients; the fused kernel divides by `grad_scale` while it reads them."""
        excess = max(1.0, grad_norm / self.config.optimizer.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        fused = cast(Any, self.optimizer)  # the two attributes through which torch.amp speaks to the fused kernel
        fused.grad_scale = torch.tensor(excess, device=self.device) if excess > 1.0 else None
        fused.found_inf = torch.tensor(0.0, device=self.device) if excess > 1.0 else None
        self.optimizer.step()
        self.steps_done += 1


def _frozen_logprobs(policy: Policy, batch: MicroBatch) -> Tensor:
    """[1, N]"""
    logprobs = policy(batch).logprobs
    policy.release()
    return logprobs[None]


def _make_optimizer(config: LearnerConfig, policy: Policy) -> torch.optim.AdamW:
    """AdamW in one kernel; weight decay on matrices only, as norms and biases have no reason to shrink."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    settings = config.optimizer
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def _split_by_gradient(
    plan: BatchPlan, weights: Sequence[float], sequences: Sequence[TrainingSequence]
) -> tuple[list[TrainingSequence], list[TrainingSequence]]:
    """Sequences that move the weights, and those that are only measured: zero advantage or zero term weight.

    Groups whose answers all earned the same are common in RL; a forward pass is a third of the cost. When nothing
    moves the weights all count as the first kind, so that the optimizer still sees gradients (zeros). Where a term
    compares the members of a group, the group goes as its first moving member does.
    """
    moving = {
        plan.groups[i] if plan.whole_groups else i
        for i in (sequence.trajectory for sequence in sequences)
        if any(weight != 0.0 and term.moves[i] for weight, term in zip(weights, plan.terms, strict=True))
    }
    taught, measured = [], []
    for sequence in sequences:
        index = sequence.trajectory
        unit = plan.groups[index] if plan.whole_groups else index
        (taught if unit in moving else measured).append(sequence)
    return (taught, measured) if taught else (measured, taught)


def _why_not_finite(loss: float, grad_norm: float) -> str | None:
    if not math.isfinite(loss):
        return f"loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"gradient norm is {grad_norm}"
    return None


class _Clock:
    """Wall seconds by phase, summed over micro-batches."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
