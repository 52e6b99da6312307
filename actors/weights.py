"""Weights on their way from the learner to the engines: write, store, activate, probe."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engines.protocol import Engine, EngineError, WeightUpdate
from actors.ports import StaleEpochError
from actors.replay.log import Journal, read_journal
from actors.transports.shared_memory import (
    CorruptVersionError,
    Manifest,
    ReadLease,
    VersionGoneError,
    delete_unless_read,
    read_manifest,
    verify_folder,
    version_folders,
    write_folder,
)
from rewards.trajectory import PolicyVersion

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ActivationReport",
    "CorruptVersionError",
    "ProbeFailedError",
    "ReadLease",
    "VersionGoneError",
    "WeightStore",
    "activate",
    "verify_version",
    "write_version",
]


class ProbeFailedError(EngineError):
    """An engine does not compute what the weights it claims to run would: its worker is quarantined."""


def write_version(
    named_tensors: Iterable[tuple[str, Tensor]],
    directory: Path,
    *,
    version: PolicyVersion,
    step: int,
    incarnation: int,
    dtype: str,
    probe_token_ids: Sequence[int],
    probe_logprobs: Sequence[float],
    kind: str = "full",
    adapter_config: Mapping[str, Any] | None = None,
) -> WeightUpdate:
    """Writes an immutable, checksummed version folder, one tensor at a time.

    Args:
        named_tensors: Hugging Face (for adapters PEFT) names and whole tensors; a tied head left out.
        dtype: what the tensors are cast to, the engine's dtype.
        probe_token_ids, probe_logprobs: a fixed sequence and the learner's log-probs of it, [T] each, first NaN.
        adapter_config: contents of PEFT's adapter_config.json, for kind="adapter".

    Raises:
        ValueError: probe of two lengths, unknown dtype or kind, adapter without configuration, no tensors.
        FileExistsError: the version exists.
    """
    if len(probe_token_ids) != len(probe_logprobs):
        raise ValueError(f"probe has {len(probe_token_ids)} tokens but {len(probe_logprobs)} log-probs")
    folder, manifest = write_folder(
        named_tensors,
        Path(directory),
        version=version,
        step=step,
        incarnation=incarnation,
        dtype=dtype,
        kind=kind,
        adapter_config=adapter_config,
    )
    return WeightUpdate(
        version=version,
        step=step,
        incarnation=incarnation,
        path=str(folder),
        digest=manifest.digest,
        kind=kind,
        probe_token_ids=tuple(int(token) for token in probe_token_ids),
        probe_logprobs=tuple(float(value) for value in probe_logprobs),
    )


def verify_version(path: str | Path, digest: str | None = None) -> Manifest:
    """Compares every byte of a version with its manifest, and the manifest with `digest` when given.

    Raises:
        CorruptVersionError: names what differs.
        VersionGoneError: the folder is not there.
    """
    return verify_folder(Path(path), digest)


class WeightStore:
    """Issues versions, announces the newest, deletes old ones nobody reads. Implements WeightPort and PublishPort.

    What was issued and published is on disk before it is answered, so a restarted store never reuses a version and
    knows the newest one again.

    Args:
        directory: where version folders lie.
        state_dir: durable folder of the store's log.
        keep_versions: newest versions that stay; older ones go as soon as no ReadLease holds them.
    """

    def __init__(self, directory: Path, *, state_dir: Path, keep_versions: int) -> None:
        self._directory, self._keep = Path(directory), keep_versions
        self._log = _VersionLog(Path(state_dir))
        self._newest = self._recovered_newest()
        self._delete_strangers()
        self._changed = asyncio.Condition()

    async def issue_version(self, step: int) -> PolicyVersion:
        """A number above every one issued before, in this and any earlier life of the run."""
        return self._log.issue(step)

    async def publish(self, update: WeightUpdate) -> None:
        """Announces a written version. Repeating it is a no-op.

        Published versions that contain more steps than this one are no longer in its history (the learner went back
        to a checkpoint): they are recorded as abandoned.

        Raises:
            ValueError: never issued, or published before with other bytes.
            StaleEpochError: a newer version is out; the caller has been replaced.
        """
        known = self._log.published.get(update.version)
        if known is not None and known.digest != update.digest:
            raise ValueError(f"version {update.version} was published with other bytes; issue a new version")
        if known is not None:
            return
        if update.version not in self._log.issued:
            raise ValueError(f"version {update.version} was never issued by this store; ask issue_version first")
        newest = self._log.newest
        if newest is not None and update.version < newest.version:
            raise StaleEpochError(
                f"version {update.version} (incarnation {update.incarnation}) comes after {newest.version} "
                f"(incarnation {newest.incarnation}) was published: not announced"
            )
        self._log.publish(update)
        async with self._changed:
            self._newest = update
            self._changed.notify_all()
        await asyncio.to_thread(self._delete_old)

    async def newest(self) -> WeightUpdate | None:
        return self._newest

    async def wait_newer(self, version: PolicyVersion, timeout_s: float) -> WeightUpdate | None:
        """The newest update above `version`, or None after the timeout."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._newest is not None and self._newest.version > version)
        except TimeoutError:
            return None
        return self._newest

    async def abandoned(self) -> frozenset[PolicyVersion]:
        """Versions a rollback has removed from the surviving history."""
        return frozenset(self._log.abandoned)

    def _recovered_newest(self) -> WeightUpdate | None:
        """The newest published version whose folder is still complete; the learner republishes otherwise."""
        update = self._log.newest
        if update is None:
            return None
        try:
            manifest = read_manifest(Path(update.path))
        except (VersionGoneError, CorruptVersionError):
            return None
        return update if manifest.digest == update.digest else None

    def _delete_old(self) -> None:
        """Also removes what was written but never announced."""
        kept = sorted(self._log.published)[-self._keep :]
        for version, folder in version_folders(self._directory).items():
            if version < kept[0]:
                delete_unless_read(folder, keep_memory=True)

    def _delete_strangers(self) -> None:
        """Folders of an earlier run that used this directory and did not clean up: their numbers will come again."""
        for version, folder in version_folders(self._directory).items():
            if version not in self._log.issued:
                delete_unless_read(folder)


@dataclass(frozen=True, slots=True)
class _Published:
    step: int
    digest: str


class _VersionLog:
    """Journal of issued, published and abandoned versions; what is on disk has happened."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "versions.jsonl"
        self.issued: set[PolicyVersion] = set()
        self.published: dict[PolicyVersion, _Published] = {}
        self.abandoned: set[PolicyVersion] = set()
        self.newest: WeightUpdate | None = None
        """What was published last, whether or not its folder is still there."""
        for event, _ in read_journal(path):
            self._apply(event)
        self._journal = Journal(path)

    def issue(self, step: int) -> PolicyVersion:
        version = PolicyVersion(max(self.issued, default=-1) + 1)
        self._record({"event": "issued", "version": version, "step": step})
        return version

    def publish(self, update: WeightUpdate) -> None:
        gone = sorted(v for v, p in self.published.items() if p.step > update.step and v not in self.abandoned)
        self._record({"event": "published", "update": asdict(update), "abandons": gone})

    def _record(self, event: Mapping[str, Any]) -> None:
        self._journal.append(event, durable=True)
        self._apply(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "issued":
                self.issued.add(PolicyVersion(event["version"]))
            case "published":
                self.newest = _update_from_json(event["update"])
                self.published[self.newest.version] = _Published(self.newest.step, self.newest.digest)
                self.abandoned.update(PolicyVersion(v) for v in event["abandons"])


def _update_from_json(values: Mapping[str, Any]) -> WeightUpdate:
    update = WeightUpdate(**values)
    return replace(update, probe_token_ids=tuple(update.probe_token_ids), probe_logprobs=tuple(update.probe_logprobs))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationReport:
    """One verified change of weights in one engine.

    Attributes:
        pause_s: seconds running requests stood still or were withheld, all phases below except `verify_s`.
        verify_s: reading the files against their checksums, before anything is paused.
        freeze_s, load_s, reset_s, probe_s: the phases of the pause.
        probe_mean_error, probe_max_error: |engine - learner| in nats over the probe; None without a probe.
    """

    version: PolicyVersion
    step: int
    pause_s: float
    verify_s: float
    freeze_s: float
    load_s: float
    reset_s: float
    probe_s: float
    probe_mean_error: float | None
    probe_max_error: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def activate(engine: Engine, update: WeightUpdate, *, tolerance: float, clear_cache: bool) -> ActivationReport:
    """Changes an engine's weights: verify, pause, load, reset caches, label, probe, resume.

    The probe runs before `resume`: an engine that must run requests to score holds back what they produce until then,
    so nothing sampled under weights that were not verified leaves it. After any failure the engine stays paused and
    must be closed.

    Args:
        tolerance: largest mean |engine - learner| log-prob error of the probe, in nats.
        clear_cache: True re-prefills running sequences under the new weights; False lets them keep their state.

    Raises:
        ProbeFailedError: the engine does not run these weights, or kept state of older ones.
        CorruptVersionError, VersionGoneError: the files are damaged or deleted; the engine was not touched.
        EngineError: the engine failed while loading.
    """
    clock = _PhaseClock()
    if update.digest:
        await asyncio.to_thread(verify_version, update.path, update.digest)
    verify_s = clock.lap()
    await engine.pause()
    freeze_s = clock.lap()
    await engine.load_weights(update)
    load_s = clock.lap()
    if not await engine.reset_prefix_cache(recompute_running=clear_cache):
        raise ProbeFailedError(
            f"version {update.version}: the engine could not reset its prefix cache, so prompts would be continued "
            "from state of older weights. The worker must be restarted."
        )
    reset_s = clock.lap()
    await engine.set_version(update.version)
    mean_error, max_error = await _probe(engine, update, tolerance)
    probe_s = clock.lap()
    await engine.resume()
    return ActivationReport(
        version=update.version,
        step=update.step,
        pause_s=clock.total() - verify_s,
        verify_s=verify_s,
        freeze_s=freeze_s,
        load_s=load_s,
        reset_s=reset_s,
        probe_s=probe_s,
        probe_mean_error=mean_error,
        probe_max_error=max_error,
    )


async def _probe(engine: Engine, update: WeightUpdate, tolerance: float) -> tuple[float | None, float | None]:
    """Mean and largest |engine - learner| log-prob of the probe sequence.

    Raises:
        ProbeFailedError: the mean is above the tolerance or not a number.
    """
    if len(update.probe_token_ids) < 2:
        return None, None
    scored = np.asarray(await engine.score(update.probe_token_ids), dtype=np.float64)
    expected = np.asarray(update.probe_logprobs, dtype=np.float64)
    if scored.shape != expected.shape:
        raise ProbeFailedError(f"version {update.version}: probe of {len(expected)} tokens scored as {scored.shape}")
    errors = np.abs(scored - expected)[1:]
    mean, largest = float(errors.mean()), float(errors.max())
    if math.isnan(mean) or mean > tolerance:
        raise ProbeFailedError(
            f"version {update.version}: the engine's log-probs differ from the learner's by {mean:.3g} nats on "
            f"average (largest {largest:.3g}, allowed {tolerance:g}), so it does not run these weights. Its worker is "
            "quarantined; a bfloat16 engine needs weights.probe_tolerance of about 0.1."
        )
    return mean, largest


class _PhaseClock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed

    def total(self) -> float:
        return time.perf_counter() - self._began
