"""What a run asks of a cluster, and what there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.config import RolloutConfig
from orchestrator.config import RunConfig

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRequest:
    """Processes of one role with the Ray resources of each."""

    role: str
    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """Resources of a machine or a cluster.

    Attributes:
        where: for messages, e.g. "this machine".
        gpus_per_node: GPUs of each node that has any; an actor lives on one node.
        starts_with_run: the cluster is started for the run, on this machine; its CPUs are only numbers.
        memory_bytes, shm_bytes: of this machine; None where it is not known.
    """

    where: str
    cpus: float
    gpus: float
    gpus_per_node: tuple[float, ...] = ()
    starts_with_run: bool = False
    memory_bytes: int | None = None
    shm_bytes: int | None = None


def requested(config: RunConfig) -> tuple[RoleRequest, ...]:
    """Ray resources of the roles that hold any; all other processes of a run hold none."""
    rollout = config.rollout
    return (
        RoleRequest(
            role="rollout worker",
            count=rollout.num_workers,
            cpus=rollout.num_cpus_per_worker,
            gpus=rollout.num_gpus_per_worker,
        ),
        RoleRequest(role="learner rank", count=config.learner.num_ranks, cpus=1, gpus=learner_gpus_per_rank(config)),
    )


def learner_gpus_per_rank(config: RunConfig) -> float:
    """0 on CPUs, a whole GPU when split, and when colocated what the rollout workers leave of each rank's GPU."""
    if config.placement == "cpu":
        return 0.0
    if config.placement == "split":
        return 1.0
    rollout = config.rollout
    return max(0.0, 1.0 - rollout.num_workers * rollout.num_gpus_per_worker / config.learner.num_ranks)


def missing_for(rollout: RolloutConfig, num_more: int, free: Mapping[str, float]) -> str:
    """What more rollout workers need beyond `free`, Ray's resources that nobody holds; "" when it is all there."""
    wanted = {"CPU": rollout.num_cpus_per_worker, "GPU": rollout.num_gpus_per_worker}
    lacks = {name: each * num_more - free.get(name, 0.0) for name, each in wanted.items()}
    return " and ".join(f"{lack:g} {name}" for name, lack in lacks.items() if lack > 1e-9)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_resources(*, count_gpus: bool) -> Available:
    """This machine, as a cluster that starts with the run would have it.

    Args:
        count_gpus: False leaves torch alone, which alone can tell how many GPUs are usable.
    """
    gpus = 0
    if count_gpus:
        import torch

        gpus = torch.cuda.device_count()
    shm = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    return Available(
        where="this machine",
        cpus=num_cores(),
        gpus=gpus,
        gpus_per_node=(gpus,) if gpus else (),
        starts_with_run=True,
        memory_bytes=_memory_bytes(),
        shm_bytes=shm,
    )


def cluster_resources(address: str) -> Available:
    """All nodes of a running Ray cluster together; connects and disconnects.

    Raises:
        ConnectionError: no cluster there.
    """
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        where = f"the cluster at {ray.get_runtime_context().gcs_address}"
    finally:
        ray.shutdown()
    gpus = tuple(node["GPU"] for node in nodes if node.get("GPU"))
    return Available(where=where, cpus=sum(node.get("CPU", 0) for node in nodes), gpus=sum(gpus), gpus_per_node=gpus)


def _memory_bytes() -> int | None:
    """Memory this process may use: the smaller of the machine's and its control group's."""
    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(path).read_text().strip() if Path(path).is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits, default=None)
