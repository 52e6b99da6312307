"""Loads the tasks of a run and makes sure that no problem stands in both splits."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from rewards.config import TaskConfig
from rewards.import_path import load_callable
from rewards.task import Task, TaskSet


class TaskError(ValueError):
    """Tasks that cannot be trained on or judged by."""


def load_tasks(config: TaskConfig) -> TaskSet:
    """The tasks a config describes; the same for the same config, on every machine.

    A source by import path is called with `options` and returns a TaskSet, which is taken as it is, or tasks, which
    are split and cut like those of a file.

    Raises:
        ImportPathError: no such source.
        TaskError: unknown or ill-typed options, a task without id or prompt, metadata that is not JSON, repeated ids,
            an empty split, or a problem that stands in both splits.
        FileNotFoundError, ValueError: what the source itself refuses.
    """
    source = SOURCES.get(config.source)
    tasks = source(config) if source is not None else _from_import_path(config)
    tasks = decontaminated(tasks, config.decontaminate) if config.decontaminate else tasks
    _check(tasks, config)
    return tasks


def decontaminated(tasks: TaskSet, num_words: int) -> TaskSet:
    """Without training tasks whose prompt shares `num_words` words in a row with a held-out prompt.

    Source: Light-R1, Qihoo360/Light-R1 (README): exact matches and 32-grams.
    """
    seen = {words for task in tasks.heldout for words in _stretches(task, num_words)}
    train = tuple(task for task in tasks.train if seen.isdisjoint(_stretches(task, num_words)))
    return TaskSet(train=train, heldout=tasks.heldout)


def _stretches(task: Task, num_words: int) -> Iterator[tuple[str, ...]]:
    """Every run of so many words of a prompt, blind to white space and letter case."""
    words = " ".join(str(message.get("content")) for message in task.messages).casefold().split()
    return (tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1))


def _from_reasoning_gym(config: TaskConfig) -> TaskSet:
    from rewards.procedural import procedural_tasks  # two seconds to import, for this source only

    if config.name is None:
        raise TaskError("tasks.source='reasoning_gym' needs tasks.name, the name of a generator such as 'chain_sum'")
    return procedural_tasks(
        config.name,
        num_train=config.num_train,
        num_heldout=config.num_heldout,
        seed=config.seed,
        options=config.options,
    )


def _from_arithmetic(config: TaskConfig) -> TaskSet:
    from rewards.arithmetic import arithmetic_tasks  # two seconds to import, for this source only

    return _generated(arithmetic_tasks, config)


def _from_random_calculation(config: TaskConfig) -> TaskSet:
    from rewards.random_calculation import random_calculations

    return _generated(random_calculations, config)


def _from_self_play(config: TaskConfig) -> TaskSet:
    from rewards.self_play import self_play_tasks  # two seconds to import, for this source only

    return _generated(self_play_tasks, config)


def _from_text_segments(config: TaskConfig) -> TaskSet:
    from rewards.text_segments import text_segment_tasks

    return _generated(text_segment_tasks, config)


def _generated(make: Callable[..., TaskSet], config: TaskConfig) -> TaskSet:
    """Tasks of one of our own functions, which takes sizes, seed and checked options."""
    _check_options(make, config, own=("num_train", "num_heldout", "seed"))
    _check_types(make, config)
    return make(num_train=config.num_train, num_heldout=config.num_heldout, seed=config.seed, **config.options)


def _from_file(config: TaskConfig) -> TaskSet:
    from rewards.task_files import read_tasks  # two seconds to import, for this source only

    if config.name is None:
        raise TaskError("tasks.source='file' needs tasks.name, the path of a .jsonl or .parquet file")
    _check_options(read_tasks, config, own=("path",))
    _check_types(read_tasks, config)
    tasks = read_tasks(config.name, **config.options)
    if config.heldout_path is None:
        return split(tasks, num_train=config.num_train, num_heldout=config.num_heldout, seed=config.seed)
    if config.num_heldout == 0:
        raise TaskError(f"tasks.heldout_path={config.heldout_path!r} but tasks.num_heldout=0: drop one of them")
    heldout = read_tasks(config.heldout_path, **config.options)
    return TaskSet(
        train=tuple(_shuffled(tasks, config.seed)[: config.num_train]),
        heldout=tuple(_shuffled(heldout, config.seed)[: config.num_heldout]),
    )


def _from_import_path(config: TaskConfig) -> TaskSet:
    load = load_callable(config.source, purpose="task source", known_names=SOURCES)
    _check_options(load, config, own=())
    loaded = load(**config.options)
    if isinstance(loaded, TaskSet):
        return loaded
    tasks = list(loaded) if isinstance(loaded, Iterable) else [loaded]
    strangers = [type(task).__name__ for task in tasks if not isinstance(task, Task)]
    if strangers:
        raise TaskError(f"{config.source!r} must return a TaskSet or an iterable of Task, got {strangers[0]}")
    return split(tasks, num_train=config.num_train, num_heldout=config.num_heldout, seed=config.seed)


SOURCES: dict[str, Callable[[TaskConfig], TaskSet]] = {
    "arithmetic": _from_arithmetic,
    "file": _from_file,
    "random_calculation": _from_random_calculation,
    "reasoning_gym": _from_reasoning_gym,
    "self_play": _from_self_play,
    "text_segments": _from_text_segments,
}
"""Built-in sources; anything else is an import path."""


def split(tasks: Sequence[Task], *, num_train: int, num_heldout: int, seed: int) -> TaskSet:
    """A seeded split in which equal prompts stay on one side.

    Held-out tasks are chosen first, so they do not depend on `num_train`; at most `num_train` of the rest are kept.

    Raises:
        TaskError: fewer than `num_heldout` tasks can be kept aside while at least one is left to train on.
    """
    by_problem: dict[Hashable, list[Task]] = {}
    for task in _shuffled(tasks, seed):
        by_problem.setdefault(problem_id(task), []).append(task)
    heldout: list[Task] = []
    train: list[Task] = []
    for copies in by_problem.values():
        side = heldout if len(heldout) + len(copies) <= num_heldout else train
        side += copies
    if len(heldout) < num_heldout or not train:
        raise TaskError(
            f"{len(tasks)} tasks with {len(by_problem)} distinct prompts cannot be split into num_heldout="
            f"{num_heldout} and at least one to train on: lower tasks.num_heldout or supply more tasks"
        )
    return TaskSet(train=tuple(train[:num_train]), heldout=tuple(heldout))


def problem_id(task: Task) -> Hashable:
    """What makes two tasks the same problem: the words of their prompts, blind to white space and letter case."""
    return tuple((m.get("role"), " ".join(str(m.get("content")).split()).casefold()) for m in task.messages)


def _shuffled(tasks: Sequence[Task], seed: int) -> list[Task]:
    return [tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))]


def _check_options(function: Callable[..., Any], config: TaskConfig, own: Sequence[str]) -> None:
    """Options that the loading function does not take are refused by name, before it runs."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [name for name in parameters if name not in own]
    unknown = [name for name in config.options if name not in known]
    if unknown:
        raise TaskError(
            f"tasks.options.{unknown[0]} is not known to source {config.source!r}: known options are {known or 'none'}"
        )


def _check_types(function: Callable[..., Any], config: TaskConfig) -> None:
    """Options of our own functions have the annotated types."""
    hints = get_type_hints(function)
    for name, value in config.options.items():
        try:
            TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            fault = error.errors()[0]["msg"]
            raise TaskError(f"tasks.options.{name}={value!r} of source {config.source!r}: {fault}") from error


def _check(tasks: TaskSet, config: TaskConfig) -> None:
    if not tasks.train:
        raise TaskError(f"tasks.source={config.source!r} name={config.name!r} gave no training tasks")
    every = (*tasks.train, *tasks.heldout)
    for task in every:
        _check_task(task)
    ids = Counter(task.task_id for task in every)
    repeated = [task_id for task_id, count in ids.items() if count > 1]
    if repeated:
        raise TaskError(f"{len(repeated)} task ids are not unique, e.g. {repeated[:3]}: each names one ledger row")
    trained = {problem_id(task): task.task_id for task in tasks.train}
    shared = [(trained[key], task.task_id) for task in tasks.heldout if (key := problem_id(task)) in trained]
    if shared:
        raise TaskError(
            f"{len(shared)} held-out tasks have the prompt of a training task, e.g. {shared[:3]}: accuracy on them "
            "would measure memory. Remove them from one side."
        )


def _check_task(task: Task) -> None:
    is_blank = isinstance(task.prompt, str) and not task.prompt.strip()
    if not task.task_id or not task.messages or is_blank:
        raise TaskError(f"a task needs an id and a prompt, got id {task.task_id!r} and prompt {task.prompt!r}")
    try:
        json.dumps(task.metadata, allow_nan=True)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"task {task.task_id!r}: metadata must be JSON to reach the verifier's process, but {error}"
        ) from error
