"""The ports of a sharded replay cache, as every process of a run has them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from actors.ports import BatchLease, StalledError, Ticket
from actors.replay.coordinator import PlannedLease, ReplayCoordinator
from actors.replay.shard import ShardPort, shard_of
from rewards.trajectory import Group, PolicyVersion

MAX_FETCHES = 5
"""Times a batch is fetched again because a shard was restarted in between."""


class ShardedReplay:
    """Implements RolloutReplayPort and LearnerReplayPort: groups go to and come from the shards directly, everything
    else to the coordinator. Holds nothing."""

    def __init__(self, coordinator: ReplayCoordinator, shards: Sequence[ShardPort]) -> None:
        """Both may be ports of actors."""
        self._coordinator, self._shards = coordinator, tuple(shards)

    async def take_ticket(self, worker_id: str, group_size: int, key: str = "") -> Ticket:
        return await self._coordinator.take_ticket(worker_id, group_size, key)

    async def return_ticket(self, ticket_id: str, reason: str) -> None:
        await self._coordinator.return_ticket(ticket_id, reason)

    async def release_worker(self, worker_id: str) -> None:
        await self._coordinator.release_worker(worker_id)

    async def put(self, group: Group) -> str | None:
        """Stores a scored group on its ticket; why it was refused, or None."""
        shard = shard_of(group, len(self._shards))
        told = await self._shards[shard].put(group)
        await self._coordinator.note(shard, told.levels)
        return told.value

    async def lease(self, step: int) -> BatchLease:
        """Waits for a full batch for this step; repeating the call returns the same lease."""
        for _ in range(MAX_FETCHES):
            planned: PlannedLease = await self._coordinator.lease(step)
            parts = await asyncio.gather(*(shard.fetch(planned.lease_id) for shard in self._shards))
            groups = {group_id: group for part in parts for group_id, group in part.items()}
            if all(group_id in groups for group_id in planned.group_ids):
                return BatchLease(
                    lease_id=planned.lease_id,
                    step=planned.step,
                    epoch=planned.epoch,
                    groups=tuple(groups[group_id] for group_id in planned.group_ids),
                    ages=planned.ages,
                    shortfall=planned.shortfall,
                    waited_s=planned.waited_s,
                )
        raise StalledError(
            f"the batch of step {step} could not be fetched whole in {MAX_FETCHES} tries: shards of the replay cache "
            "are restarted all the time. Their logs say why."
        )

    async def commit(
        self,
        step: int,
        lease_id: str,
        *,
        dropped: Mapping[str, str] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        await self._coordinator.commit(step, lease_id, dropped=dropped, measured=measured)

    async def announce_version(self, version: PolicyVersion, step: int) -> None:
        await self._coordinator.announce_version(version, step)

    async def seal(self, step: int) -> None:
        await self._coordinator.seal(step)

    async def preload(self, groups: Sequence[Group]) -> None:
        await self._coordinator.preload(groups)

    async def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> None:
        await self._coordinator.rollback(step, batches)

    async def snapshot(self) -> str:
        return await self._coordinator.snapshot()

    async def finish(self) -> None:
        await self._coordinator.finish()

    async def stats(self) -> dict[str, Any]:
        return await self._coordinator.stats()
