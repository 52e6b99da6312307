"""B7: groups inserted and sampled per second, prioritised, in an actor: our replay cache over TorchRL's buffer in one.

Both get the same groups in the form they want them (ours: records of variable length; theirs: padded tensors), prepared
off the clock, and answer with a batch whose priorities come back in a second call. Ours also writes every group and
event to its log and hands groups out by lease and commit; theirs keeps them in memory and draws with replacement. Where
torchrl is not installed, an in-process re-implementation of its documented design stands in, and the result says so.

    python -m benchmarks.replay_cache --repeats 12
    python -m benchmarks.replay_cache scale --groups 1000000      rates and memory per group of a full cache, no actor
    python -m benchmarks.replay_cache scale --groups 1000000 --order prioritised
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from actors.config import ReplayConfig
from actors.replay.config import TableConfig
from actors.replay.core import ReplayCore
from actors.replay.log import ReplayLog
from benchmarks.paired import alternate_async, environment, print_result
from rewards.trajectory import Group, Role, Source, Trajectory
from rewards.verdict import Verdict

BAR = 1.0
PROMPT, ANSWER, VOCABULARY = 32, 96, 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("compare", "scale"), default="compare")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--groups", type=int, default=2048, help="groups inserted in one repeat, or in all (scale)")
    parser.add_argument("--batch", type=int, default=32, help="groups of one insert and of one sample (default: 32)")
    parser.add_argument("--answers", type=int, default=4, help="answers of a group (default: 4)")
    parser.add_argument("--order", choices=("passes", "uniform", "prioritised"), default="passes", help="of scale")
    options = parser.parse_args()
    if options.what == "scale":
        scale(options.groups, options.batch, options.order)
    else:
        asyncio.run(compare(options.groups, options.batch, options.answers, options.repeats))


# -- against a buffer in an actor -------------------------------------------------------------------------------------


async def compare(num_groups: int, batch: int, num_answers: int, repeats: int) -> None:
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = ReplayConfig(
            groups_per_update=batch,
            quotas={"expert": Fraction(1)},
            tables={"expert": TableConfig(order="prioritised", priority="ratio")},
        )
        ours_actor = ray.remote(OurCache).options(num_cpus=0).remote(config, Path(folder))
        reference = "torchrl" if has_torchrl() else "torchrl's design, re-implemented"
        cls = TorchRLBuffer if has_torchrl() else PaddedBuffer
        width = PROMPT + 2 * ANSWER
        their_actor = ray.remote(cls).options(num_cpus=0).remote((repeats + 1) * num_groups, batch, num_answers, width)
        batches, steps = itertools.count(), itertools.count()

        async def ours() -> float:
            groups = [list(g) for g in chunks(make_groups(next(batches), num_groups, num_answers), batch)]
            began = time.perf_counter()
            for chunk in groups:
                await ours_actor.insert.remote(chunk)
                step = next(steps)
                lease_id, sampled = await ours_actor.sample.remote(step)
                await ours_actor.update.remote(step, lease_id, {group.group_id: 1.0 for group in sampled})
            return time.perf_counter() - began

        async def theirs() -> float:
            columns = [
                padded(list(g), width) for g in chunks(make_groups(next(batches), num_groups, num_answers), batch)
            ]
            began = time.perf_counter()
            for chunk in columns:
                await their_actor.insert.remote(chunk)
                sampled = await their_actor.sample.remote()
                await their_actor.update.remote(sampled["index"], np.ones(batch, np.float32))
            return time.perf_counter() - began

        ratio = await alternate_async(ours, theirs, repeats=repeats)
        rate = round(num_groups / ratio.ours_s, 1)
        print_result("B7", ratio, BAR, reference=reference, groups=num_groups, batch=batch, ours_groups_per_s=rate)
    ray.shutdown()


class OurCache:
    """The replay core with its log."""

    def __init__(self, config: ReplayConfig, folder: Path) -> None:
        self._core = ReplayCore(config, seed=0, log=ReplayLog(folder))

    def insert(self, groups: Sequence[Group]) -> None:
        self._core.preload(groups)

    def sample(self, step: int) -> tuple[str, tuple[Group, ...]]:
        batch = self._core.lease(step, 0.0)
        assert batch is not None, self._core.shortage(step)
        return batch.lease_id, batch.groups

    def update(self, step: int, lease_id: str, priorities: dict[str, float]) -> None:
        self._core.commit(step, lease_id, {}, {name: {"ratio": value} for name, value in priorities.items()})


class TorchRLBuffer:
    """TorchRL's prioritised buffer as its documentation sets it up."""

    def __init__(self, capacity: int, batch: int, num_answers: int, width: int) -> None:
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer

        del num_answers, width
        self._buffer = TensorDictPrioritizedReplayBuffer(
            alpha=1.0, beta=1.0, storage=LazyTensorStorage(capacity), batch_size=batch, priority_key="td_error"
        )

    def insert(self, columns: dict[str, np.ndarray]) -> None:
        import torch
        from tensordict import TensorDict

        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        self._buffer.extend(TensorDict(tensors, batch_size=[len(columns["tokens"])]))

    def sample(self) -> dict[str, np.ndarray]:
        sampled = self._buffer.sample()
        return {name: sampled[name].numpy() for name in ("tokens", "roles", "logprobs", "scores", "index")}

    def update(self, index: np.ndarray, priorities: np.ndarray) -> None:
        import torch

        self._buffer.update_priority(torch.from_numpy(np.array(index)), torch.from_numpy(np.array(priorities)))


class PaddedBuffer:
    """That design without the package: a ring of padded columns, a sum tree in one array, draws with replacement."""

    def __init__(self, capacity: int, batch: int, num_answers: int, width: int) -> None:
        self._leaves = 1 << (capacity - 1).bit_length()
        self._tree = np.zeros(2 * self._leaves)
        self._columns = {
            "tokens": np.zeros((capacity, num_answers, width), np.int32),
            "roles": np.zeros((capacity, num_answers, width), np.int8),
            "logprobs": np.zeros((capacity, num_answers, width), np.float32),
            "scores": np.zeros((capacity, num_answers), np.float32),
        }
        self._capacity, self._batch, self._next = capacity, batch, 0
        self._rng = np.random.default_rng(0)

    def insert(self, columns: dict[str, np.ndarray]) -> None:
        num = len(columns["tokens"])
        index = (self._next + np.arange(num)) % self._capacity
        for name, values in columns.items():
            self._columns[name][index] = values
        self._next += num
        self.update(index, np.full(num, max(1.0, self._tree[self._leaves :].max())))

    def sample(self) -> dict[str, np.ndarray]:
        mass = self._rng.random(self._batch) * self._tree[1]
        node = np.ones(self._batch, dtype=np.int64)
        while node[0] < self._leaves:
            left = 2 * node
            goes_right = mass >= self._tree[left]
            mass = np.where(goes_right, mass - self._tree[left], mass)
            node = left + goes_right
        index = node - self._leaves
        return {**{name: values[index] for name, values in self._columns.items()}, "index": index}

    def update(self, index: np.ndarray, priorities: np.ndarray) -> None:
        node = np.asarray(index) + self._leaves
        self._tree[node] = priorities
        while node[0] > 1:
            node = np.unique(node // 2)
            self._tree[node] = self._tree[2 * node] + self._tree[2 * node + 1]


# -- a full cache -----------------------------------------------------------------------------------------------------


def scale(num_groups: int, batch: int, order: Any) -> None:
    """Inserts small groups, then trains on batches of them; blocks lie on disk, the index in memory."""
    with tempfile.TemporaryDirectory() as folder:
        config = ReplayConfig(
            groups_per_update=batch,
            quotas={"expert": Fraction(1)},
            tables={"expert": TableConfig(order=order, priority="ratio")},
            memory_bytes=0,
        )
        core = ReplayCore(config, seed=0, log=ReplayLog(Path(folder)))
        before, began = resident_bytes(), time.perf_counter()
        for chunk in chunks(make_groups(0, num_groups, 1, answer=4, prompt=4), 512):
            core.preload(chunk)
        inserted_s, grown = time.perf_counter() - began, resident_bytes() - before
        num_steps = min(200, num_groups // batch)
        began = time.perf_counter()
        for step in range(num_steps):
            lease = core.lease(step, 0.0)
            assert lease is not None, core.shortage(step)
            core.commit(step, lease.lease_id, {}, {group.group_id: {"ratio": 1.0} for group in lease.groups})
        leased_s = time.perf_counter() - began
        began = time.perf_counter()
        core.snapshot()
        line = {
            "bench": "replay_scale",
            "groups": num_groups,
            "order": order,
            "inserts_per_s": round(num_groups / inserted_s, 1),
            "leased_groups_per_s": round(num_steps * batch / leased_s, 1),
            "index_bytes_per_group": round(grown / num_groups, 1),
            "disk_bytes_per_group": round(core.state.held_bytes / num_groups, 1),
            "snapshot_s": round(time.perf_counter() - began, 3),
            **environment(),
        }
        print(json.dumps(line))


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# -- groups -----------------------------------------------------------------------------------------------------------


def make_groups(
    seed: int, num_groups: int, num_answers: int, *, prompt: int = PROMPT, answer: int = ANSWER
) -> Iterator[Group]:
    """Groups of answers between half and one and a half times as long as `answer`."""
    rng = np.random.default_rng(seed)
    for number in range(num_groups):
        group_id = f"b{seed}-{number}"
        lengths = prompt + answer // 2 + rng.integers(0, answer + 1, num_answers)
        members = tuple(
            Trajectory(
                trajectory_id=f"{group_id}/{index}",
                group_id=group_id,
                source=Source.EXPERT,
                token_ids=rng.integers(0, VOCABULARY, length, dtype=np.int32),
                roles=np.where(np.arange(length) < prompt, Role.CONTEXT, Role.SAMPLED).astype(np.int8),
                behavior_logprobs=-rng.random(length, dtype=np.float32),
                verdict=Verdict.scored(float(index % 2)),
            )
            for index, length in enumerate(lengths)
        )
        yield Group(group_id=group_id, prompt_id=group_id, source=Source.EXPERT, trajectories=members)


def padded(groups: Sequence[Group], width: int) -> dict[str, np.ndarray]:
    """[groups, answers, width] columns, zeros behind each answer."""
    shape = len(groups), len(groups[0].trajectories), width
    tokens, roles = np.zeros(shape, np.int32), np.zeros(shape, np.int8)
    logprobs, scores = np.zeros(shape, np.float32), np.zeros(shape[:2], np.float32)
    for row, group in enumerate(groups):
        for column, member in enumerate(group.trajectories):
            length = len(member.token_ids)
            tokens[row, column, :length] = member.token_ids
            roles[row, column, :length] = member.roles
            logprobs[row, column, :length] = member.behavior_logprobs
            scores[row, column] = member.score or 0.0
    return {"tokens": tokens, "roles": roles, "logprobs": logprobs, "scores": scores}


def chunks(groups: Iterator[Group], size: int) -> Iterator[list[Group]]:
    while chunk := list(itertools.islice(groups, size)):
        yield chunk


def has_torchrl() -> bool:
    try:
        import torchrl.data  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
