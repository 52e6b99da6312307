"""Waiting: who waits, why, until when, and what wakes it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actors.config import ReplayConfig
from actors.ports import LearnerReplayPort, RolloutReplayPort, RunFinished, StaleEpochError, StalledError
from actors.replay.cache import ReplayCache
from rewards.trajectory import PolicyVersion
from tests.actors.replay.drivers import expert, live

SOON_S = 0.05


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def make_cache(folder=None, clock: Callable[[], float] | None = None, **settings: Any) -> ReplayCache:
    config = ReplayConfig(**{"groups_per_update": 2, "max_age": 0, "wait_timeout_s": 5.0, **settings})
    more = {} if clock is None else {"clock": clock}
    cache = ReplayCache(config, directory=folder, seed=0, **more)
    await cache.announce_version(PolicyVersion(0), 0)
    return cache


async def started(call: Awaitable[Any]) -> asyncio.Future[Any]:
    """The call, waiting."""
    future = asyncio.ensure_future(call)
    await asyncio.sleep(0)
    assert not future.done()
    return future


async def fill(cache: ReplayCache, num: int, version: int = 0) -> None:
    for _ in range(num):
        await cache.put(live(await cache.take_ticket("rollout-0", 2), version=version))


@pytest.mark.parametrize("port", [RolloutReplayPort, LearnerReplayPort])
def test_has_the_methods_the_loops_call(port):
    for name in (n for n in vars(port) if not n.startswith("_")):
        assert inspect.signature(getattr(ReplayCache, name)) == inspect.signature(getattr(port, name)), name
        assert inspect.iscoroutinefunction(getattr(ReplayCache, name))


async def test_a_ticket_waits_for_a_commit():
    cache = await make_cache()
    await fill(cache, 2)
    waiting = await started(cache.take_ticket("rollout-0", 2))
    assert (await cache.stats())["waits"] == {
        "rollout-0": "2 live groups accepted + 0 running reach the bound of 2 = (max_age 0 + 0 steps committed + 1) x "
        "fresh groups per update; waiting for step 0 to be committed or a group to be dropped"
    }
    batch = await cache.lease(0)
    assert not waiting.done()
    await cache.commit(0, batch.lease_id)
    assert (await waiting).min_step == 1
    assert (await cache.stats())["waits"] == {}


async def test_a_lost_workers_tickets_go_to_others_at_once_and_what_it_still_puts_is_refused():
    cache = await make_cache()
    held = [await cache.take_ticket("rollout-0", 2) for _ in range(2)]
    of_the_lost = await started(cache.take_ticket("rollout-0", 2))
    waiting = await started(cache.take_ticket("rollout-1", 2))
    await cache.release_worker("rollout-0")
    with pytest.raises(StaleEpochError):
        await of_the_lost
    assert (await waiting).worker_id == "rollout-1"
    await cache.put(live(held[0]))
    stats = await cache.stats()
    assert (stats["groups_refused"], stats["tickets/worker_lost"]) == (1, 2)


@pytest.mark.parametrize("how", ["returned", "refused"])
async def test_a_ticket_waits_for_one_that_comes_back(how):
    cache = await make_cache(groups_per_update=1)
    held = await cache.take_ticket("rollout-0", 2)
    waiting = await started(cache.take_ticket("rollout-1", 2))
    if how == "returned":
        await cache.return_ticket(held.ticket_id, "dropped:constant")
    else:
        await cache.put(live(held, scores=(None, None)))
    assert (await waiting).worker_id == "rollout-1"


async def test_a_lease_waits_for_the_last_group():
    cache = await make_cache()
    waiting = await started(cache.lease(0))
    await fill(cache, 1)
    second = await cache.take_ticket("rollout-0", 2)
    assert (await cache.stats())["waits"] == {"learner": "need 2 live groups: 1 ready, 1 running"}
    await cache.put(live(second))
    batch = await waiting
    assert len(batch.groups) == 2
    assert 0 < batch.waited_s < 5.0


async def test_a_lease_waits_for_preloaded_groups():
    cache = await make_cache(quotas={"expert": "1"})
    waiting = await started(cache.lease(0))
    await cache.preload([expert("e0"), expert("e1")])
    assert {g.group_id for g in (await waiting).groups} == {"e0", "e1"}


async def test_tickets_are_served_in_the_order_they_were_asked_for():
    cache = await make_cache(groups_per_update=1)
    held = await cache.take_ticket("rollout-0", 2)
    waiting = [await started(cache.take_ticket(f"rollout-{i}", 2)) for i in range(1, 4)]
    for index, future in enumerate(waiting, start=1):
        await cache.return_ticket(held.ticket_id, "failed")
        held = await future
        assert held.worker_id == f"rollout-{index}"
        assert [f.done() for f in waiting] == [i < index for i in range(3)]


@pytest.mark.parametrize("who", ["worker", "learner"])
async def test_a_wait_past_its_deadline_raises_with_the_reason(who):
    cache = await make_cache(groups_per_update=1, wait_timeout_s=SOON_S)
    await cache.take_ticket("rollout-0", 2)
    if who == "worker":
        with pytest.raises(StalledError, match=r"rollout-1 waited 0.05 s: 0 live groups accepted \+ 1 running reach"):
            await cache.take_ticket("rollout-1", 2)
    else:
        with pytest.raises(StalledError, match=r"learner waited 0.05 s: need 1 live groups: 0 ready, 1 running"):
            await cache.lease(0)
    assert (await cache.stats())["waits"] == {}


async def test_a_cancelled_wait_takes_nothing_with_it():
    cache = await make_cache(groups_per_update=1)
    held = await cache.take_ticket("rollout-0", 2)
    cancelled, waiting = [await started(cache.take_ticket(f"rollout-{i}", 2)) for i in (1, 2)]
    leasing = await started(cache.lease(0))
    leasing.cancel()
    cancelled.cancel()
    await asyncio.sleep(0)
    await cache.return_ticket(held.ticket_id, "failed")
    ticket = await waiting
    assert ticket.worker_id == "rollout-2"
    await cache.put(live(ticket))
    assert (await cache.stats())["groups/ready/live"] == 1


async def test_a_ticket_granted_to_a_caller_that_is_being_cancelled_comes_back():
    cache = await make_cache(groups_per_update=1)
    held = await cache.take_ticket("rollout-0", 2)
    cancelled, waiting = [await started(cache.take_ticket(f"rollout-{i}", 2)) for i in (1, 2)]
    await cache.return_ticket(held.ticket_id, "failed")  # grants it to rollout-1
    cancelled.cancel()  # which never sees it
    assert (await waiting).worker_id == "rollout-2"
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    stats = await cache.stats()
    assert (stats["tickets/cancelled"], stats["tickets_outstanding"]) == (1, 1)


async def test_a_batch_granted_to_a_caller_that_is_being_cancelled_is_there_when_asked_for_again():
    cache = await make_cache(groups_per_update=1)
    leasing = await started(cache.lease(0))
    await fill(cache, 1)
    leasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leasing
    batch = await cache.lease(0)
    await cache.commit(0, batch.lease_id)
    assert (await cache.stats())["leases"] == 1


async def test_an_expired_ticket_wakes_the_next_waiter_without_any_call():
    cache = await make_cache(groups_per_update=1, ticket_timeout_s=SOON_S)
    await cache.take_ticket("dead", 2)
    assert (await cache.take_ticket("rollout-1", 2)).worker_id == "rollout-1"
    assert (await cache.stats())["tickets/expired"] == 1


async def test_expiry_follows_the_clock_it_was_given():
    clock = Clock()
    cache = await make_cache(groups_per_update=1, clock=clock, lease_timeout_s=10.0, ticket_timeout_s=100.0)
    await fill(cache, 1)
    batch = await cache.lease(0)
    clock.now = 10.0
    assert (await cache.stats())["groups/ready/live"] == 1
    with pytest.raises(StaleEpochError):
        await cache.commit(0, batch.lease_id)


async def test_finish_ends_waits_and_lets_what_is_in_flight_arrive():
    cache = await make_cache(max_age=1)
    await fill(cache, 2)
    batch = await cache.lease(0)
    first, second = [await cache.take_ticket("rollout-0", 2) for _ in range(2)]
    waits = [await started(cache.take_ticket("rollout-1", 2)) for _ in range(2)]
    await cache.finish()
    for wait in waits:
        with pytest.raises(RunFinished):
            await wait
    for call in (cache.take_ticket("rollout-1", 2), cache.lease(1)):
        with pytest.raises(RunFinished):
            await call
    await cache.put(live(first))
    await cache.return_ticket(second.ticket_id, "failed")
    await cache.commit(0, batch.lease_id)
    await cache.seal(0)
    await cache.finish()
    stats = await cache.stats()
    assert (stats["groups/ready/live"], stats["groups/sealed/live"], stats["tickets_outstanding"]) == (1, 2, 0)


async def test_finish_ends_a_waiting_lease():
    cache = await make_cache()
    leasing = await started(cache.lease(0))
    await cache.finish()
    with pytest.raises(RunFinished):
        await leasing


async def test_errors_reach_the_caller_who_made_them():
    cache = await make_cache(groups_per_update=1)
    await fill(cache, 1)
    batch = await cache.lease(0)
    waiting = await started(cache.take_ticket("rollout-0", 2))
    with pytest.raises(ValueError, match="lease of step 5, but only 0 steps are committed"):
        await cache.lease(5)
    with pytest.raises(StaleEpochError, match="no-lease"):
        await cache.commit(0, "no-lease")
    assert not waiting.done()
    await cache.commit(0, batch.lease_id)
    with pytest.raises(StaleEpochError, match="lease of step 0, but 1 steps are committed"):
        await cache.lease(0)
    await waiting


async def test_snapshot_and_rollback_restore_a_run_from_its_checkpoint(tmp_path):
    cache = await make_cache(tmp_path, groups_per_update=1, max_age=1)
    manifest = {}
    for step in range(3):
        await fill(cache, 1, version=step)
        batch = await cache.lease(step)
        await cache.commit(step, batch.lease_id)
        await cache.announce_version(PolicyVersion(step + 1), step + 1)
        manifest[step] = [g.group_id for g in batch.groups]
        if step == 1:
            assert await cache.snapshot() == str(tmp_path / "snapshot.json")
            await cache.seal(1)
    again = await make_cache(tmp_path, groups_per_update=1, max_age=1)
    await again.rollback(2, {step: manifest[step] for step in (0, 1)})
    await again.announce_version(PolicyVersion(4), 2)
    batch = await again.lease(2)
    assert [g.group_id for g in batch.groups] == manifest[2]


async def test_many_workers_and_one_learner_run_to_the_end():
    cache = await make_cache(groups_per_update=4, max_age=2, quotas={"expert": "1/4"})
    await cache.preload([expert(f"e{i}") for i in range(6)])
    newest, trained = 0, []

    async def worker(name: str) -> None:
        while True:
            try:
                ticket = await cache.take_ticket(name, 2)
            except RunFinished:
                return
            version = newest
            await asyncio.sleep(0)
            if int(ticket.ticket_id.rpartition("-")[2]) % 5 == 0:
                await cache.return_ticket(ticket.ticket_id, "dropped:constant")
            else:
                await cache.put(live(ticket, version=version))

    async def learner() -> None:
        nonlocal newest
        for step in range(25):
            batch = await cache.lease(step)
            assert max(batch.ages.values()) <= 2
            trained.extend(g.group_id for g in batch.groups if g.group_id not in {f"e{i}" for i in range(6)})
            await asyncio.sleep(0)
            await cache.commit(step, batch.lease_id)
            await cache.announce_version(PolicyVersion(step + 1), step + 1)
            newest = step + 1
        await cache.finish()

    await asyncio.gather(learner(), *(worker(f"rollout-{i}") for i in range(16)))
    assert len(trained) == len(set(trained)) == 75
    stats = await cache.stats()
    assert stats["tickets_outstanding"] == 0
    assert sum(n for name, n in stats.items() if name.startswith("tickets/")) == stats["tickets_issued"]
