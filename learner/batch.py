"""Groups become tensors: the one place where records, the objective's plan and the packing meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.attention import AttentionLayout, Backend, make_layout
from learner.packing import Int64Array, build_forest
from rewards.trajectory import Float32Array, Group, Int32Array, Trajectory

Columns = Mapping[str, Sequence[Float32Array]]
"""Per name one [T] array per trajectory, on the token axis of the record."""


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One trajectory as the learner conditions on it, up to the last token that is trained.

    Attributes:
        trajectory: its position in the flat list of all trajectories of the batch.
        token_ids: [L] int32: train prompt, then the rest of the record.
        record_positions: [n] int64, trained tokens on the axis of the record.
        positions: [n] int64, the same tokens on the axis of `token_ids`; each at least 1.
    """

    trajectory: int
    token_ids: Int32Array
    record_positions: Int64Array
    positions: Int64Array

    @property
    def input_ids(self) -> Int32Array:
        """[L - 1] all tokens that predict something; the last trained token predicts nothing that is used."""
        return self.token_ids[:-1]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tensors of one forward and backward pass: n nodes, M predicting nodes, U distinct predictions, N trained tokens.

    A trained token of several trajectories that share it is predicted once and read by each of them.

    Attributes:
        token_ids, position_ids: [n] int64.
        layout: who sees whom.
        predictors: [M] int64 nodes whose hidden states the head reads.
        rows: [U] int64 into `predictors`; targets: [U] int64 token ids.
        readers: [N] int64 into the U predictions.
        columns: [N] each, what the objective reads beside log-probs.
        num_logical_tokens: tokens of all its sequences, each counted alone.
    """

    token_ids: Tensor
    position_ids: Tensor
    layout: AttentionLayout
    predictors: Tensor
    rows: Tensor
    targets: Tensor
    readers: Tensor
    columns: dict[str, Tensor]
    num_logical_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes."""
        return len(self.token_ids)


def training_sequences(groups: Sequence[Group], trained: Sequence[npt.NDArray[np.bool_]]) -> list[TrainingSequence]:
    """The trajectories with at least one trained token, in the order of groups and members.

    Args:
        trained: [T] per trajectory, True on tokens whose log-prob a loss reads.

    Raises:
        ValueError: a trained token has no token before it, or lies in the part that the train prompt replaces.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    sequences = []
    for index, (trajectory, mask) in enumerate(zip(trajectories, trained, strict=True)):
        record_positions = np.flatnonzero(mask)
        if len(record_positions):
            sequences.append(_training_sequence(index, trajectory, record_positions))
    return sequences


def _training_sequence(index: int, trajectory: Trajectory, record_positions: Int64Array) -> TrainingSequence:
    start = trajectory.num_context_tokens
    prompt = trajectory.token_ids[:start]
    if trajectory.train_prompt_ids is not None:
        if record_positions[0] < start:
            raise ValueError(
                f"trajectory {trajectory.trajectory_id}: token {record_positions[0]} is trained but belongs to the "
                f"prompt of {start} tokens that train_prompt_ids replaces; mark it with another role"
            )
        prompt = np.asarray(trajectory.train_prompt_ids, np.int32)
    positions = record_positions + (len(prompt) - start)
    if positions[0] < 1:
        raise ValueError(
            f"trajectory {trajectory.trajectory_id}: its first token is trained, but nothing predicts it; "
            "give the sequence a prompt of at least one token"
        )
    token_ids = np.concatenate([prompt, trajectory.token_ids[start:]])[: positions[-1] + 1]
    return TrainingSequence(index, token_ids, record_positions, positions)


def collate(
    sequences: Sequence[TrainingSequence],
    columns: Columns,
    *,
    share_prefixes: bool,
    backend: Backend,
    device: torch.device,
    dtype: torch.dtype,
) -> MicroBatch:
    """Tensors of one micro-batch.

    Args:
        sequences: those of this micro-batch; none makes a batch of one token that trains nothing, for ranks that
            have to keep step with others.
        columns: arrays of the whole batch, on the token axis of the record.
        dtype: compute dtype of the model.
    """
    inputs = [s.input_ids for s in sequences] or [np.zeros(1, np.int32)]
    forest = build_forest(inputs, share_prefixes=share_prefixes)
    nodes = _joined(forest.paths[i][s.positions - 1] for i, s in enumerate(sequences))
    targets = _joined(s.token_ids[s.positions] for s in sequences)
    first, readers = _distinct(nodes, targets)
    predictors, rows = np.unique(nodes[first], return_inverse=True)
    flat = {
        name: np.concatenate([arrays[s.trajectory][s.record_positions] for s in sequences] or [np.empty(0)])
        for name, arrays in columns.items()
    }

    def tensor(array: npt.NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    return MicroBatch(
        token_ids=tensor(forest.token_ids, torch.int64),
        position_ids=tensor(forest.position_ids, torch.int64),
        layout=make_layout(forest.subtree_end, forest.position_ids, backend=backend, device=device, dtype=dtype),
        predictors=tensor(predictors, torch.int64),
        rows=tensor(rows, torch.int64),
        targets=tensor(targets[first], torch.int64),
        readers=tensor(readers, torch.int64),
        columns={name: tensor(array, torch.float32) for name, array in flat.items()},
        num_logical_tokens=sum(len(s.token_ids) for s in sequences),
    )


def _distinct(nodes: Int64Array, targets: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The first place of each distinct (node, target) pair, and which of them each place is."""
    _, first, inverse = np.unique(nodes << 32 | targets, return_index=True, return_inverse=True)
    return first, inverse


def _joined(arrays: Iterable[npt.NDArray[np.integer]]) -> Int64Array:
    parts = list(arrays)
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)
