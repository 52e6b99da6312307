"""Tasks from reasoning-gym's procedural generators."""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable, Mapping
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

from rewards.import_path import ImportPathError
from rewards.task import Task, TaskSet
from rewards.tasks import problem_id

MAX_REPEATS = 20
"""Draws per distinct problem wanted before a generator counts as exhausted."""
SEED_STRIDE = 1 << 20
"""Item i is drawn with seed + i: run seeds lie this far apart, so that neighbouring ones share no draws."""
OWN_OPTIONS = ("seed", "size")


def procedural_tasks(
    name: str, *, num_train: int, num_heldout: int, seed: int, options: Mapping[str, Any] | None = None
) -> TaskSet:
    """Distinct problems of one generator; the first `num_heldout` of them are kept aside.

    Each task's metadata holds what the verifier `reasoning_gym` needs: `dataset`, `options` and the generated `entry`.

    Args:
        options: settings of the generator; seed and size are set here.

    Raises:
        ImportPathError: no such generator.
        ValueError: settings it does not take, an entry that JSON cannot carry, or too few distinct problems.
    """
    options = dict(options or {})
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)
        raise ImportPathError(f"reasoning-gym has no generator {name!r}: did you mean one of {', '.join(close)}?")
    taken = [key for key in OWN_OPTIONS if key in options]
    if taken:
        raise ValueError(f"tasks.options.{taken[0]}: set tasks.seed, tasks.num_train and tasks.num_heldout instead")
    wanted = num_train + num_heldout
    size = wanted * MAX_REPEATS
    try:
        generator = reasoning_gym.create_dataset(name, seed=seed * SEED_STRIDE, size=size, **options)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"generator {name!r} does not take tasks.options={options}: {error}") from error
    tasks: dict[Hashable, Task] = {}
    for index in range(size):
        if len(tasks) == wanted:
            break
        entry = generator[index]
        if not tasks:
            _check_survives_json(name, generator, entry)
        task = _task(name, seed, index, options, entry)
        tasks.setdefault(problem_id(task), task)
    if len(tasks) < wanted:
        raise ValueError(
            f"generator {name!r} gave only {len(tasks)} distinct problems in {size} draws, {wanted} are needed: lower "
            "tasks.num_train or num_heldout, or widen tasks.options"
        )
    problems = list(tasks.values())
    return TaskSet(train=tuple(problems[num_heldout:]), heldout=tuple(problems[:num_heldout]))


def _task(name: str, seed: int, index: int, options: dict[str, Any], entry: dict[str, Any]) -> Task:
    answer = entry["answer"]
    return Task(
        task_id=f"{name}/{seed}-{index}",
        prompt=entry["question"],
        reference=answer if isinstance(answer, str) else None,
        metadata={"dataset": name, "options": options, "entry": entry},
    )


def _check_survives_json(name: str, generator: Any, entry: dict[str, Any]) -> None:
    """Entries reach the verifier's process as JSON; some scorers insist on Python types that JSON does not know."""
    try:
        copy = json.loads(json.dumps(entry))
    except TypeError as error:
        raise ValueError(
            f"generator {name!r}: its entries are not JSON ({error}), so no child can score them"
        ) from error
    answer = entry["answer"]
    if isinstance(answer, str) and generator.score_answer(answer, copy) != generator.score_answer(answer, entry):
        raise ValueError(
            f"generator {name!r}: its scorer needs Python types that JSON turns into others, so a child would refuse "
            "the right answer. Choose another generator or load it through a task source of your own."
        )
