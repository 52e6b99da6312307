"""LearnerWorker: the leader's loop over all ranks of the learner group, and one rank behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.config import WeightsConfig
from actors.engines.protocol import WeightUpdate
from actors.ports import BatchLease, LearnerReplayPort, PublishPort, ReportPort, RunFinished
from actors.weights import write_version
from learner.trainer import StepReport, Trainer
from rewards.codec import encode_group
from rewards.trajectory import Group, PolicyVersion, Source

MAX_KEPT_BATCHES = 8
"""Batches of skipped steps that are kept for inspection; the first ones say the most."""


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """A copy of the weights as they were after some step, which later steps do not touch.

    Attributes:
        tensors: Hugging Face (for adapters PEFT) names and whole tensors in host memory, in the engine's dtype.
        probe_logprobs: the learner's log-probs of `probe_token_ids` under these weights, nats.
    """

    tensors: tuple[tuple[str, Tensor], ...]
    dtype: str
    probe_token_ids: tuple[int, ...]
    probe_logprobs: tuple[float, ...]


class LearnerRank:
    """One rank: a Trainer whose calls run one after another in a thread of their own, so the event loop stays free.

    What was copied out of the trainer (weights to publish, state to save) is written by a second thread, beside the
    steps that follow.
    """

    def __init__(self, trainer: Trainer, weights_directory: Path, *, incarnation: int) -> None:
        self._trainer = trainer
        self._directory = weights_directory
        self._incarnation = incarnation
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer")
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._staged: StagedWeights | None = None
        self._saving: Future[Any] | None = None

    async def step(self, groups: Sequence[Group], step: int) -> StepReport:
        return await self._run(self._trainer.step, groups, step)

    async def stage_weights(self, dtype: str, probe_token_ids: tuple[int, ...]) -> None:
        """Copies the current weights for `write_version`; all ranks take part in gathering, rank 0 keeps the copy."""
        await self._run(self._stage_weights, dtype, probe_token_ids)

    async def write_version(self, version: PolicyVersion, step: int) -> WeightUpdate:
        """Writes what was staged last as a version, while the trainer may go on (rank 0 only)."""
        staged, self._staged = self._staged, None
        if staged is None:
            raise RuntimeError(f"rank {self._trainer.rank} has no staged weights for version {version}")
        return await asyncio.get_running_loop().run_in_executor(
            self._writer, self._write_version, staged, version, step
        )

    async def begin_save(self, folder: str) -> None:
        """Copies the state of this rank; it is written beside the steps that follow."""
        self._saving = await self._run(self._trainer.begin_save, Path(folder))

    async def finish_save(self) -> None:
        """Returns when this rank's part of the last `begin_save` is in its folder."""
        saving, self._saving = self._saving, None
        if saving is not None:
            await asyncio.wrap_future(saving)

    async def load(self, folder: str) -> None:
        await self._run(self._trainer.load, Path(folder))

    async def export(self, folder: str) -> None:
        """Writes a folder `transformers` and vLLM can load (rank 0 writes, all take part)."""
        await self._run(self._trainer.export, Path(folder))

    async def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._writer.shutdown(wait=True)

    def _stage_weights(self, dtype: str, probe_token_ids: tuple[int, ...]) -> None:
        probe = self._trainer.probe_logprobs(probe_token_ids)
        keep = self._trainer.rank == 0
        tensors = tuple(
            (name, tensor.detach().to("cpu", getattr(torch, dtype), copy=True))
            for name, tensor in self._trainer.named_weights()
            if keep
        )
        if keep:
            self._staged = StagedWeights(tensors, dtype, probe_token_ids, tuple(float(x) for x in probe))

    def _write_version(self, staged: StagedWeights, version: PolicyVersion, step: int) -> WeightUpdate:
        return write_version(
            staged.tensors,
            self._directory,
            version=version,
            step=step,
            incarnation=self._incarnation,
            dtype=staged.dtype,
            probe_token_ids=staged.probe_token_ids,
            probe_logprobs=staged.probe_logprobs,
            kind=self._trainer.weights_kind,
            adapter_config=self._trainer.adapter_config(),
        )

    async def _run(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


class RankPort(Protocol):
    """One rank of the learner group, wherever it runs; every call but `write_version` is made on all ranks together."""

    async def step(self, groups: Sequence[Group], step: int) -> StepReport: ...

    async def stage_weights(self, dtype: str, probe_token_ids: tuple[int, ...]) -> None: ...

    async def write_version(self, version: PolicyVersion, step: int) -> WeightUpdate:
        """What was staged last, by the first rank."""
        ...

    async def begin_save(self, folder: str) -> None: ...

    async def finish_save(self) -> None: ...

    async def load(self, folder: str) -> None: ...

    async def export(self, folder: str) -> None: ...


class CheckpointPort(Protocol):
    """Makes what the ranks saved durable together with everything else of the run."""

    async def begin(self, step: int) -> str:
        """A temporary folder for the checkpoint after `step` committed steps; returns its path."""
        ...

    async def complete(self, step: int, batches: Mapping[int, Sequence[str]], state: Mapping[str, Any]) -> None:
        """Adds manifest and digests and moves the folder to its final name. Then it is durable."""


@dataclass(frozen=True, slots=True)
class LearnerPorts:
    """Everything the leader talks to."""

    ranks: tuple[RankPort, ...]
    replay: LearnerReplayPort
    publish: PublishPort
    checkpoint: CheckpointPort
    report: ReportPort


@dataclass(frozen=True, slots=True)
class LearnerPlan:
    """How long and how often; all counts in optimizer steps."""

    num_steps: int
    weights: WeightsConfig
    weights_dtype: str
    probe_token_ids: tuple[int, ...]
    max_age: int
    max_skipped_steps: int
    checkpoint_every: int = 0
    max_minutes: float | None = None
    skipped_dir: Path | None = None
    """Where the first batches of skipped steps are kept; None keeps none."""


class TooManySkippedStepsError(RuntimeError):
    """Several steps in a row had NaN or infinite gradients."""


class LearnerWorker:
    """Leases a batch, steps on all ranks, commits, publishes. Knows nothing of Ray.

    Consumes leased batches; produces commits, weight versions and checkpoints; waits for a full batch; unblocked by
    rollout workers' puts (or by preloaded frozen groups).
    """

    def __init__(self, plan: LearnerPlan, ports: LearnerPorts) -> None:
        self._plan, self._ports = plan, ports
        self._step = 0
        self._published_step = self._durable_step = -1
        """Committed steps in the newest version and in the newest checkpoint."""
        self._sealed_steps = 0
        self._skipped_in_a_row = 0
        self._batches: dict[int, list[str]] = {}
        """Group ids trained at each step of the surviving history: the authority the replay cache reconciles to."""
        self._publishing: asyncio.Task[WeightUpdate] | None = None
        self._saving: asyncio.Task[None] | None = None
        """What is written beside the steps; at most one of each, so that a slow disk slows the run instead of filling
        the memory."""
        self._stop = asyncio.Event()

    @property
    def step(self) -> int:
        """Committed optimizer steps."""
        return self._step

    @property
    def batches(self) -> Mapping[int, Sequence[str]]:
        return self._batches

    async def restore(self, folder: str, step: int, batches: Mapping[int, Sequence[str]]) -> None:
        """Continues after `step` committed steps from what the ranks saved in `folder`."""
        await self._on_all_ranks("load", folder)
        self._step = self._durable_step = step
        self._published_step = -1
        self._batches = {int(k): list(v) for k, v in batches.items()}

    async def publish(self) -> WeightUpdate:
        """Writes the current weights as a new version and announces it."""
        await self._begin_publish()
        update = await self._published()
        assert update is not None
        return update

    async def _begin_publish(self) -> None:
        """Copies the weights; writing and announcing them goes on beside the next step."""
        plan, began = self._plan, time.monotonic()
        await self._published()
        await self._on_all_ranks("stage_weights", plan.weights_dtype, plan.probe_token_ids)
        self._published_step = self._step
        self._publishing = asyncio.create_task(self._write_and_announce(self._step))
        await self._ports.report.report("learner", {"publish_s": time.monotonic() - began}, step=self._step)

    async def _published(self) -> WeightUpdate | None:
        """The version in writing once it is out, or None when there is none; raises what went wrong with it."""
        publishing, self._publishing = self._publishing, None
        return None if publishing is None else await publishing

    async def _write_and_announce(self, step: int) -> WeightUpdate:
        began = time.monotonic()
        version = await self._ports.publish.issue_version(step)
        update = await self._ports.ranks[0].write_version(version, step)
        await self._ports.replay.announce_version(version, step)
        await self._ports.publish.publish(update)
        await self._report_writing("publish_write_s", began)
        return update

    async def request_stop(self) -> None:
        """Finish the step in flight, checkpoint, return."""
        self._stop.set()

    async def run(self) -> int:
        """Trains to the last step, the time limit or a stop request, publishes and saves what came out; returns the
        committed steps."""
        loop = asyncio.get_running_loop()
        ends_at = None if self._plan.max_minutes is None else loop.time() + 60.0 * self._plan.max_minutes
        try:
            while self._step < self._plan.num_steps and not self._stop.is_set():
                lease = await self._next_batch(None if ends_at is None else ends_at - loop.time())
                if lease is None:
                    break
                await self._train(lease)
            if self._published_step < self._step:
                await self._begin_publish()
            await self._published()
            await self._begin_checkpoint()
            await self._saved()
        finally:
            await self._settle_writing()
        if self._durable_step > self._sealed_steps:
            await self._seal(self._durable_step)  # the run it continues may have crashed before it did this
        return self._step

    async def _settle_writing(self) -> None:
        """Also after a fault: what is in writing was committed, so the run may go on from it."""
        unfinished: list[asyncio.Task[Any]] = [t for t in (self._publishing, self._saving) if t is not None]
        self._publishing = self._saving = None
        await asyncio.gather(*unfinished, return_exceptions=True)

    async def _next_batch(self, timeout_s: float | None) -> BatchLease | None:
        """The next batch, or None when the time was up, a stop was requested or the run finished while waiting."""
        if timeout_s is not None and timeout_s <= 0:
            return None
        leasing = asyncio.ensure_future(self._ports.replay.lease(self._step))
        stopping = asyncio.ensure_future(self._stop.wait())
        failing = asyncio.ensure_future(self._writing_failed())
        try:
            await asyncio.wait({leasing, stopping, failing}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                await self._published()
                await self._saved()
            return leasing.result() if leasing.done() else None
        except RunFinished:
            return None
        finally:
            for waiting in (leasing, stopping, failing):
                waiting.cancel()

    async def _writing_failed(self) -> None:
        """Returns only when something in writing failed: without its version no batch may ever come."""
        writing = {task for task in (self._publishing, self._saving) if task is not None}
        while writing:
            done, writing = await asyncio.wait(writing, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.cancelled() or task.exception() is not None for task in done):
                return
        await asyncio.Event().wait()

    async def _train(self, lease: BatchLease) -> None:
        plan, began = self._plan, time.monotonic()
        reports = await self._on_all_ranks("step", lease.groups, self._step)
        report: StepReport = reports[0]
        dropped: dict[str, str] = {}
        if report.skipped:
            dropped = {g.group_id: report.skip_reason or "skipped" for g in lease.groups}
            await self._report_skipped(lease, report)
        measured = {} if report.skipped else measured_of(lease, report)
        await self._ports.replay.commit(self._step, lease.lease_id, dropped=dropped, measured=measured)
        if report.members and not report.skipped:
            await self._ports.report.event("trained", _record_of(lease, report, self._step))
        self._batches[self._step] = [g.group_id for g in lease.groups if g.group_id not in dropped]
        self._step += 1
        train_s = time.monotonic() - began
        if self._step % plan.weights.publish_every == 0:
            await self._begin_publish()
        await self._ports.report.report("learner", self._measured(lease, report, train_s), step=self._step)
        self._count_skipped(report)
        if plan.checkpoint_every and self._step % plan.checkpoint_every == 0:
            await self._begin_checkpoint()

    async def _report_skipped(self, lease: BatchLease, report: StepReport) -> None:
        """Keeps the batch for inspection, unless there are enough of them, and tells where it is."""
        folder = None if self._plan.skipped_dir is None else self._plan.skipped_dir / f"step-{self._step:08d}"
        if folder is not None and not await asyncio.to_thread(_keep_batch, folder, lease.groups):
            folder = None
        details = {"step": self._step, "reason": report.skip_reason, "groups": [g.group_id for g in lease.groups]}
        await self._ports.report.event("step_skipped", {**details, "kept_in": None if folder is None else str(folder)})

    def _count_skipped(self, report: StepReport) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if report.skipped else 0
        if self._skipped_in_a_row > self._plan.max_skipped_steps:
            raise TooManySkippedStepsError(
                f"{self._skipped_in_a_row} steps in a row were skipped ({report.skip_reason}); the weights are still "
                f"those of step {self._step - self._skipped_in_a_row}. Lower the learning rate, or look at the batches "
                f"kept in {self._plan.skipped_dir}."
            )

    def _measured(self, lease: BatchLease, report: StepReport, train_s: float) -> dict[str, float]:
        live = [t for g in lease.groups for t in g.trajectories if t.source is Source.LIVE]
        scores = [t.score for t in live if t.score is not None]
        ages = list(lease.ages.values())
        values = {
            "step": float(self._step),
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "skipped_steps": float(report.skipped),
            "resets": float(report.reset),
            "lease_wait_s": lease.waited_s,
            "train_s": train_s,
            "trained_tokens": float(report.num_trained_tokens),
            "computed_tokens": float(report.num_tokens),
            "model_flop": report.num_flop,
            "age_violations": float(sum(age > self._plan.max_age for age in ages)),
            "shortfall_groups": float(sum(lease.shortfall.values())),
        }
        if scores:
            values["reward_mean"] = sum(scores) / len(scores)
            values["answer_tokens_mean"] = sum(t.num_sampled_tokens for t in live) / len(live)
        if ages:
            values["policy_age_mean"] = sum(ages) / len(ages)
            values["policy_age_max"] = float(max(ages))
        for age in ages:
            values[f"policy_age/{age}"] = values.get(f"policy_age/{age}", 0.0) + 1.0
        for label, metrics in report.terms.items():
            values |= {f"term/{label}/{name}": value for name, value in metrics.items()}
        values |= {f"train_phase/{phase}_s": seconds for phase, seconds in report.seconds.items()}
        return values

    async def _begin_checkpoint(self) -> None:
        """Copies everything up to the current step; it becomes durable beside the steps that follow."""
        began = time.monotonic()
        await self._saved()
        if self._durable_step < self._step:
            folder = await self._ports.checkpoint.begin(self._step)
            await self._on_all_ranks("begin_save", folder)
            self._saving = asyncio.create_task(self._finish_checkpoint(self._step, dict(self._batches)))
        await self._ports.report.report("learner", {"checkpoint_s": time.monotonic() - began}, step=self._step)

    async def _saved(self) -> None:
        """Returns when no checkpoint is in writing; raises what went wrong with it."""
        saving, self._saving = self._saving, None
        if saving is not None:
            await saving

    async def _finish_checkpoint(self, step: int, batches: Mapping[int, Sequence[str]]) -> None:
        """Makes the checkpoint durable, then the replay cache may forget what it covers."""
        began = time.monotonic()
        await self._on_all_ranks("finish_save")
        await self._ports.checkpoint.complete(step, batches, {"step": step})
        self._durable_step = step
        await self._seal(step)
        await self._report_writing("checkpoint_write_s", began)

    async def _report_writing(self, name: str, began: float) -> None:
        """At the current step: a number of an earlier one would read as if the learner had gone back to it."""
        await self._ports.report.report("learner", {name: time.monotonic() - began}, step=self._step)

    async def _seal(self, steps: int) -> None:
        await self._ports.replay.seal(steps - 1)
        self._sealed_steps = steps

    async def export(self, folder: str) -> None:
        await self._on_all_ranks("export", folder)

    async def _on_all_ranks(self, method: str, *args: Any) -> list[Any]:
        """One collective call on every rank; the first failure is raised and the group must be rebuilt."""
        return await asyncio.gather(*(getattr(rank, method)(*args) for rank in self._ports.ranks))


def _record_of(lease: BatchLease, report: StepReport, step: int) -> dict[str, Any]:
    """Trained tokens, mean ratio and clipped share of each member, by group; null where there is no such number."""
    members = iter(report.members)
    groups = {group.group_id: [next(members, None) for _ in group.trajectories] for group in lease.groups}
    return {
        "step": step,
        "groups": {
            name: [[m.num_tokens, _rounded(m.ratio), _rounded(m.clipped)] for m in records if m is not None]
            for name, records in groups.items()
        },
    }


def measured_of(lease: BatchLease, report: StepReport) -> dict[str, dict[str, float]]:
    """What prioritised tables draw by: of each group mean |ratio - 1| and clipped share, weighted by trained tokens."""
    members, measured = iter(report.members), {}
    for group in lease.groups:
        records = [record for _ in group.trajectories if (record := next(members, None)) is not None]
        values = {
            "ratio": _mean((r.num_tokens, abs(r.ratio - 1)) for r in records if r.ratio is not None),
            "clipped": _mean((r.num_tokens, r.clipped) for r in records if r.clipped is not None),
        }
        known = {name: value for name, value in values.items() if value is not None}
        if known:
            measured[group.group_id] = known
    return measured


def _mean(weighted: Iterable[tuple[int, float]]) -> float | None:
    pairs = list(weighted)
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _keep_batch(folder: Path, groups: Sequence[Group]) -> bool:
    """One block of `rewards.codec` per group; False when enough batches are kept already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() or len(list(folder.parent.iterdir())) >= MAX_KEPT_BATCHES:
        return False
    folder.mkdir()
    for index, group in enumerate(groups):
        (folder / f"{index:04d}.group").write_bytes(encode_group(group))
    return True
