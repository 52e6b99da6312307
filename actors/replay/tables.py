"""The READY groups of one source: who is handed out next, and who has to go when there are too many."""

from __future__ import annotations

from actors.replay.config import TableConfig
from actors.replay.selectors import Candidate, Key, Rank, ReadyQueue, make_selector

REMOVAL_RANKS: dict[str, Rank] = {
    "fifo": lambda candidate: (candidate.seq,),
    "stalest": lambda candidate: (candidate.oldest, candidate.seq),
    "lowest_priority": lambda candidate: (candidate.priority, candidate.seq),
    "most_used": lambda candidate: (-candidate.turn, candidate.seq),
}
"""By `TableConfig.remove`; the smallest goes first."""


class Table:
    """READY groups alone: what is leased or trained on counts towards no limit and is never a victim.

    Args:
        source: the table's name.
        seed: of the run.
    """

    def __init__(self, config: TableConfig, source: str, seed: int, shard: int = 0) -> None:
        self._config = config
        self._selector = make_selector(config, source, seed, shard)
        self._candidates: dict[str, Candidate] = {}
        """As `_removal` and `_of_prompt` empty where nothing is ever removed."""
        self._rank = REMOVAL_RANKS[config.remove]
        self._removal = ReadyQueue(self._rank)
        self._of_prompt: dict[str, set[str]] = {}
        self.num_bytes = 0
        """Packed size of the READY groups."""

    def __len__(self) -> int:
        return len(self._selector)

    def add(self, candidate: Candidate) -> None:
        self._selector.add(candidate)
        self.num_bytes += candidate.num_bytes
        if not self._config.is_limited:
            return
        self._candidates[candidate.group_id] = candidate
        self._removal.add(candidate)
        if self._config.max_per_prompt is not None and candidate.prompt_id is not None:
            self._of_prompt.setdefault(candidate.prompt_id, set()).add(candidate.group_id)

    def remove(self, candidate: Candidate) -> None:
        group_id = candidate.group_id
        self._selector.remove(group_id)
        self.num_bytes -= candidate.num_bytes
        if not self._config.is_limited:
            return
        del self._candidates[group_id]
        self._removal.remove(group_id)
        if candidate.prompt_id in self._of_prompt:
            same_prompt = self._of_prompt[candidate.prompt_id]
            same_prompt.discard(group_id)
            if not same_prompt:
                del self._of_prompt[candidate.prompt_id]

    def heads(self, count: int, draw: int) -> list[tuple[Key, str]]:
        """The next `count` groups in order, with their keys; they stay."""
        return self._selector.heads(count, draw)

    def excess(self, prompt_id: str | None) -> dict[str, list[str]]:
        """Groups that must go now, by reason: prompt_full, table_full, table_bytes.

        Args:
            prompt_id: whose group came last; only its prompt can have become too large.
        """
        config, victims = self._config, dict[str, list[str]]()
        same_prompt = self._of_prompt.get(prompt_id or "", set())
        if config.max_per_prompt is not None and len(same_prompt) > config.max_per_prompt:
            by_rank = sorted(same_prompt, key=lambda group_id: self._rank(self._candidates[group_id]))
            victims["prompt_full"] = by_rank[: len(same_prompt) - config.max_per_prompt]
        gone = set(victims.get("prompt_full", ()))
        num, size = len(self) - len(gone), self.num_bytes - sum(self._candidates[g].num_bytes for g in gone)
        for group_id in self._next_victims(gone, num, size):
            reason = "table_full" if config.max_groups is not None and num > config.max_groups else "table_bytes"
            victims.setdefault(reason, []).append(group_id)
            num, size = num - 1, size - self._candidates[group_id].num_bytes
        return victims

    def _next_victims(self, gone: set[str], num: int, size: int) -> list[str]:
        """In removal order, until both limits hold."""
        config = self._config
        too_many = 0 if config.max_groups is None else max(0, num - config.max_groups)
        too_large = 0 if config.max_bytes is None else max(0, size - config.max_bytes)
        if not (too_many or too_large):
            return []
        chosen: list[str] = []
        asked = max(1, too_many)
        while True:
            chosen, freed = [], 0
            for _, group_id in self._removal.heads(asked + len(gone), 0):
                if group_id not in gone and (len(chosen) < too_many or freed < too_large):
                    chosen.append(group_id)
                    freed += self._candidates[group_id].num_bytes
            if (len(chosen) >= too_many and freed >= too_large) or asked >= len(self):
                return chosen
            asked *= 2
