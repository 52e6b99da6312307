"""Turns each class into a Ray actor with its resources, and actor handles into ports.

torch is imported by the ranks alone: every other process starts in a fraction of the time without it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import assembly
from actors.assembly import RunSpec
from actors.pools import ScorePool
from actors.remote import LOST, ActorPort, Joined, Located, end_actor, this_node
from actors.replay.cache import ReplayCache
from actors.replay.coordinator import ReplayCoordinator
from actors.replay.shard import ReplayShard, ShardPort
from actors.replay.sharded import ShardedReplay
from actors.reward_worker import RewardWorker
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.task_feed import TaskFeed
from actors.transports.object_store import NodeMirror, ShippedVersion, Shipper, mirror_folder, remove_versions
from actors.transports.tensor_file import Bytes
from actors.weights import VersionGoneError, WeightStore
from rewards.task import Task
from rewards.tasks import load_tasks
from rewards.trajectory import Group, PolicyVersion, Trajectory
from rewards.verdict import Verdict

if TYPE_CHECKING:
    from actors.learner_worker import LearnerRank, LearnerWorker

REMOVE_TIMEOUT_S = 30.0

ANSWER_TIMEOUT_S = 30.0
"""A learner rank that does not say where it is within this time is gone."""

ROLE_LABEL = "braid/role"
"""Label of a Ray node that says which role it is for: learner, rollout or reward."""

MAX_CALLS = 1 << 16
"""Calls one box serves at a time. Most of them wait (each loop of each worker for a ticket), and with Ray's 1,000 the
puts and commits that end their waits would not get in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Ports of the boxes that all workers of a run share."""

    tasks: Any
    replay: Any
    weights: Any
    scoring: tuple[Any, ...]
    report: Any


class ReplayActor(Located, ReplayCache):
    """The replay cache in a process of its own; restores itself from its folder when restarted."""

    def __init__(self, spec: RunSpec) -> None:
        directory = spec.directory / "replay"
        super().__init__(spec.replay, directory=directory, seed=spec.seed, incarnation=spec.incarnation)


class ReplayShardActor(Located, ReplayShard):
    """One shard in a process of its own; restores itself from its folder when restarted."""

    def __init__(self, spec: RunSpec, shard: int) -> None:
        super().__init__(spec.replay, directory=spec.directory / "replay", seed=spec.seed, shard=shard)


class ReplayCoordinatorActor(Located, ReplayCoordinator):
    """The coordinator of all shards in a process of its own; sums the shards when restarted.

    It finds them by name: Ray cannot restart an actor whose handles to others were arguments that went out of scope.
    """

    def __init__(self, spec: RunSpec, namespace: str) -> None:
        names = [_shard_name(shard) for shard in range(spec.replay.num_shards)]
        shards = [ActorPort(ray.get_actor(name, namespace), name=name, namespace=namespace) for name in names]
        super().__init__(spec.replay, cast(Sequence[ShardPort], shards))


class TaskFeedActor(Located, TaskFeed):
    """The task feed in a process of its own, which loads its tasks itself, so that it can be restarted whoever is
    gone."""

    def __init__(self, spec: RunSpec) -> None:
        tasks = load_tasks(spec.tasks).train
        super().__init__(tasks, **assembly.task_feed_options(spec, tasks))


class RayChunks:
    """ChunkPort over Ray's object store; the actor that puts a chunk owns it."""

    async def put(self, chunk: Bytes) -> Any:
        return await asyncio.to_thread(ray.put, chunk)

    async def get(self, reference: Any) -> Bytes:
        return await reference


class WeightStoreActor(Located, WeightStore):
    """The weight store in a process of its own, on the learner's node; ships versions to the others."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(
            Path(spec.weights_dir), state_dir=spec.directory / "weights", keep_versions=spec.weights.keep_versions
        )
        self._shipper = Shipper(RayChunks())

    async def node(self) -> str:
        return this_node()

    async def shipped(self, version: PolicyVersion) -> ShippedVersion:
        """Raises VersionGoneError when the version is not the newest any more."""
        update = await self.newest()
        if update is None or update.version != version:
            raise VersionGoneError(f"version {version} is not the newest any more")
        return await self._shipper.shipped(update)


class RewardActor(Located, RewardWorker):
    """A reward worker and its killable children in a process of its own."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__(spec.reward)
        self._num_asked = 0

    async def score(self, task: Task, answers: Sequence[str], trajectories: Sequence[Trajectory]) -> list[Verdict]:
        self._num_asked += 1
        try:
            return await super().score(task, answers, trajectories)
        finally:
            self._num_asked -= 1

    async def num_asked(self) -> int:
        """Calls that wait for their verdicts."""
        return self._num_asked


class RolloutActor(Located):
    """A rollout worker, its engine and its ports in a process of its own.

    `start` and `run` may be called again by whoever takes the place of the first caller: the second call joins what
    is going on.
    """

    def __init__(self, spec: RunSpec, worker_id: str, boxes: Boxes) -> None:
        spec = assembly.on_this_node(spec)
        self._model_path, reward = spec.model_path, spec.reward
        self._scoring = ScorePool(
            boxes.scoring, lost=LOST, num_retries=reward.num_retries, hedge_after_s=reward.hedge_worker_after_s
        )
        ports = RolloutPorts(
            tasks=boxes.tasks,
            replay=boxes.replay,
            scoring=self._scoring,
            weights=_weights_for_this_node(spec, boxes.weights),
            report=boxes.report,
        )
        self._worker: RolloutWorker = assembly.make_rollout_worker(spec, worker_id, ports)
        self._starting, self._running = Joined(), Joined()
        self._leaves = False

    async def start(self, model_path: str) -> None:
        del model_path  # the folder on the node of the caller
        await self._starting.join(lambda: self._worker.start(self._model_path))

    async def run(self, *, sample: bool = True) -> None:
        await self._running.join(lambda: self._worker.run(sample=sample))

    async def set_scoring(self, ports: Sequence[Any]) -> None:
        """From now on these reward workers judge."""
        self._scoring.resize(ports)

    async def leaves(self) -> bool:
        """Whether it was told to drain."""
        return self._leaves

    async def evaluate(self, tasks: Sequence[Task], **options: Any) -> Any:
        return await self._worker.evaluate(tasks, **options)

    async def stats(self) -> dict[str, float]:
        return await self._worker.stats()

    async def drain(self) -> None:
        self._leaves = True
        await self._worker.drain()

    async def close(self) -> None:
        await self._worker.close()


class LearnerRankActor(Located):
    """A rank of the learner group; rank 0 also leads."""

    def __init__(self, spec: RunSpec, rank: int) -> None:
        self._spec, self._rank = assembly.on_this_node(spec), rank
        self._own: LearnerRank | None = None
        self._leader: LearnerWorker | None = None
        self._running = Joined()

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
        from actors.learner_worker import LearnerPorts, LearnerWorker, RankPort
        from actors.run_checkpoint import RunCheckpointer

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
        """One call of the leader's loop; `run` joins the loop that is going on already."""
        if method == "run":
            assert self._leader is not None
            return await self._running.join(self._leader.run)
        return await getattr(self._leader, method)(*args)

    async def trains(self) -> bool:
        """Whether the leader's loop has begun."""
        return self._running.has_begun


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
        _named(ReplayShardActor, _shard_name(shard), namespace, spec, shard, **_only_on(node))
        for shard in range(spec.replay.num_shards)
    ]
    coordinator = _named(ReplayCoordinatorActor, "replay", namespace, spec, namespace, **_only_on(node))
    return ShardedReplay(cast(ReplayCoordinator, coordinator), cast(Sequence[ShardPort], shards))


def spawn_task_feed(spec: RunSpec, namespace: str, node: str) -> ActorPort:
    return _named(TaskFeedActor, "tasks", namespace, spec, **_only_on(node))


def spawn_weight_store(spec: RunSpec, namespace: str, node: str) -> ActorPort:
    return _named(WeightStoreActor, "weights", namespace, spec, **_only_on(node))


def spawn_reward_worker(spec: RunSpec, namespace: str, name: str) -> ActorPort:
    return _named(RewardActor, name, namespace, spec, **nodes_for("reward", spec))


def spawn_rollout_worker(spec: RunSpec, namespace: str, worker_id: str, boxes: Boxes) -> ActorPort:
    """One worker with its engine; not restarted by Ray: the supervisor decides."""
    rollout = spec.rollout
    actor = ray.remote(RolloutActor).options(
        name=worker_id,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=rollout.num_cpus_per_worker,
        num_gpus=rollout.num_gpus_per_worker,
        runtime_env={"env_vars": _threads(rollout.engine.threads)},
        **nodes_for("rollout", spec),
    )
    return ActorPort(actor.remote(spec, worker_id, boxes))


@dataclass(frozen=True, slots=True)
class LearnerGroup:
    """Ranks that have their resources. What the run keeps on disk lies on the node of rank 0."""

    spec: RunSpec
    namespace: str
    ranks: tuple[Any, ...]
    node: str

    async def start(self, boxes: Boxes) -> RemoteLeader:
        """All ranks met and ready; rank 0 leads."""
        first, *others = self.ranks
        address = await first.free_address.remote() if others else None
        await asyncio.gather(*(rank.build.remote(address) for rank in self.ranks))
        await first.lead.remote(others, boxes)
        return self.leader

    async def trains(self) -> bool:
        """Whether all ranks answer and their leader's loop has begun."""
        return await self.is_whole() and bool(await self.ranks[0].trains.remote())

    async def is_whole(self) -> bool:
        """Whether all ranks answer; a rank whose model is loading does not yet."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await asyncio.gather(*(rank.place.remote() for rank in self.ranks))
        except (*LOST, TimeoutError):
            return False
        return True

    @property
    def leader(self) -> RemoteLeader:
        return RemoteLeader(self.ranks[0])

    async def pids(self) -> dict[str, int]:
        places = await asyncio.gather(*(rank.place.remote() for rank in self.ranks))
        return {f"learner-{rank}": pid for rank, (_, pid) in enumerate(places)}

    async def end(self) -> None:
        """Kills every rank and waits until their names are free."""
        await asyncio.gather(*(end_actor(f"learner-{rank}", self.namespace) for rank in range(len(self.ranks))))


async def place_learner(
    spec: RunSpec, namespace: str, num_gpus_per_rank: float = 0, *, node: str | None = None
) -> LearnerGroup:
    """First of all boxes: its resources decide where those go that share files with it. Ranks that are there already
    are taken over.

    Args:
        node: of rank 0, where the run's files lie already; None lets Ray choose.
    """
    env = {"env_vars": _threads(spec.learner.threads_per_rank)}
    ranks = []
    for rank in range(spec.learner.num_ranks):
        where = _only_on(node) if node is not None and rank == 0 else nodes_for("learner", spec)
        actor = ray.remote(LearnerRankActor).options(
            name=f"learner-{rank}",
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=1,
            num_gpus=num_gpus_per_rank,
            runtime_env=env,
            **where,
        )
        ranks.append(actor.remote(spec, rank))
    place, _ = await ranks[0].place.remote()
    return LearnerGroup(spec, namespace, tuple(ranks), place)


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
    node = this_node()
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


def _named(cls: type, name: str, namespace: str, *args: Any, **where: Any) -> ActorPort:
    """A box that keeps its state on disk, or none: Ray restarts it where it died, and it lives on when the supervisor
    does not. One that is there already is taken over."""
    actor = ray.remote(cls).options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=MAX_CALLS,
        num_cpus=0,
        runtime_env={"env_vars": _threads(1)},
        **where,
    )
    return ActorPort(actor.remote(*args), name=name, namespace=namespace)


def _only_on(node: str) -> dict[str, Any]:
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _threads(num: int) -> dict[str, str]:
    """Ray would set OMP_NUM_THREADS from num_cpus; state it instead. Threads that wait for each other sleep, because
    on a shared core a spinning one takes the time of the one it waits for."""
    return {"OMP_NUM_THREADS": str(num), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
