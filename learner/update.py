"""One update as a rank works through it: its micro-batches, and passes without gradient over all its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.advantages import Float64Array
from learner.attention import choose_backend
from learner.batch import Columns, MicroBatch, TrainingSequence, collate
from learner.config import LearnerConfig
from learner.objective import BatchPlan
from learner.packing import choose_layout, split_micro_batches
from learner.sharding import add_over_ranks


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank computes: `rank` of `world_size`, its device, and the compute dtype of its models."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype


class Update:
    """The sequences of one update; the same on every rank, until they are split into micro-batches."""

    def __init__(
        self, config: LearnerConfig, place: Place, plan: BatchPlan, sequences: Sequence[TrainingSequence]
    ) -> None:
        self._config, self._place, self._plan = config, place, plan
        self.sequences = tuple(sequences)
        layout = choose_layout(config.attention, [s.input_ids for s in sequences])
        self.shares_prefixes = layout == "shared_prompt"

    def chunks(self, sequences: Sequence[TrainingSequence]) -> list[list[TrainingSequence]]:
        """This rank's micro-batches of some of the sequences; as many as every other rank's."""
        if not sequences:
            return []
        plan = self._plan
        chunks = split_micro_batches(
            [s.input_ids for s in sequences],
            max_tokens=self._config.max_tokens_per_micro_batch,
            num_ranks=self._place.world_size,
            share_prefixes=self.shares_prefixes,
            together=[plan.groups[s.trajectory] for s in sequences] if plan.whole_groups else None,
        )
        return [[sequences[i] for i in chunk] for chunk in chunks[self._place.rank]]

    def collate(self, chunk: Sequence[TrainingSequence], columns: Columns) -> MicroBatch:
        place = self._place
        return collate(
            chunk,
            columns,
            share_prefixes=self.shares_prefixes,
            backend=choose_backend(place.device, place.dtype, share_prefixes=self.shares_prefixes),
            device=place.device,
            dtype=place.dtype,
        )

    @torch.no_grad()
    def measure(self, num_rows: int, evaluate: Callable[[MicroBatch], Tensor]) -> Float64Array:
        """[num_rows, num_trained_tokens] what `evaluate` says of all trained tokens, without gradient; collective, and
        the same on every rank.

        Args:
            evaluate: [num_rows, N] of a micro-batch's tokens.
        """
        plan, place = self._plan, self._place
        ends = np.cumsum([np.count_nonzero(mask) for mask in plan.trained])
        measured = torch.zeros(num_rows, plan.num_trained_tokens, dtype=torch.float64, device=place.device)
        for chunk in self.chunks(self.sequences):
            rows = evaluate(self.collate(chunk, {}))
            places = [torch.arange(len(s.positions)) + (ends[s.trajectory] - len(s.positions)) for s in chunk]
            if places:
                measured[:, torch.cat(places).to(place.device)] = rows.double()
        return add_over_ranks(measured, place.world_size).cpu().numpy()
