"""Ranks of the learner group: meeting, sharding a policy with FSDP2, and numbers that span the ranks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from learner.policy import Policy

AnyPolicy = TypeVar("AnyPolicy", bound=Policy)

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A rank that waits longer for the others raises, and the group is rebuilt from its last checkpoint."""


def rank_device(rank: int) -> torch.device:
    """The device of a rank: a GPU of its own where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def init_ranks(rank: int, world_size: int, init_method: str | None) -> None:
    """Joins the process group of the learner; every rank calls it. One rank alone needs none.

    Args:
        init_method: where ranks meet, e.g. "tcp://host:port" of rank 0.

    Raises:
        ValueError: several ranks without a place to meet.
    """
    if world_size == 1:
        return
    if init_method is None:
        raise ValueError(f"{world_size} ranks need an init_method such as tcp://host:port to meet at, got None")
    device = rank_device(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_tcp = init_method.startswith("tcp://")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        init_method=None if is_tcp else init_method,
        store=_meeting(init_method, rank, world_size) if is_tcp else None,
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def _meeting(address: str, rank: int, world_size: int) -> dist.TCPStore:
    """The store at tcp://host:port. It asks nobody who they are, so rank 0 listens at that address alone; torch by
    itself would at all addresses of the machine."""
    place = urlsplit(address)
    host, port = str(place.hostname), int(place.port or 0)
    listener = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family).detach()
    return dist.TCPStore(host, port, world_size, rank == 0, COLLECTIVE_TIMEOUT, master_listen_fd=listener)


def shard_policy(policy: AnyPolicy, world_size: int) -> AnyPolicy:
    """Shards every decoder layer, then the rest with the policy as root; in place. One rank keeps plain tensors.

    Embedding and head lie in the root's group together, so tied weights stay one parameter.
    """
    if world_size == 1:
        return policy
    mesh = init_device_mesh(policy.device.type, (world_size,))
    computes_lower = policy.compute_dtype != torch.float32
    precision = MixedPrecisionPolicy(
        param_dtype=policy.compute_dtype if computes_lower else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for layer in policy.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for method in ("as_teacher", "likeliest_tokens"):
        register_fsdp_forward_method(policy, method)
    return policy


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered from all ranks (a collective call); others come back as they are."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def total_grad_norm(parameters: Iterable[nn.Parameter]) -> float:
    """2-norm of all gradients over all ranks; NaN or infinite when any gradient is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return float(full_tensor(nn.utils.get_total_norm(gradients)))


def reduce_over_ranks(
    values: Mapping[str, Tensor], *, is_maximum: Callable[[str], bool], world_size: int
) -> dict[str, Tensor]:
    """Adds named scalars up over the ranks, or takes the largest where `is_maximum(name)`. All ranks name the same."""
    if world_size == 1 or not values:
        return dict(values)
    reduced: dict[str, Tensor] = {}
    for operation, wanted in ((dist.ReduceOp.SUM, False), (dist.ReduceOp.MAX, True)):
        names = sorted(name for name in values if is_maximum(name) is wanted)
        if names:
            stacked = torch.stack([values[name].double() for name in names])
            dist.all_reduce(stacked, op=operation)
            reduced |= dict(zip(names, stacked.unbind(), strict=True))
    return reduced


def add_over_ranks(values: Tensor, world_size: int) -> Tensor:
    """The sum of each element over the ranks; collective, in place."""
    if world_size > 1:
        dist.all_reduce(values)
    return values
