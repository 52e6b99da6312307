"""Scores answers to procedurally generated problems with the generator's own scorer."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import reasoning_gym as library
from reasoning_gym.dataset import ProceduralDataset

from rewards.task import Task
from rewards.verdict import Status, Verdict


def reasoning_gym(answer: str, task: Task, *, answer_tag: str | None = None) -> Verdict:
    """The generator's score in [0, 1] for the problem in `task.metadata`.

    `metadata` holds `dataset` (generator name), `entry` (the generated problem) and `options` (generator settings).
    Generators without a scorer of their own need an exact match, and a scorer's pay for an answer that merely
    contains the reference is withheld: a list of all candidates would earn it.

    Args:
        answer_tag: judge only the text inside the last `<tag>...</tag>`; None judges the whole answer.

    Returns:
        no_answer when there is nothing to judge, rejected when the scorer raises on this answer but not on the
        reference, invalid_gold when the entry is malformed.

    Raises:
        ValueError: the scorer returned something that is not a number in [0, 1].
    """
    metadata = task.metadata
    entry = metadata.get("entry")
    if not isinstance(entry, Mapping) or "answer" not in entry or not isinstance(metadata.get("dataset"), str):
        error = "metadata needs 'dataset' (a generator's name) and 'entry' (a generated problem with 'answer')"
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": error})
    text = _inside_tag(answer, answer_tag) if answer_tag else answer.strip()
    if not text:
        return Verdict.floor(Status.NO_ANSWER)
    dataset = generator(metadata["dataset"], json.dumps(metadata.get("options", {}), sort_keys=True))
    gold = entry["answer"]
    if type(dataset).score_answer is ProceduralDataset.score_answer:
        if not isinstance(gold, str):
            return Verdict.unscored(Status.INVALID_GOLD, extras={"error": f"reference is {gold!r}, not text"})
        return Verdict.scored(float(text == gold.strip()))
    return _own_score(dataset, text, dict(entry))


@functools.lru_cache(maxsize=64)
def generator(name: str, options_json: str) -> Any:
    """The generator `name` with the options written as JSON; built once per process."""
    return library.create_dataset(name, **json.loads(options_json))


def _own_score(dataset: Any, text: str, entry: dict[str, Any]) -> Verdict:
    try:
        score = dataset.score_answer(text, entry)
    except Exception as error:  # attributed: to the entry when its own answer fails as well, else to the answer
        fault = {"error": f"{type(error).__name__}: {error}"}
        if _scores_its_own_reference(dataset, entry):
            return Verdict.floor(Status.REJECTED, extras=fault)
        return Verdict.unscored(Status.INVALID_GOLD, extras=fault)
    if not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"the scorer of {type(dataset).__name__} returned {score!r}, not a number in [0, 1]")
    if _is_pay_for_substring(float(score), text, entry["answer"]):
        return Verdict.scored(0.0, extras={"withheld": float(score)})
    return Verdict.scored(float(score))


def _scores_its_own_reference(dataset: Any, entry: dict[str, Any]) -> bool:
    try:
        dataset.score_answer(entry["answer"], entry)
    except Exception:  # attributed: an entry whose own answer cannot be scored is malformed
        return False
    return True


def _is_pay_for_substring(score: float, text: str, gold: object) -> bool:
    """Whether the score is len(gold) / len(text) for a gold inside the text, commas counted or not."""
    if not isinstance(gold, str) or score >= 1:
        return False
    pairs = ((gold, text), (gold.replace(",", ""), text.replace(",", "")))
    return any(g in t and math.isclose(score, len(g) / len(t), rel_tol=1e-9) for g, t in pairs if g and t)


def _inside_tag(answer: str, tag: str) -> str:
    """Text of the last closed block; empty when there is none."""
    before, closing, _ = answer.rpartition(f"</{tag}>")
    _, opening, inside = before.rpartition(f"<{tag}>")
    return inside.strip() if closing and opening else ""
