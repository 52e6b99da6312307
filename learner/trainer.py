"""One rank of the learner group: groups in, one optimizer step, weights out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from learner import checkpoint, export
from learner.advantages import Float64Array
from learner.batch import Columns, MicroBatch, TrainingSequence, training_sequences
from learner.companions.config import CriticConfig
from learner.companions.critic import CriticPlan, load_critic, with_token_advantages
from learner.companions.critic_learner import CriticLearner, measure_gaps
from learner.config import LearnerConfig, Term
from learner.members import MemberRecord, member_records, member_sums
from learner.objective import BatchPlan, Objective, is_maximum, join_metrics
from learner.optimizer import apply_gradients, make_optimizer, why_not_finite
from learner.policy import Policy, TokenOutputs
from learner.ratios import MAX_LOG_RATIO
from learner.returns import episodes
from learner.sharding import add_over_ranks, init_ranks, rank_device, reduce_over_ranks, shard_policy, total_grad_norm
from learner.statistics import MEASURES, statistic_columns
from learner.update import Place, Update
from rewards.trajectory import Float32Array, Group

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did, over all ranks.

    Attributes:
        step: 0-based learner step.
        loss: weighted sum of the terms.
        terms: per term label, numbers to read (see `Objective.report`); those of the critic under "critic".
        grad_norm: global 2-norm before clipping.
        skipped: the optimizer was left alone; `skip_reason` says why.
        reset: the step began with a reset of reference or optimizer (`ResetConfig`).
        num_tokens: tokens the model computed; `num_logical_tokens`: tokens of all trained sequences, each counted
            alone; `num_trained_tokens`: tokens with a loss.
        num_flop: arithmetic of the weights on `num_tokens`, see `flop_per_token`.
        num_micro_batches: forward and backward passes of each rank.
        shared_prefixes: common prefixes were computed once.
        members: of each trajectory, groups and members in order; empty when nothing was trained.
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
    num_flop: float = 0.0
    num_micro_batches: int = 0
    shared_prefixes: bool = True
    members: tuple[MemberRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def flop_per_token(module: torch.nn.Module) -> float:
    """Multiplications and additions a training token costs: 2 per weight forward, 2 for the gradient of its input, and
    2 for its own where it is trained. Attention, a frozen reference and what is computed twice add to it.

    Source: the 6 N of arXiv:2001.08361, section 2.1.
    """
    return float(sum((6 if weight.requires_grad else 4) * weight.numel() for weight in module.parameters()))


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
            companions: folders of the other models, "reference", "teacher" and "critic"; `model_path` where one is not
                named.

        Raises:
            ValueError: a term needs something this trainer cannot supply.
        """
        self.config, self.rank, self.world_size = config, rank, world_size
        self.objective, self._terms = Objective(terms), tuple(terms)
        missing = self.objective.needs - config.supplies
        if missing:
            raise ValueError(
                f"the terms need {sorted(missing)}, which a learner with these settings cannot supply: name the model "
                "they come from (learner.teacher for teacher_logprobs and divergence, learner.critic for values), or "
                "drop those terms"
            )
        own_critic = config.critic if "values" in self.objective.needs else None
        self._kl_in_reward = own_critic.kl_in_reward if own_critic is not None else 0.0
        self._reads_gaps = own_critic is not None and own_critic.target == "conservative"
        of_critic = own_critic is not None and own_critic.reads_reference
        self._reads_reference = "reference_logprobs" in self.objective.needs or of_critic
        self.device = rank_device(rank)
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads_per_rank)
        init_ranks(rank, world_size, init_method)
        torch.manual_seed(config.seed)
        self._model_path, self._companions = Path(model_path), dict(companions or {})
        dtype = torch.bfloat16 if config.compute_dtype == "bfloat16" else torch.float32
        self._place = Place(rank, world_size, self.device, dtype)
        self._temperature = temperature or 1.0
        self.policy = self._make_policy(self._model_path, trained=True)
        self._flop_per_token = flop_per_token(self.policy)
        self.reference = self._make_reference()
        """The frozen copy, unless nobody reads it or the weights below the adapters are it."""
        reads_teacher = self.objective.needs & {"teacher_logprobs", "divergence"}
        self.teacher = self._make_policy(self._companion("teacher"), trained=False) if reads_teacher else None
        self.critic = self._make_critic(own_critic) if own_critic is not None else None
        self.optimizer = make_optimizer(config.optimizer, self.policy)
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
        update = Update(self.config, self._place, plan, sequences)
        plan, columns, critic_plan = self._prepare(groups, plan, update, step, clock)
        totals = self._accumulate(plan, update, columns, step, clock)
        of_critic: dict[str, float] = {}
        if self.critic is not None and critic_plan is not None:
            with clock.phase("critic"):
                of_critic = self.critic.accumulate(update, critic_plan, groups)
        with clock.phase("optimizer"):
            totals["grad_norm"] = torch.tensor(total_grad_norm(self._trained_parameters()))
            reason = self._apply(totals, of_critic, step)
        report = self._report(plan, totals, step, clock, reason)
        if reason is None:
            self.objective.controls.observe(report.terms)
        if critic_plan is None:
            return report
        return replace(report, terms={**report.terms, "critic": {**critic_plan.report, **of_critic}})

    def _apply(self, totals: Mapping[str, Tensor], of_critic: Mapping[str, float], step: int) -> str | None:
        """The optimizer steps of policy and critic: both, or none and why."""
        grad_norm = float(totals["grad_norm"])
        reason = why_not_finite(float(totals["loss"]), grad_norm)
        if reason is None and self.critic is not None:
            reason = self.critic.why_not(of_critic)
        if reason is None:
            settings = self.config.optimizer
            apply_gradients(
                self.optimizer,
                learning_rate=self._learning_rate(step),
                grad_norm=grad_norm,
                max_grad_norm=settings.max_grad_norm,
            )
            if self.critic is not None:
                self.critic.apply(of_critic, step)
            self.steps_done += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.critic is not None:
            self.critic.optimizer.zero_grad(set_to_none=True)
        return reason

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
            num_flop=total("num_tokens") * self._flop_per_token,
            num_micro_batches=int(total("num_micro_batches")) // self.world_size,
            shared_prefixes=bool(total("shared_prefixes")),
            members=member_records(totals["members"], self._terms) if "members" in totals else (),
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
        policy = Policy.load(folder, **self._model_options(trained)).to(self.device)
        if not trained:
            policy.requires_grad_(False)
        return self._ready(policy, trained=trained)

    def _make_critic(self, config: CriticConfig) -> CriticLearner:
        critic = load_critic(config, self._companion("critic"), **self._model_options(True)).to(self.device)
        critic = self._ready(critic, trained=True)
        return CriticLearner(config, self.config.optimizer, critic, world_size=self.world_size)

    def _model_options(self, trained: bool) -> dict[str, Any]:
        return {
            "temperature": self._temperature,
            "chunk_tokens": self.config.logprob_chunk_tokens,
            "compute_dtype": self._place.dtype,
            "lora": self.config.lora if trained else None,
        }

    def _ready(self, policy: AnyPolicy, *, trained: bool) -> AnyPolicy:
        if trained and self.config.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            policy.model.train()
        return shard_policy(policy, self.world_size)

    def _companion(self, role: str) -> Path:
        return self._companions.get(role, self._model_path)

    def _make_reference(self) -> Policy | None:
        below_adapters = self.config.lora is not None and "reference" not in self._companions
        if not self._reads_reference or below_adapters:
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

    def _prepare(
        self, groups: Sequence[Group], plan: BatchPlan, update: Update, step: int, clock: _Clock
    ) -> tuple[BatchPlan, Columns, CriticPlan | None]:
        """What frozen models, the critic and a first pass say of the update, before anything moves: the plan with
        advantages of single tokens, the columns of the objective, and what the critic learns; collective."""
        trajectories = [t for group in groups for t in group.trajectories]
        behavior = [t.behavior_logprobs for t in trajectories]
        needs, columns = self.objective.needs, dict[str, Sequence[Float32Array]]()
        if "behavior_logprobs" in needs:
            columns["behavior_logprobs"] = behavior
        if self._reads_reference:
            with clock.phase("reference"):
                columns["reference_logprobs"] = plan.spread(update.measure(1, self._reference_logprobs)[0])
        if self.teacher is not None and "teacher_logprobs" in needs:
            with clock.phase("teacher"):
                evaluate = partial(_frozen_logprobs, self.teacher)
                columns["teacher_logprobs"] = plan.spread(update.measure(1, evaluate)[0])
        first: dict[str, Float64Array] = {}
        if self.objective.has_statistics or self._reads_ratios or self._reads_gaps:
            with clock.phase("first_pass"):
                first = self._first_pass(update)
        critic_plan = None
        if self.critic is not None:
            with clock.phase("critic"):
                values = plan.spread(update.measure(1, self.critic.values)[0])
            source = partial(
                episodes,
                scores=[t.score for t in trajectories],
                values=values,
                ratios=_ratios(plan.spread(first["logprobs"]), behavior) if self._reads_ratios else None,
                token_rewards=self._kl_rewards(behavior, columns),
                gaps=self._gaps(plan, update, first["logprobs"]) if self._reads_gaps else None,
            )
            plan = with_token_advantages(self._terms, plan, source)
            critic_plan = self.critic.plan(self._terms, plan, source)
        if self.objective.has_statistics:
            reference = columns.get("reference_logprobs")
            columns |= statistic_columns(self._terms, plan, behavior, first, step, reference)
        return plan, {**plan.columns, **columns}, critic_plan

    def _gaps(
        self, plan: BatchPlan, update: Update, taken: Float64Array
    ) -> tuple[Sequence[Float32Array], Sequence[Float32Array]]:
        """[T] per trajectory, taken and greedy, see `Episode`; collective."""
        largest, greedy = update.measure(2, partial(measure_gaps, self.policy, self.reference))
        return plan.spread(taken - largest), plan.spread(greedy)

    def _kl_rewards(
        self, behavior: Sequence[Float32Array], columns: Mapping[str, Sequence[Float32Array]]
    ) -> list[Float32Array] | None:
        """[T] per trajectory, what each token pays for its distance to the reference."""
        if self._kl_in_reward == 0:
            return None
        pairs = zip(behavior, columns["reference_logprobs"], strict=True)
        return [-np.float32(self._kl_in_reward) * (sampling - reference) for sampling, reference in pairs]

    @property
    def _reads_ratios(self) -> bool:
        """Whether values are corrected for the step from the sampling policy."""
        own = self.critic is not None and self.critic.config.target == "v_trace"
        return own or any(term.advantage == "v_trace" for term in self._terms)

    def _accumulate(
        self, plan: BatchPlan, update: Update, columns: Columns, step: int, clock: _Clock
    ) -> dict[str, Tensor]:
        """Gradients of the whole batch; returns loss, token counts and metrics summed over micro-batches and ranks."""
        taught, measured = _split_by_gradient(plan, self.objective.weights(step), update.sequences)
        parts = []
        for part, backward in ((taught, True), (measured, False)):
            for chunk in update.chunks(part):
                with clock.phase("collate"):
                    batch = update.collate(chunk, columns)
                with torch.set_grad_enabled(backward):
                    parts.append(self._pass(batch, step, clock, len(plan.trained), backward=backward))
        joined = join_metrics(parts)
        members = add_over_ranks(joined.pop("members"), self.world_size)
        totals = reduce_over_ranks(joined, is_maximum=is_maximum, world_size=self.world_size)
        return {**totals, "members": members, "shared_prefixes": torch.tensor(float(update.shares_prefixes))}

    def _first_pass(self, update: Update) -> dict[str, Float64Array]:
        """MEASURES of all trained tokens at the start of the update, [num_trained_tokens] each; collective."""
        floor = self.objective.vocabulary_floor
        names = MEASURES[:1] if floor is None else MEASURES

        def evaluate(batch: MicroBatch) -> Tensor:
            outputs: TokenOutputs = self.policy(batch, vocabulary_floor=floor)
            self.policy.release()
            logprobs = outputs.logprobs[None]
            return logprobs if outputs.measures is None else torch.cat([logprobs, outputs.measures])

        return dict(zip(names, update.measure(len(names), evaluate), strict=True))

    def _reference_logprobs(self, batch: MicroBatch) -> Tensor:
        if self.reference is not None:
            return _frozen_logprobs(self.reference, batch)
        with self.policy.without_adapter():
            return _frozen_logprobs(self.policy, batch)

    def _pass(
        self, batch: MicroBatch, step: int, clock: _Clock, num_members: int, *, backward: bool
    ) -> dict[str, Tensor]:
        """One micro-batch forward and, if asked, backward; its loss, counts, metrics and `member_sums`."""
        mixture, teacher = self.objective.teacher_mixture, None
        if self.teacher is not None and mixture is not None:
            with clock.phase("teacher"):
                teacher = self.teacher.as_teacher(batch, mixture)
        with clock.phase("forward"):
            outputs = self.policy(batch, with_entropy="entropy" in self.objective.needs, teacher=teacher)
            own = {name: column for name, column in outputs._asdict().items() if column is not None}
            columns = {**batch.columns, **own}
            loss, metrics = self.objective.loss(columns, step)
            labelled = list(zip(self.objective.labels, self._terms, strict=True))
            metrics["members"] = member_sums(columns, labelled, num_members)
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


def _frozen_logprobs(policy: Policy, batch: MicroBatch) -> Tensor:
    """[1, N]"""
    logprobs = policy(batch).logprobs
    policy.release()
    return logprobs[None]


def _ratios(logprobs: Sequence[Float32Array], behavior: Sequence[Float32Array]) -> list[Float32Array]:
    return [
        np.exp(np.clip(current - sampling, -MAX_LOG_RATIO, MAX_LOG_RATIO))
        for current, sampling in zip(logprobs, behavior, strict=True)
    ]


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


class _Clock:
    """Wall seconds by phase, summed over micro-batches."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
