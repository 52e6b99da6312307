"""`braid eval`: models and runs on the held-out tasks of recipes, one cell after the other."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands import CommandError, hide_progress_bars, model_of
from orchestrator.config import RunConfig
from orchestrator.load_config import load_run_config, override
from orchestrator.run_folders import find_run, is_run, recall_folders
from rewards.statistics import Estimate

if TYPE_CHECKING:
    from orchestrator.contamination import Probe
    from orchestrator.evaluation_grid import Cell

DEFAULT_RECIPE = "arithmetic_demo"


@dataclass(frozen=True, slots=True)
class Target:
    """A model to evaluate; `own` is the configuration of the run it comes from."""

    label: str
    setting: str
    model_path: Path
    own: str | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How every model is asked."""

    ks: tuple[int, ...]
    num_samples: int
    temperature: float


def evaluate(args: Namespace) -> int:
    """pass@k of models on task sets, with 95 % intervals; several become a comparison and, with --out, a page."""
    hide_progress_bars()
    sampling = _sampling(args)
    targets = [_target(name, args) for name in args.target]
    if len({target.label for target in targets}) < len(targets):
        raise CommandError(f"a model is named twice: {', '.join(target.label for target in targets)}")
    cells, probes = [], {}
    for target in targets:
        for recipe in args.recipe or [target.own or DEFAULT_RECIPE]:
            cell, found = _cell(target, recipe, sampling, args)
            cells.append(cell)
            if found:
                probes[f"{target.label}, {cell.task_set}"] = found
            if not args.json:
                _print_cell(cell, sampling, found)
    if args.json:
        single = cells[0].results if len(cells) == 1 and not probes else None
        _print_json(cells, probes) if single is None else print(json.dumps(_plain(single), indent=2))
    if args.out is not None:
        from orchestrator.evaluation_report import write_evaluation

        note = f"{sampling.num_samples} samples per task at temperature {sampling.temperature:g}"
        print(write_evaluation(args.out / "report.html", cells, note, probes))
    return 0


def _sampling(args: Namespace) -> Sampling:
    num_samples = args.samples or max(args.k)
    if max(args.k) > num_samples:
        raise CommandError(f"pass@{max(args.k)} needs at least as many samples per task, got --samples {num_samples}")
    temperature = args.temperature if args.temperature is not None else float(num_samples > 1)
    if num_samples > 1 and temperature == 0:
        raise CommandError("--samples above 1 at --temperature 0 would draw the same answer each time: raise either")
    return Sampling(tuple(sorted(set(args.k))), num_samples, temperature)


def _target(name: str, args: Namespace) -> Target:
    from actors.model_store import ModelError, resolve_model

    folder = Path(name).expanduser()
    if is_run(folder) or is_run(args.runs.expanduser() / name):
        run_dir = find_run(name, args.runs)
        recall_folders(run_dir)
        own = run_dir / "config.json"
        setting = str(json.loads(own.read_text(encoding="utf-8")).get("name", run_dir.name))
        return Target(run_dir.name, setting, model_of(run_dir, args.which), str(own))
    try:
        return Target(name, name, resolve_model(name), None)
    except ModelError as error:
        raise CommandError(f"{error} As a run: `--runs` says where runs lie, now {args.runs}.") from error


def _cell(target: Target, recipe: str, sampling: Sampling, args: Namespace) -> tuple[Cell, list[Probe]]:
    """One model on one task set; taken from --out where it is already known."""
    from orchestrator.evaluate_model import evaluate_model
    from orchestrator.evaluation_grid import Cell, CellStore, cell_key
    from orchestrator.preflight import preflight

    config = load_run_config(recipe, args.set)
    if args.engine is not None:
        config = override(config, [f"rollout.engine.kind={args.engine}", "rollout.engine.options={}"])
    _check_reasoning(config, args.reasoning)
    task_set = config.name if recipe == target.own else Path(recipe).stem
    cleared = preflight(config.model_copy(update={"model": str(target.model_path)}), trains=False)
    tasks = cleared.tasks.heldout[: args.num_tasks]
    if not tasks:
        raise CommandError(f"{task_set}: there are no held-out tasks: raise tasks.num_heldout")
    store = CellStore(args.out / "cells.jsonl") if args.out is not None else None
    described = config.model_dump(mode="json", include={"tasks", "reward", "rollout", "evaluation", "seed"})
    key = cell_key(target.model_path, described, asdict(sampling), len(tasks), args.majority, args.reasoning, task_set)
    cell = None if store is None else store.get(key)
    if cell is None:
        results = asyncio.run(
            evaluate_model(
                config,
                target.model_path,
                tasks,
                ks=sampling.ks,
                num_samples=sampling.num_samples,
                temperature=sampling.temperature,
                majority=args.majority,
                reasoning=args.reasoning,
            )
        )
        cell = Cell(target.setting, target.label, task_set, key, results)
        if store is not None:
            store.add(cell)
    if not args.contamination:
        return cell, []
    from orchestrator.contamination import find_contamination

    return cell, asyncio.run(find_contamination(config, target.model_path, tasks))


def _check_reasoning(config: RunConfig, reasoning: str | None) -> None:
    if reasoning is not None and reasoning not in config.reward.components:
        raise CommandError(
            f"--reasoning {reasoning!r} names no component of the reward: choose from "
            f"{sorted(config.reward.components)}, or add one of weight 0 that judges the reasoning"
        )


def _print_cell(cell: Cell, sampling: Sampling, probes: Sequence[Probe]) -> None:
    num_tasks = cell.results["all"].num_tasks
    how = f"{sampling.num_samples} samples each at temperature {sampling.temperature:g}"
    print(f"{cell.target} on {cell.task_set}: {num_tasks} held-out tasks, {how}")
    for name, result in cell.results.items():
        unscored = f", {result.unscored} samples unscored" if result.unscored else ""
        for measure, k, e in _measures(result):
            label = f"{measure}@{k}"
            print(f"  {name:12} {label:11} {e.value:.3f}  [{e.low:.3f}, {e.high:.3f}]  n={e.n}{unscored}")
    for probe in probes:
        print(f"  {probe.name}: {probe.ours.value:.3f}, {probe.reading}")


def _measures(result) -> Iterator[tuple[str, int, Estimate]]:
    for measure, estimates in (("pass", result.pass_at), ("maj", result.majority_at), ("CoT-pass", result.cot_pass_at)):
        for k, estimate in estimates.items():
            yield measure, k, estimate


def _print_json(cells: Sequence[Cell], probes: Mapping[str, Sequence[Probe]]) -> None:
    data = {
        "cells": [{**asdict(cell), "results": _plain(cell.results)} for cell in cells],
        "contamination": {name: [asdict(probe) for probe in found] for name, found in probes.items()},
    }
    print(json.dumps(data, indent=2))


def _plain(results: Mapping) -> dict[str, object]:
    return {name: asdict(result) for name, result in results.items()}
