"""LearnerWorker: the leader's loop over all ranks of the learner group, and one rank behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.config import WeightsConfig
from actors.engines.protocol import WeightUpdate
from actors.ports import BatchLease, LearnerReplayPort, PublishPort, ReportPort, RunFinished
from actors.weights import write_version
from learner.trainer import StepReport, Trainer
from rewards.codec import encode_group
from rewards.trajectory import Group, PolicyVersion, Source

MAX_KEPT_BATCHES = 8
"""Batches of skipped steps that are kept for inspection; the first ones say the most."""


class LearnerRank:
    """One rank: a Trainer whose calls run one after another in a thread of their own, so the event loop stays free."""

    def __init__(self, trainer: Trainer, weights_directory: Path, *, incarnation: int) -> None:
        self._trainer = trainer
        self._directory = weights_directory
        self._incarnation = incarnation
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trainer")

    async def step(self, groups: Sequence[Group], step: int) -> StepReport:
        return await self._run(self._trainer.step, groups, step)

    async def write_version(
        self, version: PolicyVersion, step: int, dtype: str, probe_token_ids: tuple[int, ...]
    ) -> WeightUpdate | None:
        """All ranks take part in gathering; only rank 0 writes and returns the update."""
        return await self._run(self._write_version, version, step, dtype, probe_token_ids)

    async def save(self, folder: str) -> None:
        await self._run(self._trainer.save, Path(folder))

    async def load(self, folder: str) -> None:
        await self._run(self._trainer.load, Path(folder))

    async def export(self, folder: str) -> None:
        """Writes a folder `transformers` and vLLM can load (rank 0 writes, all take part)."""
        await self._run(self._trainer.export, Path(folder))

    async def close(self) -> None:
        self._thread.shutdown(wait=True)

    def _write_version(
        self, version: PolicyVersion, step: int, dtype: str, probe_token_ids: tuple[int, ...]
    ) -> WeightUpdate | None:
        probe = self._trainer.probe_logprobs(probe_token_ids)
        tensors = self._trainer.named_weights()
        if self._trainer.rank != 0:
            for _ in tensors:
                pass
            return None
        return write_version(
            tensors,
            self._directory,
            version=version,
            step=step,
            incarnation=self._incarnation,
            dtype=dtype,
            probe_token_ids=probe_token_ids,
            probe_logprobs=tuple(float(x) for x in probe),
            kind=self._trainer.weights_kind,
            adapter_config=self._trainer.adapter_config(),
        )

    async def _run(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


class RankPort(Protocol):
    """One rank of the learner group, wherever it runs; every call is made on all ranks together."""

    async def step(self, groups: Sequence[Group], step: int) -> StepReport: ...

    async def write_version(
        self, version: PolicyVersion, step: int, dtype: str, probe_token_ids: tuple[int, ...]
    ) -> WeightUpdate | None: ...

    async def save(self, folder: str) -> None: ...

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
        self._skipped_in_a_row = 0
        self._batches: dict[int, list[str]] = {}
        """Group ids trained at each step of the surviving history: the authority the replay cache reconciles to."""
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
        plan, began = self._plan, time.monotonic()
        version = await self._ports.publish.issue_version(self._step)
        updates = await self._on_all_ranks(
            "write_version", version, self._step, plan.weights_dtype, plan.probe_token_ids
        )
        update = next(u for u in updates if u is not None)
        await self._ports.replay.announce_version(version, self._step)
        await self._ports.publish.publish(update)
        self._published_step = self._step
        await self._ports.report.report("learner", {"publish_s": time.monotonic() - began}, step=self._step)
        return update

    async def request_stop(self) -> None:
        """Finish the step in flight, checkpoint, return."""
        self._stop.set()

    async def run(self) -> int:
        """Trains to the last step, the time limit or a stop request, publishes and saves what came out; returns the
        committed steps."""
        loop = asyncio.get_running_loop()
        ends_at = None if self._plan.max_minutes is None else loop.time() + 60.0 * self._plan.max_minutes
        while self._step < self._plan.num_steps and not self._stop.is_set():
            lease = await self._next_batch(None if ends_at is None else ends_at - loop.time())
            if lease is None:
                break
            await self._train(lease)
        if self._published_step < self._step:
            await self.publish()
        await self._checkpoint()
        return self._step

    async def _next_batch(self, timeout_s: float | None) -> BatchLease | None:
        """The next batch, or None when the time was up, a stop was requested or the run finished while waiting."""
        if timeout_s is not None and timeout_s <= 0:
            return None
        leasing = asyncio.ensure_future(self._ports.replay.lease(self._step))
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({leasing, stopping}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return leasing.result() if leasing.done() else None
        except RunFinished:
            return None
        finally:
            leasing.cancel()
            stopping.cancel()

    async def _train(self, lease: BatchLease) -> None:
        plan, began = self._plan, time.monotonic()
        reports = await self._on_all_ranks("step", lease.groups, self._step)
        report: StepReport = reports[0]
        dropped: dict[str, str] = {}
        if report.skipped:
            dropped = {g.group_id: report.skip_reason or "skipped" for g in lease.groups}
            await self._report_skipped(lease, report)
        await self._ports.replay.commit(self._step, lease.lease_id, dropped=dropped)
        self._batches[self._step] = [g.group_id for g in lease.groups if g.group_id not in dropped]
        self._step += 1
        train_s = time.monotonic() - began
        if self._step % plan.weights.publish_every == 0:
            await self.publish()
        await self._ports.report.report("learner", self._measured(lease, report, train_s), step=self._step)
        self._count_skipped(report)
        if plan.checkpoint_every and self._step % plan.checkpoint_every == 0:
            await self._checkpoint()

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
            "lease_wait_s": lease.waited_s,
            "train_s": train_s,
            "trained_tokens": float(report.num_trained_tokens),
            "computed_tokens": float(report.num_tokens),
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

    async def _checkpoint(self) -> None:
        """Everything up to the current step becomes durable, then the replay cache may forget what it covers."""
        if self._durable_step < self._step:
            began = time.monotonic()
            folder = await self._ports.checkpoint.begin(self._step)
            await self._on_all_ranks("save", folder)
            await self._ports.checkpoint.complete(self._step, self._batches, {"step": self._step})
            self._durable_step = self._step
            await self._ports.report.report("learner", {"checkpoint_s": time.monotonic() - began}, step=self._step)
        if self._step > 0:
            await self._ports.replay.seal(self._step - 1)

    async def export(self, folder: str) -> None:
        await self._on_all_ranks("export", folder)

    async def _on_all_ranks(self, method: str, *args: Any) -> list[Any]:
        """One collective call on every rank; the first failure is raised and the group must be rebuilt."""
        return await asyncio.gather(*(getattr(rank, method)(*args) for rank in self._ports.ranks))


def _keep_batch(folder: Path, groups: Sequence[Group]) -> bool:
    """One block of `rewards.codec` per group; False when enough batches are kept already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() or len(list(folder.parent.iterdir())) >= MAX_KEPT_BATCHES:
        return False
    folder.mkdir()
    for index, group in enumerate(groups):
        (folder / f"{index:04d}.group").write_bytes(encode_group(group))
    return True
