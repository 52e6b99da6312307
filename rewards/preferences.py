"""Preference pairs: where they come from, which are refused, and which are worth training on."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewards.task import Message, Task
from rewards.verdict import Verdict

Refusal = Literal["equal", "empty", "not_a_pair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt, of which the first is preferred.

    Attributes:
        margin: by how much at least a reward model should tell them apart, in its own units.
        reference: the right answer, for models that read it.
        source: where the preference comes from.
    """

    pair_id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float = 0.0
    reference: str | None = None
    source: str = "file"

    @property
    def flipped(self) -> PreferencePair:
        return replace(self, chosen=self.rejected, rejected=self.chosen, source=f"{self.source}, flipped")


def read_pairs(path: Path) -> tuple[list[PreferencePair], Counter[Refusal]]:
    """Pairs of a JSON-lines file with `prompt` (text or messages), `chosen`, `rejected` and optionally `margin`,
    `reference` and `source`; those that teach nothing are counted by reason.

    Raises:
        ValueError: a line is no JSON object, or no pair is left.
    """
    pairs, refused = [], Counter[Refusal]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number + 1} is no JSON: {error}") from error
        found = _pair(row, f"{path.stem}/{number}")
        if isinstance(found, PreferencePair):
            pairs.append(found)
        else:
            refused[found] += 1
    if not pairs:
        raise ValueError(
            f"{path} holds no usable pair; refused: {dict(refused)}. A line needs prompt, chosen, rejected"
        )
    return pairs, refused


def pairs_of_group(
    task: Task, answers: Sequence[str], verdicts: Sequence[Verdict], *, least: float = 0.0
) -> list[PreferencePair]:
    """Every scored answer over every one that scored more than `least` less; unscored ones enter no pair."""
    scored = [(answer, v.score) for answer, v in zip(answers, verdicts, strict=True) if v.score is not None]
    pairs = []
    for (a, high), (b, low) in itertools.permutations(scored, 2):
        if high > low + least and a.strip() != b.strip() and a.strip() and b.strip():
            name = f"{task.task_id}/{len(pairs)}"
            pairs.append(_of_task(task, name, a, b, source="verdicts"))
    return pairs


@dataclass(frozen=True, slots=True)
class Leaf:
    """An answer at the end of a path of branches."""

    path: tuple[int, ...]
    answer: str
    score: float | None


def tree_pairs(task: Task, leaves: Sequence[Leaf]) -> list[PreferencePair]:
    """Pairs of leaves of one tree of answers, by the branch at which they part; `source` says how deep that is.

    Comparisons across branches that share a beginning say which continuation was better. Equal texts, equal scores and
    unscored leaves make no pair.

    Source: Reward Generalization in RLHF, arXiv:2402.10184: tree-structured preferences; scores of our own verifiers
    in place of annotators.
    """
    pairs = []
    for a, b in itertools.combinations(leaves, 2):
        if a.score is None or b.score is None or a.score == b.score or a.answer.strip() == b.answer.strip():
            continue
        better, worse = (a, b) if a.score > b.score else (b, a)
        shared = next((i for i, (x, y) in enumerate(zip(a.path, b.path, strict=False)) if x != y), len(a.path))
        name = f"{task.task_id}/{'.'.join(map(str, better.path))}-{'.'.join(map(str, worse.path))}"
        pairs.append(_of_task(task, name, better.answer, worse.answer, source=f"tree, parted at {shared}"))
    return pairs


def corrupted_pair(
    task: Task, right: str, rewrite: Callable[[str], str], verify: Callable[[str, Task], Verdict]
) -> PreferencePair | None:
    """A right answer over the same answer rewritten to be wrong; None where the rewriting still counts as right.

    Args:
        rewrite: an assistant model's, or `with_wrong_number`.
        verify: the rule that called `right` right; it must be sure, because the pair takes its word.

    Source: Cooper, arXiv:2508.05613, the reward model's step.
    """
    wrong = rewrite(right)
    verdict = verify(wrong, task)
    if verdict.score is None or verdict.is_right or wrong.strip() == right.strip() or not verify(right, task).is_right:
        return None
    return _of_task(task, f"{task.task_id}/corrupted", right, wrong, source="corrupted")


def with_wrong_number(answer: str, rng: np.random.Generator) -> str:
    """The answer with its last number changed by a little: a rewriting without an assistant, for numeric answers."""
    from rewards.verifiers import final_number

    match = final_number.last_number(answer)
    if match is None:
        return answer
    digits = [i for i in range(match.start(), match.end()) if answer[i].isdigit()]
    place = digits[int(rng.integers(len(digits)))]
    digit = (int(answer[place]) + int(rng.integers(1, 10))) % 10
    return f"{answer[:place]}{digit}{answer[place + 1 :]}"


def num_examples(probability: float, most: int = 8) -> int:
    """Human-verified neighbours to show an annotating model: more where the current reward model disagrees.

    `most` where it gives the pair at most one half, else ceil(most (1 - p)).

    Raises:
        ValueError: not a probability.

    Source: Skywork-Reward-V2, arXiv:2507.01352, stage 1; constants from a third party's notes.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability lies in [0, 1], got {probability}")
    return most if probability <= 0.5 else math.ceil(most * (1 - probability) - 1e-9)


@dataclass(frozen=True, slots=True)
class Curated:
    """What consistency left: pairs both models confirm, pairs both reverse (turned round), and the number of others."""

    kept: tuple[PreferencePair, ...]
    recycled: tuple[PreferencePair, ...]
    num_dropped: int


def consistent(
    pairs: Sequence[PreferencePair], latest: Sequence[float], gold: Sequence[float], *, threshold: float = 0.5
) -> Curated:
    """Keeps what the latest model and a gold model, trained on verified pairs alone, agree on.

    Args:
        latest, gold: [pairs] each model's probability that the chosen answer is the better one.

    Raises:
        ValueError: the lengths differ.

    Source: Skywork-Reward-V2, arXiv:2507.01352, stage 2.
    """
    if not len(pairs) == len(latest) == len(gold):
        raise ValueError(f"{len(pairs)} pairs need as many probabilities, got {len(latest)} and {len(gold)}")
    votes = [(pair, a > threshold, b > threshold) for pair, a, b in zip(pairs, latest, gold, strict=True)]
    kept = tuple(pair for pair, a, b in votes if a and b)
    recycled = tuple(pair.flipped for pair, a, b in votes if not a and not b)
    return Curated(kept, recycled, len(pairs) - len(kept) - len(recycled))


def _pair(row: Any, name: str) -> PreferencePair | Refusal:
    if not isinstance(row, dict) or not {"prompt", "chosen", "rejected"} <= row.keys():
        return "not_a_pair"
    prompt = row["prompt"]
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    chosen, rejected = str(row["chosen"]), str(row["rejected"])
    if not chosen.strip() or not rejected.strip() or not messages:
        return "empty"
    if chosen.strip() == rejected.strip():
        return "equal"
    return PreferencePair(
        pair_id=str(row.get("id", name)),
        messages=messages,
        chosen=chosen,
        rejected=rejected,
        margin=float(row.get("margin", 0.0)),
        reference=row.get("reference"),
        source=str(row.get("source", "file")),
    )


def _of_task(task: Task, name: str, chosen: str, rejected: str, *, source: str) -> PreferencePair:
    return PreferencePair(
        pair_id=name,
        messages=task.messages,
        chosen=chosen,
        rejected=rejected,
        reference=task.reference,
        source=source,
    )
