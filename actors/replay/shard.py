"""One share of a sharded replay cache: groups, index and log of its own; what spans shards the coordinator decides."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from actors.config import ReplayConfig
from actors.ports import Ticket
from actors.replay.core import ReplayCore
from actors.replay.levels import Levels
from actors.replay.log import ReplayLog
from actors.replay.selectors import Key
from rewards.trajectory import Group, PolicyVersion

_TICKET = re.compile(r"s(\d+)t")


class Told(NamedTuple):
    """An answer of a shard, and its levels after it."""

    value: Any
    levels: Levels


class Offer(NamedTuple):
    """What a shard could put into the next batch: keys and ids by source."""

    heads: Mapping[str, Sequence[tuple[Key, str]]]
    levels: Levels


class ShardPort(Protocol):
    """A ReplayShard, here or in another process."""

    async def begin(self) -> Levels: ...

    async def issue(self, worker_id: str, group_size: int, due: int) -> Told: ...

    async def return_ticket(self, ticket_id: str, reason: str) -> Levels: ...

    async def release_worker(self, worker_id: str) -> Levels: ...

    async def put(self, group: Group) -> Told: ...

    async def preload(self, groups: Sequence[Group]) -> Levels: ...

    async def offer(self, step: int, count: int) -> Offer: ...

    async def hand_out(
        self, step: int, lease_id: str, group_ids: Sequence[str], shortfall: Mapping[str, int]
    ) -> Told: ...

    async def fetch(self, lease_id: str) -> dict[str, Group]: ...

    async def give_back(self, lease_id: str | None, reason: str) -> Levels: ...

    async def commit(
        self,
        step: int,
        lease_id: str,
        group_ids: Sequence[str] | None,
        dropped: Mapping[str, str],
        measured: Mapping[str, Mapping[str, float]],
    ) -> Levels: ...

    async def announce_version(self, version: PolicyVersion, step: int) -> Levels: ...

    async def seal(self, step: int) -> Levels: ...

    async def known(self, group_ids: Sequence[str]) -> set[str]: ...

    async def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> Levels: ...

    async def snapshot(self) -> str: ...

    async def stats(self) -> dict[str, float]: ...


def shard_of(group: Group, num_shards: int) -> int:
    """Live groups go where their ticket came from; the others by a hash of their id, the same in every process."""
    if group.ticket_id is not None and (found := shard_of_ticket(group.ticket_id)) is not None:
        return found
    return shard_of_id(group.group_id, num_shards)


def shard_of_ticket(ticket_id: str) -> int | None:
    match = _TICKET.match(ticket_id)
    return None if match is None else int(match[1])


def shard_of_id(group_id: str, num_shards: int) -> int:
    """The shard with the highest hash: with one shard more, only its own share of the groups moves."""
    return max(range(num_shards), key=lambda shard: hashlib.blake2b(f"{shard}:{group_id}".encode()).digest())


class ReplayShard:
    """Implements ShardPort; one event loop calls it.

    Consumes puts of workers and the coordinator's decisions; produces offers, groups and levels; waits for nothing.
    Its tickets and its part of a lease are void after a restart, as those of a cache that is not sharded; what the
    coordinator still holds of a lease is leased again at its commit.
    """

    def __init__(
        self,
        config: ReplayConfig,
        *,
        directory: Path | None,
        seed: int,
        shard: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Restores itself from its folder.

        Raises:
            CorruptLogError: the folder's history is damaged.
        """
        log = None if directory is None else ReplayLog(directory / f"shard-{shard}")
        self._core = ReplayCore(config, seed=seed, log=log, shard=shard)
        self._clock = clock

    async def begin(self) -> Levels:
        """What a coordinator needs to know; it may ask again."""
        return self._levels()

    async def issue(self, worker_id: str, group_size: int, due: int) -> Told:
        ticket: Ticket = self._core.issue(worker_id, group_size, due, self._clock())
        return Told(ticket, self._levels())

    async def return_ticket(self, ticket_id: str, reason: str) -> Levels:
        self._core.return_ticket(ticket_id, reason)
        return self._levels()

    async def release_worker(self, worker_id: str) -> Levels:
        self._core.release_worker(worker_id)
        return self._levels()

    async def put(self, group: Group) -> Told:
        """The reason of a refusal or None, and the levels."""
        reason = self._core.put(group)
        return Told(reason, self._levels())

    async def preload(self, groups: Sequence[Group]) -> Levels:
        self._core.preload(groups)
        return self._levels()

    async def offer(self, step: int, count: int) -> Offer:
        heads = self._core.offer(step, count)
        return Offer(heads, self._levels())

    async def hand_out(self, step: int, lease_id: str, group_ids: Sequence[str], shortfall: Mapping[str, int]) -> Told:
        """The ages of the groups that have one; None when a group is not there any more, and then none is leased."""
        core, lease = self._core, self._core.state.lease
        if lease is None:
            core.expire(self._clock())
            if not (core.state.are_ready(group_ids) and core.hand_out(step, lease_id, group_ids, shortfall)):
                return Told(None, self._levels())
            lease = core.state.lease
        assert lease is not None
        return Told(dict(lease.ages) if lease.lease_id == lease_id else None, self._levels())

    async def fetch(self, lease_id: str) -> dict[str, Group]:
        """This shard's groups of the outstanding lease by id; none when it is another one."""
        return self._core.leased_groups(lease_id)

    async def give_back(self, lease_id: str | None, reason: str) -> Levels:
        """None is whichever lease is outstanding."""
        self._core.give_back(lease_id, reason)
        return self._levels()

    async def commit(
        self,
        step: int,
        lease_id: str,
        group_ids: Sequence[str] | None,
        dropped: Mapping[str, str],
        measured: Mapping[str, Mapping[str, float]],
    ) -> Levels:
        """This shard's part of a step; it may hold no group of it.

        Args:
            group_ids: the part, as the coordinator handed it out; it is leased again when the shard was restarted
                since. None when the coordinator does not know it.

        Raises:
            StaleEpochError: the lease is not outstanding and cannot be taken again.
        """
        core = self._core
        is_new = core.state.lease is None and step == core.state.steps_committed
        if is_new and group_ids is not None and core.state.are_ready(group_ids):
            core.hand_out(step, lease_id, group_ids, {})
        own = set(core.state.lease.group_ids) if core.state.lease is not None else set()
        core.commit(
            step,
            lease_id,
            {group_id: reason for group_id, reason in dropped.items() if group_id in own},
            {group_id: values for group_id, values in measured.items() if group_id in own},
        )
        return self._levels()

    async def announce_version(self, version: PolicyVersion, step: int) -> Levels:
        self._core.announce_version(version, step)
        return self._levels()

    async def seal(self, step: int) -> Levels:
        self._core.seal(step)
        return self._levels()

    async def known(self, group_ids: Sequence[str]) -> set[str]:
        """Those of the groups this shard has heard of, forgotten ones of its history included."""
        state = self._core.state
        trained = {group_id for row in state.history.values() for group_id in row.trained}
        return {group_id for group_id in group_ids if group_id in state.entries or group_id in trained}

    async def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> Levels:
        self._core.rollback(step, batches)
        return self._levels()

    async def snapshot(self) -> str:
        return self._core.snapshot()

    async def stats(self) -> dict[str, float]:
        self._core.expire(self._clock())
        return self._core.stats()

    def _levels(self) -> Levels:
        self._core.expire(self._clock())
        return self._core.levels()
