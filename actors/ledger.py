"""PromptLedger: what the groups sampled so far tell about each prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from rewards.trajectory import PolicyVersion

if TYPE_CHECKING:
    from actors.ports import Outcome


HISTORY = 8
"""Rates of a prompt that are remembered one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One prompt.

    Attributes:
        groups: finished groups, dropped ones included.
        attempts: answers that were scored; `successes` of them right.
        last_rate: successes per scored answer in the newest policy version's latest group; None before a score.
        last_version: the oldest version that sampled that group; None for frozen sources.
        stage: level of a curriculum, 0 at first.
        retired: not drawn any more, apart from re-entry probes.
        helped_attempts, helped_successes: as `attempts` and `successes`, of answers with help in their prompt.
        history: the rates of its last groups without help, oldest first.
    """

    prompt_id: str
    groups: int = 0
    attempts: int = 0
    successes: int = 0
    last_rate: float | None = None
    last_version: PolicyVersion | None = None
    stage: int = 0
    retired: bool = False
    helped_attempts: int = 0
    helped_successes: int = 0
    history: tuple[float, ...] = ()

    @property
    def rate(self) -> float | None:
        """Successes per attempt so far; None for an untried prompt."""
        return self.successes / self.attempts if self.attempts else None

    def after(self, outcome: Outcome) -> LedgerRow:
        """The row once this group is counted. A straggler of an older version does not replace the last rate.

        A retired prompt returns when a group says nothing of retirement that its version could have known of.
        """
        counted = replace(
            self,
            groups=self.groups + 1,
            attempts=self.attempts + outcome.num_scored,
            successes=self.successes + outcome.num_correct,
            helped_attempts=self.helped_attempts + outcome.helped_scored,
            helped_successes=self.helped_successes + outcome.helped_correct,
            stage=max(0, self.stage + outcome.stage_change),
            retired=self.retired or outcome.is_retired,
        )
        is_older = self.last_version is not None and (outcome.version is None or outcome.version < self.last_version)
        if outcome.num_scored == 0 or is_older:
            return counted
        rate = outcome.num_correct / outcome.num_scored
        return replace(
            counted,
            last_rate=rate,
            last_version=outcome.version,
            history=(*self.history, rate)[-HISTORY:],
            retired=outcome.is_retired,
        )


class PromptLedger:
    """Rows of all prompts that were tried. Whoever calls `count` makes sure that each group comes once."""

    def __init__(self) -> None:
        self._rows: dict[str, LedgerRow] = {}
        self._num_solved = self._num_retired = self._num_rated = 0
        self._sum_of_rates = 0.0

    @property
    def num_tried(self) -> int:
        return len(self._rows)

    @property
    def num_solved(self) -> int:
        """Prompts with at least one success."""
        return self._num_solved

    @property
    def num_retired(self) -> int:
        """Prompts that are not drawn any more."""
        return self._num_retired

    @property
    def mean_rate(self) -> float | None:
        """Mean of the last rates of all prompts that have one."""
        return self._sum_of_rates / self._num_rated if self._num_rated else None

    def row(self, prompt_id: str) -> LedgerRow:
        """An untried prompt has a row of zeros."""
        return self._rows.get(prompt_id) or LedgerRow(prompt_id=prompt_id)

    def rows(self) -> list[LedgerRow]:
        """In the order in which prompts were first finished."""
        return list(self._rows.values())

    def count(self, outcome: Outcome) -> None:
        self._set(self.row(outcome.prompt_id).after(outcome))

    def to_json(self) -> dict[str, Any]:
        """Names once, then one list per prompt."""
        names = [field.name for field in fields(LedgerRow)]
        return {"columns": names, "rows": [_as_lists(astuple(row)) for row in self._rows.values()]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PromptLedger:
        ledger = cls()
        for values in data["rows"]:
            row = dict(zip(data["columns"], values, strict=True))
            ledger._set(LedgerRow(**{**row, "history": tuple(row.get("history", ()))}))
        return ledger

    def _set(self, row: LedgerRow) -> None:
        before, self._rows[row.prompt_id] = self.row(row.prompt_id), row
        self._num_solved += (row.successes > 0) - (before.successes > 0)
        self._num_retired += row.retired - before.retired
        self._num_rated += (row.last_rate is not None) - (before.last_rate is not None)
        self._sum_of_rates += (row.last_rate or 0.0) - (before.last_rate or 0.0)


def _as_lists(values: tuple[Any, ...]) -> list[Any]:
    return [list(value) if isinstance(value, tuple) else value for value in values]
