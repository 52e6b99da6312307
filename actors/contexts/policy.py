"""Which place of the task stream gets which context: exact shares, and conditions on the ledger."""

from __future__ import annotations

from math import lcm

import numpy as np

from actors.contexts.config import ContextSpec, GuidanceConfig
from actors.contexts.render import PLAIN, source_text
from actors.draws import uniform
from actors.ledger import LedgerRow
from rewards.task import Task
from rewards.trajectory import Context


class GuidancePolicy:
    """Pure in the seed: the same place, task and row get the same context, whoever asks and after every restart."""

    def __init__(self, config: GuidanceConfig, seed: int) -> None:
        self._entries, self._seed = config.contexts, seed
        self._block = lcm(*(entry.share.denominator for entry in self._entries)) if self._entries else 1

    def context(self, index: int, task: Task, row: LedgerRow, epoch: int) -> Context:
        """The context of the stream's place `index`.

        Of every `block` consecutive places each entry has exactly its share, in a seeded order.
        """
        place = self._place(index)
        for entry in self._entries:
            num_places = int(entry.share * self._block)
            if place >= num_places:
                place -= num_places
                continue
            spec = entry.contexts[min(row.stage, len(entry.contexts) - 1)]
            if spec is None or not entry.when.holds(row, epoch):
                return PLAIN
            context = as_context(spec, self._seed, index)
            return context if source_text(task, context) else PLAIN
        return PLAIN

    def _place(self, index: int) -> int:
        block, offset = divmod(index, self._block)
        return int(np.random.default_rng([self._seed, block]).permutation(self._block)[offset])


def as_context(spec: ContextSpec, *key: int | str) -> Context:
    """The record's form of a spec; an amount that is a range is drawn from it by the key."""
    amount = spec.amount
    if isinstance(amount, tuple):
        amount = amount[0] + (amount[1] - amount[0]) * uniform(*key)
    has_amount = amount is not None
    return Context(
        kind=spec.kind,
        amount=amount,
        unit=spec.unit if has_amount else None,
        reference=None if spec.kind == "feedback" else spec.text,
        removed=spec.removed,
    )
