"""A sharded replay cache on Ray: processes die, and the cache goes on as if they had not."""

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import ray

from actors.assembly import RunSpec
from actors.config import ReplayConfig
from actors.spawn import spawn_replay
from rewards.trajectory import PolicyVersion
from tests.actors.replay.drivers import live

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Spec:
    """The part of a RunSpec a replay cache reads."""

    replay: ReplayConfig
    directory: Path
    seed: int = 0


@pytest.fixture
def node():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().get_node_id()
    ray.shutdown()


def pid_of(name: str) -> int:
    handle = ray.get_actor(name, "shards")
    return ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))


async def fill(replay: Any, num: int, version: int) -> None:
    for _ in range(num):
        ticket = await replay.take_ticket("w", 2)
        assert await replay.put(live(ticket, version=version)) is None


async def test_killed_shards_and_a_killed_coordinator_cost_no_group(tmp_path, node):
    config = ReplayConfig(groups_per_update=4, max_age=1, num_shards=2, wait_timeout_s=800.0)
    replay: Any = spawn_replay(cast(RunSpec, Spec(config, tmp_path)), "shards", node)
    await replay.announce_version(PolicyVersion(0), 0)
    await fill(replay, 8, 0)
    os.kill(pid_of("replay-shard-1"), signal.SIGKILL)
    first = await replay.lease(0)
    os.kill(pid_of("replay-shard-0"), signal.SIGKILL)
    await replay.commit(0, first.lease_id)
    await replay.announce_version(PolicyVersion(1), 1)
    os.kill(pid_of("replay"), signal.SIGKILL)
    second = await replay.lease(1)
    await replay.commit(1, second.lease_id)
    trained = Counter(group.group_id for batch in (first, second) for group in batch.groups)
    assert (len(trained), set(trained.values())) == (8, {1})
    stats = await replay.stats()
    assert (stats["steps_committed"], stats["groups/committed/live"], stats["tickets_outstanding"]) == (2, 8, 0)
