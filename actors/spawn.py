"""Turns each class into a Ray actor with its resources, and actor handles into ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import assembly
from actors.assembly import RunSpec
from actors.learner_worker import LearnerPorts, LearnerRank, LearnerWorker, RankPort
from actors.pools import ScorePool
from actors.replay.cache import ReplayCache
from actors.replay.coordinator import ReplayCoordinator
from actors.replay.shard import ReplayShard, ShardPort
from actors.replay.sharded import ShardedReplay
from actors.reward_worker import RewardWorker
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.run_checkpoint import RunCheckpointer
from actors.task_feed import TaskFeed
from actors.transports.object_store import NodeMirror, ShippedVersion, Shipper, mirror_folder, remove_versions
from actors.transports.tensor_file import Bytes
from actors.weights import VersionGoneError, WeightStore
from rewards.task import Task
from rewards.trajectory import Group, PolicyVersion

LOST = (RayActorError, ActorDiedError, ActorUnavailableError)
"""A process of the run is gone or cannot be reached."""

REMOVE_TIMEOUT_S = 30.0

ROLE_LABEL = "braid/role"
"""Label of a Ray node that says which role it is for: learner, rollout or reward."""

RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Waits between tries of a keyed call; a replacement actor of the same name usually answers by then."""


class ActorPort:
    """An actor's methods as coroutines.

    Calls to boxes that keep state under a name are retried against the current holder of that name: every mutating
    call carries a key, so a call that ran although its reply was lost does nothing the second time.
    """

    def __init__(self, handle: Any, *, name: str | None = None, namespace: str | None = None) -> None:
        self._handle, self._name, self._namespace = handle, name, namespace
        self._first = handle
        """Kept although another holder of the name may have taken over: an actor dies with its creator's handle."""

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(*args: Any, **kwargs: Any) -> Any:
            for delay in (*RETRY_DELAYS_S, None):
                try:
                    return await getattr(self._handle, method).remote(*args, **kwargs)
                except LOST:
                    if self._name is None or delay is None:
                        raise
                    await asyncio.sleep(delay)
                    self._reattach(self._name)

        return call

    def _reattach(self, name: str) -> None:
        with suppress(ValueError):  # no holder of that name yet; the next try asks again
            self._handle = ray.get_actor(name, self._namespace)

    def __reduce__(self) -> tuple[Any, ...]:
        return _port, (self._handle, self._name, self._namespace)


def _port(handle: Any, name: str | None, namespace: str | None) -> ActorPort:
    return ActorPort(handle, name=name, namespace=namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Ports of the boxes that all workers of a run share."""

    tasks: Any
    replay: Any
    weights: Any
    scoring: tuple[Any, ...]
    report: Any


class ReplayActor(ReplayCache):
    """The replay cache in a process of its own; restores itself from its folder when restarted."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec.replay, directory=spec.directory / "replay", seed=spec.seed)


class ReplayShardActor(ReplayShard):
    """One shard in a process of its own; restores itself from its folder when restarted."""

    def __init__(self, spec: RunSpec, shard: int) -> None:
        super().__init__(spec.replay, directory=spec.directory / "replay", seed=spec.seed, shard=shard)


class ReplayCoordinatorActor(ReplayCoordinator):
    """The coordinator of all shards in a process of its own; sums the shards when restarted.

    It finds them by name: Ray cannot restart an actor whose handles to others were arguments that went out of scope.
    """

    def __init__(self, spec: RunSpec, namespace: str) -> None:
        names = [_shard_name(shard) for shard in range(spec.replay.num_shards)]
        shards = [ActorPort(ray.get_actor(name, namespace), name=name, namespace=namespace) for name in names]
        super().__init__(spec.replay, cast(Sequence[ShardPort], shards))


class TaskFeedActor(TaskFeed):
    """The task feed in a process of its own."""

    def __init__(self, spec: RunSpec, tasks: Sequence[Task]) -> None:
        super().__init__(tasks, **assembly.task_feed_options(spec, tasks))


class RayChunks:
    """ChunkPort over Ray's object store; the actor that puts a chunk owns it."""

    async def put(self, chunk: Bytes) -> Any:
        return await asyncio.to_thread(ray.put, chunk)

    async def get(self, reference: Any) -> Bytes:
        return await reference


class WeightStoreActor(WeightStore):
    """The weight store in a process of its own, on the learner's node; ships versions to the others."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(
            Path(spec.weights_dir), state_dir=spec.directory / "weights", keep_versions=spec.weights.keep_versions
        )
        self._shipper = Shipper(RayChunks())

    async def node(self) -> str:
        return _this_node()

    async def shipped(self, version: PolicyVersion) -> ShippedVersion:
        """Raises VersionGoneError when the version is not the newest any more."""
        update = await self.newest()
        if update is None or update.version != version:
            raise VersionGoneError(f"version {version} is not the newest any more")
        return await self._shipper.shipped(update)


class RewardActor(RewardWorker):
    """A reward worker and its killable children in a process of its own."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec.reward)


class RolloutActor:
    """A rollout worker, its engine and its ports in a process of its own."""

    def __init__(self, spec: RunSpec, worker_id: str, boxes: Boxes) -> None:
        spec = assembly.on_this_node(spec)
        self._model_path, reward = spec.model_path, spec.reward
        scoring = ScorePool(
            boxes.scoring, lost=LOST, num_retries=reward.num_retries, hedge_after_s=reward.hedge_worker_after_s
        )
        ports = RolloutPorts(
            tasks=boxes.tasks,
            replay=boxes.replay,
            scoring=scoring,
            weights=_weights_for_this_node(spec, boxes.weights),
            report=boxes.report,
        )
        self._worker: RolloutWorker = assembly.make_rollout_worker(spec, worker_id, ports)

    async def start(self, model_path: str) -> None:
        del model_path  # the folder on the node of the caller
        await self._worker.start(self._model_path)

    async def run(self, *, sample: bool = True) -> None:
        await self._worker.run(sample=sample)

    async def evaluate(self, tasks: Sequence[Task], **options: Any) -> Any:
        return await self._worker.evaluate(tasks, **options)

    async def stats(self) -> dict[str, float]:
        return await self._worker.stats()

    async def drain(self) -> None:
        await self._worker.drain()

    async def close(self) -> None:
        await self._worker.close()


class LearnerRankActor:
    """A rank of the learner group; rank 0 also leads."""

    def __init__(self, spec: RunSpec, rank: int) -> None:
        self._spec, self._rank = assembly.on_this_node(spec), rank
        self._own: LearnerRank | None = None
        self._leader: LearnerWorker | None = None

    def node(self) -> str:
        return _this_node()

    def free_address(self) -> str:
        """Where the ranks can meet: a free port of this node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def build(self, init_method: str | None) -> None:
        """Loads the model; returns when all ranks have met."""
        self._own = assembly.make_learner_rank(self._spec, self._rank, init_method)

    def lead(self, others: Sequence[Any], boxes: Boxes) -> None:
        """Makes this rank the leader of the group."""
        spec = self._spec
        assert self._own is not None
        checkpointer = RunCheckpointer(
            Path(spec.state_dir).parent / "checkpoints",
            {"replay": boxes.replay, "tasks": boxes.tasks},
            keep=spec.checkpoint_keep,
            config_json=spec.config_json,
        )
        ports = LearnerPorts(
            ranks=(self._own, *(cast(RankPort, RemoteRank(handle)) for handle in others)),
            replay=boxes.replay,
            publish=boxes.weights,
            checkpoint=checkpointer,
            report=boxes.report,
        )
        self._leader = LearnerWorker(assembly.make_learner_plan(spec), ports)

    async def on_rank(self, method: str, *args: Any) -> Any:
        """One collective call of the leader on this rank."""
        return await getattr(self._own, method)(*args)

    async def on_leader(self, method: str, *args: Any) -> Any:
        return await getattr(self._leader, method)(*args)


class RemoteRank:
    """RankPort of a rank in another process; a batch is put into the object store once per call."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            return await self._handle.on_rank.remote(method, *args)

        return call


class RemoteLeader:
    """The leader's LearnerWorker, in another process."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            return await self._handle.on_leader.remote(method, *args)

        return call


def spawn_replay(spec: RunSpec, namespace: str, node: str) -> ActorPort | ShardedReplay:
    """One actor, or a coordinator and its shards, which Ray restarts: what they lose their folders remember, and calls
    to them wait until they are back."""
    if spec.replay.num_shards == 1:
        return _named(ReplayActor, "replay", namespace, spec, **_only_on(node))
    shards = [
        _named(ReplayShardActor, _shard_name(shard), namespace, spec, shard, restarts=True, **_only_on(node))
        for shard in range(spec.replay.num_shards)
    ]
    coordinator = _named(ReplayCoordinatorActor, "replay", namespace, spec, namespace, restarts=True, **_only_on(node))
    return ShardedReplay(cast(ReplayCoordinator, coordinator), cast(Sequence[ShardPort], shards))


def spawn_task_feed(spec: RunSpec, namespace: str, tasks: Sequence[Task], node: str) -> ActorPort:
    return _named(TaskFeedActor, "tasks", namespace, spec, tasks, **_only_on(node))


def spawn_weight_store(spec: RunSpec, namespace: str, node: str) -> ActorPort:
    return _named(WeightStoreActor, "weights", namespace, spec, **_only_on(node))


def spawn_reward_workers(spec: RunSpec, namespace: str) -> list[ActorPort]:
    where = nodes_for("reward", spec)
    return [_named(RewardActor, f"reward-{i}", namespace, spec, **where) for i in range(spec.reward.num_workers)]


def spawn_rollout_worker(spec: RunSpec, namespace: str, worker_id: str, boxes: Boxes) -> ActorPort:
    """One worker with its engine; not restarted by Ray: the supervisor decides."""
    rollout = spec.rollout
    actor = ray.remote(RolloutActor).options(
        name=worker_id,
        namespace=namespace,
        num_cpus=rollout.num_cpus_per_worker,
        num_gpus=rollout.num_gpus_per_worker,
        runtime_env={"env_vars": _threads(rollout.engine.threads)},
        **nodes_for("rollout", spec),
    )
    return ActorPort(actor.remote(spec, worker_id, boxes))


@dataclass(frozen=True, slots=True)
class LearnerGroup:
    """Ranks that have their resources and no model yet. What the run keeps on disk lies on the node of rank 0."""

    spec: RunSpec
    ranks: tuple[Any, ...]
    node: str

    async def start(self, boxes: Boxes) -> RemoteLeader:
        """All ranks met and ready; rank 0 leads."""
        first, *others = self.ranks
        address = await first.free_address.remote() if others else None
        await asyncio.gather(*(rank.build.remote(address) for rank in self.ranks))
        await first.lead.remote(others, boxes)
        return RemoteLeader(first)


async def place_learner(spec: RunSpec, namespace: str, num_gpus_per_rank: float = 0) -> LearnerGroup:
    """First of all boxes: its resources decide where those go that share files with it."""
    env = {"env_vars": _threads(spec.learner.threads_per_rank)}
    ranks = tuple(
        ray.remote(LearnerRankActor)
        .options(
            name=f"learner-{rank}",
            namespace=namespace,
            num_cpus=1,
            num_gpus=num_gpus_per_rank,
            runtime_env=env,
            **nodes_for("learner", spec),
        )
        .remote(spec, rank)
        for rank in range(spec.learner.num_ranks)
    )
    return LearnerGroup(spec, ranks, await ranks[0].node.remote())


async def preload_frozen(replay: ActorPort | ShardedReplay, groups: Sequence[Group], chunk: int = 512) -> None:
    """Puts frozen groups into the cache in calls of bounded size."""
    for start in range(0, len(groups), chunk):
        await replay.preload(list(groups[start : start + chunk]))


def remove_on_all_nodes(folder: Path) -> None:
    """Deletes a folder of published versions and its mirrors on every living node of the cluster."""
    remove = ray.remote(num_cpus=0)(remove_versions)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    waiting = [remove.options(**_only_on(node)).remote(folder) for node in nodes]
    ray.wait(waiting, num_returns=len(waiting), timeout=REMOVE_TIMEOUT_S)


def _weights_for_this_node(spec: RunSpec, store: Any) -> Any:
    if spec.weights.transport == "shared_files":
        return store
    node = _this_node()
    return NodeMirror(
        store,
        RayChunks(),
        mirror_folder(Path(spec.weights_dir), node),
        node=node,
        keep_versions=spec.weights.keep_versions,
        always=spec.weights.transport == "object_store",
    )


def _shard_name(shard: int) -> str:
    return f"replay-shard-{shard}"


def nodes_for(role: str, spec: RunSpec) -> dict[str, Any]:
    """Ray's option that keeps processes of a role on its nodes; none where the run lets them go anywhere."""
    return {"label_selector": {ROLE_LABEL: role}} if spec.pin_roles else {}


def _named(cls: type, name: str, namespace: str, *args: Any, restarts: bool = False, **where: Any) -> ActorPort:
    actor = ray.remote(cls).options(
        name=name,
        namespace=namespace,
        num_cpus=0,
        max_restarts=-1 if restarts else 0,
        max_task_retries=-1 if restarts else 0,
        runtime_env={"env_vars": _threads(1)},
        **where,
    )
    return ActorPort(actor.remote(*args), name=name, namespace=namespace)


def _only_on(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _this_node() -> str:
    return ray.get_runtime_context().get_node_id()


def _threads(num: int) -> dict[str, str]:
    """Ray would set OMP_NUM_THREADS from num_cpus; state it instead. Threads that wait for each other sleep, because
    on a shared core a spinning one takes the time of the one it waits for."""
    return {"OMP_NUM_THREADS": str(num), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
