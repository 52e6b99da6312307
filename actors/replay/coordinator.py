"""Coordinator of a sharded replay cache: admission, quotas and leases over shards that keep the groups.

It holds nothing that could be lost: its numbers are the sum of what the shards tell, and it never sees a token.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.config import ReplayConfig
from actors.ports import RunFinished, StaleEpochError, StalledError, Ticket
from actors.replay.books import remember
from actors.replay.levels import Levels, admission, held_back, ready_within_rules, total
from actors.replay.limiter import Admission
from actors.replay.quotas import Composition, QuotaPlan, compose, shortage
from actors.replay.shard import Offer, ShardPort, Told, shard_of, shard_of_id, shard_of_ticket
from actors.replay.stats import added
from rewards.trajectory import Group, PolicyVersion, Source

POLL_S = 1.0
"""How often a caller that waits asks the shards for what they have not told: expired tickets, restarts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLease:
    """A batch by ids: which shard holds which of its groups.

    Attributes:
        group_ids: of the batch, in order; `parts` are the same by shard.
    """

    lease_id: str
    step: int
    epoch: int
    group_ids: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    ages: Mapping[str, int]
    shortfall: Mapping[str, int]
    waited_s: float = 0.0


class ReplayCoordinator:
    """Decides for all shards what `ReplayCache` decides for itself; the same waits, reasons and errors.

    Consumes ticket requests, lease requests, commits and levels; produces tickets and planned leases; a ticket waits
    for admission, a lease for groups in the shards. A lease is taken from every shard or from none. After a restart
    every outstanding lease is given back, unless a commit was cut short: its repetition then completes it.
    """

    def __init__(
        self, config: ReplayConfig, shards: Sequence[ShardPort], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._shards, self._clock = config, tuple(shards), clock
        self._plan = QuotaPlan(config.groups_per_update, {Source(s).value: f for s, f in config.quotas.items()})
        self._levels: list[Levels] = []
        self._line, self._batches = asyncio.Lock(), asyncio.Lock()
        self._lease: PlannedLease | None = None
        self._lease_deadline = 0.0
        self._shortage = ""
        self._sleepers: set[asyncio.Future[None]] = set()
        self._waits: dict[str, Callable[[], str]] = {}
        self._num_in_line = 0
        self._finished = False
        self._lives: Counter[str] = Counter()
        """How often each worker was released: requests of its earlier lives are void."""
        self._served: OrderedDict[str, Ticket] = OrderedDict()
        """Tickets by the key of their request."""

    # -- workers --------------------------------------------------------------------------------------------------

    async def take_ticket(self, worker_id: str, group_size: int, key: str = "") -> Ticket:
        """Waits for admission, in turn; a key that this coordinator has served gives the same ticket again. Raises
        StalledError at the deadline, RunFinished at the end."""
        await self._begin()
        if key in self._served:
            return self._served[key]
        life = self._lives[worker_id]
        self._num_in_line += 1
        self._waits[worker_id] = lambda: self._admission().reason
        try:
            async with asyncio.timeout(self._config.wait_timeout_s), self._line:
                while (due := self._admission().due) is None or self._finished:
                    self._check_goes_on()
                    self._check_lives(worker_id, life)
                    await self._until_change()
                self._check_lives(worker_id, life)
                ticket = await _whole(self._issue(worker_id, group_size, due), self._unwanted)
                if key:
                    remember(self._served, key, ticket)
                return ticket
        except TimeoutError as error:
            raise self._stalled(worker_id, self._admission().reason) from error
        finally:
            self._num_in_line -= 1
            self._waits.pop(worker_id, None)

    async def return_ticket(self, ticket_id: str, reason: str) -> None:
        """Gives the right back without a group: dropped, failed, cancelled."""
        shard = shard_of_ticket(ticket_id) or 0
        self._note(shard, await self._shards[shard].return_ticket(ticket_id, reason))

    async def release_worker(self, worker_id: str) -> None:
        """Whoever had this name is gone: its tickets come back at once, and its requests that still wait are given
        up, or the next tickets would go to nobody."""
        self._lives[worker_id] += 1
        self._wake()
        await self._on_all(lambda shard: shard.release_worker(worker_id))

    async def note(self, shard: int, levels: Levels) -> None:
        """A shard was written to directly."""
        self._note(shard, levels)

    async def _issue(self, worker_id: str, group_size: int, due: int) -> Ticket:
        """From the shard with the fewest live groups, made or in the making."""
        loads = [levels.opened.get("live", 0) + levels.num_running for levels in self._levels]
        shard = loads.index(min(loads))
        told = await self._shards[shard].issue(worker_id, group_size, due)
        self._note(shard, told.levels)
        return told.value

    async def _unwanted(self, ticket: Ticket) -> None:
        """The caller was cancelled while its ticket was made: nobody would use it."""
        await self.return_ticket(ticket.ticket_id, "cancelled")

    def _admission(self) -> Admission:
        return admission(total(self._levels), self._config, self._plan)

    # -- learner --------------------------------------------------------------------------------------------------

    async def lease(self, step: int) -> PlannedLease:
        """Waits for a full batch for this step; repeating the call returns the same lease, also when a shard forgot it.

        Raises:
            StalledError: at the deadline.
            RunFinished: at the end.
            StaleEpochError: the step is already committed.
            ValueError: steps before it are not committed.
        """
        await self._begin()
        began = time.monotonic()
        self._waits["learner"] = lambda: self._shortage
        try:
            async with asyncio.timeout(self._config.wait_timeout_s):
                while True:
                    self._check_goes_on()
                    async with self._batches:
                        if await self._try_to_lease(step) and self._lease is not None:
                            return replace(self._lease, waited_s=time.monotonic() - began)
                    await self._until_change()
        except TimeoutError as error:
            raise self._stalled("learner", self._shortage) from error
        finally:
            self._waits.pop("learner", None)

    async def commit(
        self,
        step: int,
        lease_id: str,
        *,
        dropped: Mapping[str, str] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """The optimizer step is done, in every shard; when one cannot be reached, repeating the call completes it.

        Raises:
            StaleEpochError: the lease expired or was rolled back.
            ValueError: it was for another step, or `dropped` names groups it does not hold.
        """
        await self._begin()
        async with self._batches:
            lease = self._lease if self._lease is not None and self._lease.lease_id == lease_id else None
            if lease is not None and step != lease.step:
                raise ValueError(
                    f"lease {lease_id} is for step {lease.step}, not {step}: commit the step it was taken for"
                )
            if lease is not None and (strangers := sorted(set(dropped or {}) - set(lease.group_ids))):
                raise ValueError(f"commit of step {step} drops {strangers}, which are not in lease {lease_id}")
            parts = lease.parts if lease is not None else (None,) * len(self._shards)
            await self._on_each(
                lambda shard, part: shard.commit(step, lease_id, part, dropped or {}, measured or {}), parts
            )
            if lease is not None:
                self._lease = None

    async def announce_version(self, version: PolicyVersion, step: int) -> None:
        """Weights `version` contain `step` committed steps; told before anyone can sample with them."""
        await self._on_all(lambda shard: shard.announce_version(version, step))

    async def seal(self, step: int) -> None:
        """The checkpoint that covers this step is durable. Raises ValueError when the step is not committed."""
        await self._on_all(lambda shard: shard.seal(step))

    async def _try_to_lease(self, step: int) -> bool:
        if self._lease is not None and self._clock() >= self._lease_deadline:
            await self._give_back("expired")
        lease = self._lease
        if lease is not None and lease.step != step:
            raise StaleEpochError(
                f"lease of step {step}, but step {lease.step} is leased and not committed: this learner was replaced "
                "or restored without `rollback`. Roll the cache back to the learner's checkpoint first."
            )
        if lease is not None and not await self._hand_out(lease):  # a repeated call
            lease = None
        while lease is None:
            offers = await self._offers(step)
            totals = total(self._levels)
            composition = compose(self._plan, step, ready_within_rules(totals, self._config))
            self._shortage = shortage(composition, totals.num_running, held_back(totals, self._config))
            if composition.missing:
                return False
            planned = _planned(step, totals, composition, offers)
            lease = planned if await self._hand_out(planned) else None
        self._lease_deadline = self._clock() + self._config.lease_timeout_s
        return True

    async def _offers(self, step: int) -> list[Offer]:
        """Raises StaleEpochError when a commit of this step was cut short."""
        steps = {levels.steps_committed for levels in self._levels}
        if len(steps) > 1:
            raise StaleEpochError(
                f"lease of step {step}, but the shards have committed {sorted(steps)} steps: a commit was cut short. "
                "Repeat that commit, or roll the cache back to the learner's checkpoint."
            )
        self._shortage = "a shard of the replay cache that has not answered"
        offers = await asyncio.gather(*(shard.offer(step, self._config.groups_per_update) for shard in self._shards))
        for shard, offer in enumerate(offers):
            self._note(shard, offer.levels)
        return offers

    async def _hand_out(self, lease: PlannedLease) -> bool:
        """Takes the parts from all shards, or from none: False when one of them has lost a group since."""
        calls = (
            shard.hand_out(lease.step, lease.lease_id, part, lease.shortfall)
            for shard, part in zip(self._shards, lease.parts, strict=True)
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        ages: dict[str, int] = {}
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        complete = not failures
        for shard, answer in enumerate(answers):
            if isinstance(answer, Told):
                self._note(shard, answer.levels)
                complete = complete and answer.value is not None
                ages |= answer.value or {}
        if not complete:
            await self._give_back("incomplete")
            for failure in failures:
                raise failure
            return False
        self._lease = replace(lease, ages=ages)
        return True

    async def _give_back(self, reason: str) -> None:
        """Whatever is leased anywhere, also by a call that was cut short. A shard that cannot be reached forgets its
        part when it is restarted."""
        self._lease = None
        calls = (shard.give_back(None, reason) for shard in self._shards)
        for shard, answer in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
            if isinstance(answer, Levels):
                self._note(shard, answer)

    # -- the run --------------------------------------------------------------------------------------------------

    async def preload(self, groups: Sequence[Group]) -> None:
        """Stores groups of frozen sources; known ones are left as they are.

        Raises:
            ValueError: a source no batch takes, or another group under a known id; then none was stored in its shard.
        """
        parts: list[list[Group]] = [[] for _ in self._shards]
        for group in groups:
            parts[shard_of(group, len(parts))].append(group)
        await self._on_each(lambda shard, part: shard.preload(part), parts)

    async def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> None:
        """History continues from a checkpoint after `step` committed steps that were trained on `batches`.

        Raises:
            ValueError: the manifest does not cover every step before `step`.
        """
        await self._begin()
        async with self._batches:
            named = [group_id for s, group_ids in batches.items() if int(s) < step for group_id in group_ids]
            known = await asyncio.gather(*(shard.known(named) for shard in self._shards))
            owner = {group_id: shard for shard, ids in enumerate(known) for group_id in ids}
            num = len(self._shards)
            parts = [
                {
                    int(s): [g for g in ids if owner.get(g, shard_of_id(g, num)) == shard]
                    for s, ids in batches.items()
                    if int(s) < step
                }
                for shard in range(num)
            ]
            self._lease = None
            await self._on_each(lambda shard, part: shard.rollback(step, part), parts)

    async def snapshot(self) -> str:
        """Makes everything up to now durable; paths of the snapshots, empty without folders."""
        paths = await asyncio.gather(*(shard.snapshot() for shard in self._shards))
        return ", ".join(path for path in paths if path)

    async def finish(self) -> None:
        """Ends all waits with RunFinished, now and later; what is in flight may still be put, committed, returned."""
        self._finished = True
        self._wake()

    async def stats(self) -> dict[str, Any]:
        """The shards' numbers together (see `actors.replay.stats`), and under `waits` the reason of everyone who
        waits."""
        parts = await asyncio.gather(*(shard.stats() for shard in self._shards))
        return {
            **added(parts),
            "replay_shards": len(parts),
            "waiting_for_ticket": self._num_in_line,
            "waits": {name: reason() for name, reason in self._waits.items()},
        }

    # -- shards ---------------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Asks the shards for their levels; what an earlier coordinator leased is given back."""
        async with self._batches:
            if self._levels:
                return
            levels = list(await asyncio.gather(*(shard.begin() for shard in self._shards)))
            if not self._levels:
                self._levels = levels
            if len({part.steps_committed for part in levels}) == 1:
                await self._give_back("restart")

    async def _on_all(self, call: Callable[[ShardPort], Awaitable[Levels]]) -> None:
        await self._on_each(lambda shard, _: call(shard), (None,) * len(self._shards))

    async def _on_each(self, call: Callable[[ShardPort, Any], Awaitable[Levels]], parts: Sequence[Any]) -> None:
        """One call to every shard; all are made before the first failure is raised."""
        calls = (call(shard, part) for shard, part in zip(self._shards, parts, strict=True))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for shard, answer in enumerate(answers):
            if isinstance(answer, Levels):
                self._note(shard, answer)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    def _note(self, shard: int, levels: Levels) -> None:
        """Answers may overtake each other; the newest counts."""
        if self._levels and (levels.boot, levels.seq) > (self._levels[shard].boot, self._levels[shard].seq):
            self._levels[shard] = levels
            self._wake()

    # -- waiting --------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def _until_change(self) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            await asyncio.wait({sleeper}, timeout=POLL_S)
        finally:
            self._sleepers.discard(sleeper)
        if not sleeper.done():
            answers = await asyncio.gather(*(shard.begin() for shard in self._shards), return_exceptions=True)
            for shard, answer in enumerate(answers):  # one that cannot be reached is missed by the call that needs it
                if isinstance(answer, Levels):
                    self._note(shard, answer)

    def _check_goes_on(self) -> None:
        if self._finished:
            raise RunFinished("the run has ended")

    def _check_lives(self, worker_id: str, life: int) -> None:
        if self._lives[worker_id] != life:
            raise StaleEpochError(f"{worker_id} was replaced while it waited for a ticket")

    def _stalled(self, name: str, reason: str) -> StalledError:
        return StalledError(f"{name} waited {self._config.wait_timeout_s:g} s: {reason}")


def _planned(step: int, totals: Levels, composition: Composition, offers: Sequence[Offer]) -> PlannedLease:
    """Merges the heads of all shards by their keys, source by source."""
    chosen: list[tuple[int, str]] = []
    for source, num in composition.take.items():
        heads = [(*head, shard) for shard, offer in enumerate(offers) for head in offer.heads.get(source, ())]
        chosen += [(shard, group_id) for _, group_id, shard in sorted(heads)[:num]]
    return PlannedLease(
        lease_id=f"l{totals.boot}-{step}-{totals.num_leases}",
        step=step,
        epoch=totals.boot,
        group_ids=tuple(group_id for _, group_id in chosen),
        parts=tuple(tuple(g for owner, g in chosen if owner == shard) for shard in range(len(offers))),
        ages={},
        shortfall=dict(composition.shortfall),
    )


async def _whole(making: Coroutine[Any, Any, Ticket], unwanted: Callable[[Ticket], Awaitable[None]]) -> Ticket:
    """Awaits something that must not be cut short; when the caller is cancelled, what comes of it is handed on."""
    task = asyncio.ensure_future(making)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await unwanted(await task)
        raise
