"""`braid verify`: what the reward of a recipe says of one answer, and why."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.commands import CommandError
from orchestrator.load_config import load_run_config, parse_yaml
from rewards.config import RewardComponent, RewardConfig, TaskConfig
from rewards.task import Task
from rewards.verdict import Verdict

MAX_SHOWN = 200
"""Characters of prompt and answer that are printed."""
TASK_FIELDS = ("task_id", "prompt", "reference", "metadata")


def verify(args: Namespace) -> int:
    """Judges one answer as a run would and prints the verdict; 1 when nobody could judge it."""
    config = load_run_config(args.recipe, args.set)
    reward = _only(args.verifier, args.option, config.reward) if args.verifier else config.reward
    if args.option and not args.verifier:
        raise CommandError(
            f"--option {args.option[0]} belongs to --verifier: name one, or use --set reward.components..."
        )
    task, answer = _task(args.task, args.reference, config.tasks), _answer(args.answer)
    verdict, parts = asyncio.run(_explained(reward, _with_length(task, args.num_tokens), answer))
    if args.json:
        print(json.dumps(_as_data(task, verdict, parts), indent=2))
    else:
        print("\n".join(_lines(reward, task, answer, verdict, parts)))
    return 1 if verdict.score is None else 0


async def _explained(reward: RewardConfig, task: Task, answer: str) -> tuple[Verdict, dict[str, Verdict]]:
    from actors.reward_worker import RewardWorker
    from rewards.child import ChildStartError
    from rewards.sandbox import SandboxError

    worker = RewardWorker(reward)
    try:
        await worker.start()
        return await worker.explain(task, answer)
    except (ChildStartError, SandboxError) as error:
        raise CommandError(str(error)) from error
    finally:
        await worker.close()


def _only(verifier: str, options: Sequence[str], reward: RewardConfig) -> RewardConfig:
    """The reward section with one component, under its own limits."""
    from rewards.rubric import GROUP_VERIFIERS

    values = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise CommandError(f"--option {option!r} must be KEY=VALUE; the value is YAML")
        values[key] = parse_yaml(value)
    scope = "group" if verifier in GROUP_VERIFIERS else "sample"
    component = RewardComponent(verifier=verifier, options=values, scope=scope)
    return reward.model_copy(update={"components": {verifier: component}, "pools": {}})


def _task(named: str, reference: str | None, tasks: TaskConfig) -> Task:
    if named.endswith(".json"):
        return _from_file(Path(named), reference)
    if reference is not None:
        return Task(task_id="prompt", prompt=named, reference=reference)
    from rewards.tasks import load_tasks

    found = load_tasks(tasks)
    every = {task.task_id: task for task in (*found.train, *found.heldout)}
    if named not in every:
        examples = ", ".join(list(every)[:3])
        raise CommandError(
            f"no task {named!r} among the {len(every)} of this recipe, e.g. {examples}. Name one of them with --recipe "
            "its recipe, or a .json file, or give --reference with a prompt"
        )
    return every[named]


def _from_file(path: Path, reference: str | None) -> Task:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"no task in {path}: {error}") from error
    if not isinstance(data, Mapping) or "prompt" not in data or data.keys() - set(TASK_FIELDS):
        raise CommandError(f"{path} must hold one object with 'prompt' and of {', '.join(TASK_FIELDS)} what there is")
    prompt = data["prompt"] if isinstance(data["prompt"], str) else tuple(data["prompt"])
    task = Task(
        task_id=str(data.get("task_id", path.stem)),
        prompt=prompt,
        reference=data.get("reference"),
        metadata=data.get("metadata", {}),
    )
    return task if reference is None else replace(task, reference=reference)


def _answer(named: str) -> str:
    if named == "-":
        return sys.stdin.read()
    if named.startswith("@"):
        try:
            return Path(named[1:]).read_text()
        except OSError as error:
            raise CommandError(f"no answer in {named[1:]}: {error}") from error
    return named


def _with_length(task: Task, num_tokens: int | None) -> Task:
    from rewards.verifiers.length import SAMPLE_FACTS

    if num_tokens is None:
        return task
    facts = {"num_tokens": num_tokens, "truncated": False, "finish_reason": "stop"}
    return replace(task, metadata={**task.metadata, SAMPLE_FACTS: facts})


def _as_data(task: Task, verdict: Verdict, parts: Mapping[str, Verdict]) -> dict[str, Any]:
    from rewards.wire import verdict_to_json

    components = {name: verdict_to_json(part) for name, part in parts.items()}
    return {"task_id": task.task_id, **verdict_to_json(verdict), "parts": components}


def _lines(reward: RewardConfig, task: Task, answer: str, verdict: Verdict, parts: Mapping[str, Verdict]) -> list[str]:
    lines = [
        f"task       {task.task_id}: {_short(str(task.messages[-1].get('content', '')))}",
        f"answer     {_short(answer)}",
        f"score      {'none: the sample is masked' if verdict.score is None else f'{verdict.score:g}'}",
        f"status     {verdict.status.value}",
    ]
    for name, part in parts.items():
        component = reward.components[name]
        score = "none" if part.score is None else f"{part.score:g}"
        gate = " behind a closed gate" if name in verdict.extras.get("gated", ()) else ""
        lines.append(
            f"component  {name} ({component.verifier}): {part.status.value} {score}, weight {component.weight:g}{gate}"
        )
        lines += [f"           {key}: {_short(str(value))}" for key, value in part.extras.items()]
    return lines


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
