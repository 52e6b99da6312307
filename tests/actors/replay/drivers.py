"""Short cuts to the situations the replay tests are about."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.config import ReplayConfig
from actors.ports import BatchLease, Ticket
from actors.replay.core import ReplayCore
from actors.replay.log import ReplayLog
from rewards.trajectory import Group, PolicyVersion, Source
from tests.builders import make_group

WORKER = "rollout-0"


def make_core(
    folder: Path | None = None, *, seed: int = 0, versions: Sequence[int] = (0,), **settings: Any
) -> ReplayCore:
    """A core whose initial versions are announced; `versions` are the steps of versions 0, 1, ..."""
    log = None if folder is None else ReplayLog(folder, fsync="never")
    core = ReplayCore(ReplayConfig(**{"groups_per_update": 2, **settings}), seed=seed, log=log)
    for version, step in enumerate(versions):
        if version not in core.state.versions:
            core.announce_version(PolicyVersion(version), step)
    return core


def take(core: ReplayCore, now: float = 0.0) -> Ticket:
    ticket = core.take_ticket(WORKER, 2, now)
    assert ticket is not None, core.admission().reason
    return ticket


def live(ticket: Ticket, *, version: int = 0, **fields: Any) -> Group:
    """The group a worker would sample on this ticket."""
    return make_group(group_id=f"g-{ticket.ticket_id}", ticket_id=ticket.ticket_id, policy_version=version, **fields)


def expert(name: str, source: Source = Source.EXPERT, **fields: Any) -> Group:
    return make_group(group_id=name, source=source, **fields)


def store(core: ReplayCore, *versions: int) -> list[str]:
    """Puts one good live group per version; returns their ids."""
    groups = [live(take(core), version=version) for version in versions]
    for group in groups:
        assert core.put(group) is None
    return [group.group_id for group in groups]


def lease(core: ReplayCore, now: float = 0.0) -> BatchLease:
    batch = core.lease(core.state.steps_committed, now)
    assert batch is not None, core.shortage(core.state.steps_committed)
    return batch


def train(core: ReplayCore, num_steps: int = 1) -> list[list[str]]:
    """Whole steps: fill what is missing at the newest version, lease, commit, publish; the ids of each batch."""
    batches = []
    for _ in range(num_steps):
        newest = max(core.state.versions)
        while (batch := core.lease(core.state.steps_committed, 0.0)) is None:
            store(core, newest)
        core.commit(batch.step, batch.lease_id)
        core.announce_version(PolicyVersion(newest + 1), batch.step + 1)
        batches.append(ids(batch))
    return batches


def ids(batch: BatchLease) -> list[str]:
    return [group.group_id for group in batch.groups]


def drops(core: ReplayCore) -> dict[str, int]:
    """Refused and evicted groups by source and reason."""
    counts: dict[str, int] = {}
    for key, num in core.state.drops.items():
        source, reason, _ = key.split("/")
        counts[f"{source}/{reason}"] = counts.get(f"{source}/{reason}", 0) + num
    return counts


def replace_member(group: Group, **fields: Any) -> Group:
    """The group with other values in its first member."""
    first, *others = group.trajectories
    return replace(group, trajectories=(replace(first, **fields), *others))


@contextmanager
def full_disk(path: Path, room: int) -> Iterator[None]:
    """No file may grow past the present size of `path` plus `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def write_checkpoint(folder: Path, step: int, batches: Mapping[int, Sequence[str]]) -> None:
    """A checkpoint of a run as the learner leaves it, without weights."""
    from learner.checkpoint import publish_checkpoint  # heavy, and few of the replay tests need it

    temporary = folder / f"step-{step:08d}.tmp"
    temporary.mkdir(parents=True)
    (temporary / "batches.json").write_text(json.dumps({str(k): list(v) for k, v in batches.items()}))
    publish_checkpoint(temporary, folder / f"step-{step:08d}", {"step": step})
