"""What each `braid` command does. Heavy packages are imported by the commands that need them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.load_config import load_run_config, override, recipe_names, recipe_summary
from orchestrator.ray_environment import for_a_cluster_of_our_own, for_the_cluster_of
from orchestrator.run_folders import find_run, is_run, new_run_folder, recall_folders, remember_folders

CHANGEABLE = (
    "num_steps",
    "max_minutes",
    "evaluation",
    "checkpoint",
    "tracking",
    "rollout.num_workers",
    "rollout.concurrent_groups",
    "replay.lease_timeout_s",
    "replay.wait_timeout_s",
    "replay.ticket_timeout_s",
    "replay.memory_bytes",
    "replay.held_bytes",
    "replay.journal_bytes",
)
"""What may differ when a run is continued; anything else would mix two experiments in one history."""


class CommandError(RuntimeError):
    """An expected failure, told in one line. `exit_code` is 2 for bad input, 1 for a failed run."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# -- runs -------------------------------------------------------------------------------------------------------


def train(args: Namespace) -> int:
    """A run from a recipe, or the continuation of one; ends with its final table and report."""
    hide_progress_bars()
    config, run_dir = _resumed(args) if args.resume else _fresh(args)
    config = _laid_out(config)
    cleared = _preflight(config, args)
    if args.dry_run:
        print(config.model_dump_json(indent=2))
        return 0
    if not args.resume:
        remember_folders(run_dir, args.recipe)
    if args.local:
        from orchestrator.local_run import run_local

        asyncio.run(run_local(config, run_dir, resume=bool(args.resume), tasks=cleared.tasks))
        exit_code = 0
    else:
        if args.address is None:
            for_a_cluster_of_our_own()
        from orchestrator.launch import launch

        exit_code = launch(config, run_dir, address=args.address, resume=bool(args.resume), show_view=not args.no_view)
    _conclude(run_dir)
    return exit_code


def _fresh(args: Namespace) -> tuple[RunConfig, Path]:
    if args.recipe is None:
        raise CommandError("name a recipe (`braid recipes` lists them), or a run to continue with --resume")
    config = load_run_config(args.recipe, args.set)
    run_dir = new_run_folder(args.runs, config.name, args.name)
    if is_run(run_dir):
        raise CommandError(
            f"{run_dir} already holds a run: give another --name, or continue it with --resume {run_dir}"
        )
    return config, run_dir


def _resumed(args: Namespace) -> tuple[RunConfig, Path]:
    if args.recipe is not None or args.name is not None:
        raise CommandError(
            f"--resume {args.resume} continues with the run's own configuration: drop the recipe and --name"
        )
    run_dir = find_run(args.resume, args.runs)
    recall_folders(run_dir)
    before = load_run_config(str(run_dir / "config.json"))
    config = override(before, args.set) if args.set else before
    changed = list(_differences(before.model_dump(mode="json"), config.model_dump(mode="json")))
    frozen = [key for key in changed if not any(key == c or key.startswith(f"{c}.") for c in CHANGEABLE)]
    if frozen:
        raise CommandError(
            f"{', '.join(frozen)} cannot change when a run is continued: start a new one. "
            f"These can: {', '.join(CHANGEABLE)}"
        )
    return config, run_dir


def _differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after:
        yield path


def hide_progress_bars() -> None:
    """Those of the libraries, here and in child processes: they would be drawn into our own output."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _laid_out(config: RunConfig) -> RunConfig:
    from orchestrator.layout import apply_layout
    from orchestrator.resources import num_cores

    return apply_layout(config, num_cores())


def _preflight(config: RunConfig, args: Namespace) -> Any:
    from orchestrator.preflight import preflight

    return preflight(config, None if args.no_resource_check else _available(config, args.address))


def _available(config: RunConfig, address: str | None) -> Any:
    from orchestrator.resources import cluster_resources, local_resources, requested

    if address is None:
        return local_resources(count_gpus=any(role.gpus for role in requested(config)))
    try:
        return cluster_resources(address)
    except ConnectionError as error:
        raise CommandError(
            f"no Ray cluster at {address!r}: {error}. Start one with `ray start --head`; if it asks for a token, set "
            "RAY_AUTH_MODE=token"
        ) from error


def _conclude(run_dir: Path) -> None:
    """The final table and the report, of whatever the run came to."""
    from orchestrator.report import write_report
    from orchestrator.summary import NoSummaryError, print_summary

    try:
        write_report(run_dir)
        print_summary(run_dir)
    except NoSummaryError:
        return  # it ended before its boxes were up; what stopped it was told


def submit(args: Namespace) -> int:
    """The same as `train`, on a cluster somewhere else."""
    from orchestrator.submit import Submission, SubmitError, submit_job

    if (args.recipe is None) == (args.resume is None):
        raise CommandError("name either a recipe, or with --resume a run on the cluster")
    if args.recipe is not None:
        load_run_config(args.recipe, args.set)  # refused here rather than minutes later over there
    submission = Submission(
        recipe=args.recipe,
        resume=args.resume,
        overrides=tuple(args.set),
        working_dir=args.working_dir,
        runs=args.runs,
        name=args.name,
        excludes=tuple(args.exclude),
        ship_braid=not args.installed,
    )
    try:
        return submit_job(submission, args.address, follow=not args.no_wait)
    except SubmitError as error:
        raise CommandError(str(error)) from error


def status(args: Namespace) -> int:
    """What a run is doing now, or what it came to."""
    run_dir = find_run(args.run, args.runs)
    for_the_cluster_of(run_dir)
    from orchestrator.launch import run_status

    try:
        state = {"alive": True, **run_status(run_dir)}
    except ConnectionError:
        summary = run_dir / "summary.json"
        last = json.loads(summary.read_text()) if summary.exists() else {}
        state = {"alive": False, "phase": "not running", "last": last.get("phase", "ended before it was up"), **last}
    if args.json:
        print(json.dumps(state, indent=2, default=float))
        return 0
    for line in _status_lines(run_dir, state):
        print(line)
    return 0


def _status_lines(run_dir: Path, state: Mapping[str, Any]) -> Iterator[str]:
    yield f"run      {run_dir}"
    phase = state["phase"] if state["alive"] else f"not running; last phase: {state['last']}"
    yield f"phase    {phase}"
    if "step" in state:
        of = f" of {state['num_steps']}" if "num_steps" in state else ""
        yield f"step     {state['step']}{of}"
    if "wall_s" in state:
        yield f"trained  {state['wall_s']:.0f} s"
    for name, rate in state.get("tokens_per_s", {}).items():
        yield f"         {name} {rate:,.0f} tokens/s"
    for name, worker_state in state.get("states", {}).items():
        yield f"worker   {name} {worker_state}"
    for waiter, reason in state.get("waits", {}).items():
        yield f"waits    {waiter}: {reason}"


def stop(args: Namespace) -> int:
    """Ends a run after the step in flight, with a checkpoint."""
    run_dir = find_run(args.run, args.runs)
    for_the_cluster_of(run_dir)
    import ray

    from orchestrator.launch import stop_run, wait_stopped

    try:
        stop_run(run_dir)
    except ConnectionError as error:
        raise CommandError(str(error), exit_code=1) from error
    finally:
        ray.shutdown()  # a cluster of the run's own ends with it, and Ray ends whoever is still connected then
    if args.timeout > 0 and not wait_stopped(run_dir, args.timeout):
        raise CommandError(f"{run_dir} was told to stop but has not ended after {args.timeout:g} s", exit_code=1)
    print(f"{run_dir} stopped; continue it with `braid train --resume {run_dir}`")
    return 0


def scale(args: Namespace) -> int:
    """More or fewer workers for a run that trains."""
    sizes: dict[str, int] = {}
    for size in args.size:
        role, _, number = size.partition("=")
        if role not in ("rollout", "reward") or not number.isdecimal():
            raise CommandError(
                f"{size!r} is not a size a run can be given: write rollout=N or reward=N with a whole number N"
            )
        sizes[role] = int(number)
    run_dir = find_run(args.run, args.runs)
    for_the_cluster_of(run_dir)
    import ray

    from orchestrator.fleet import FleetSizeError
    from orchestrator.launch import scale_run

    try:
        print(scale_run(run_dir, sizes))
    except FleetSizeError as error:
        raise CommandError(str(error)) from error
    except ConnectionError as error:
        raise CommandError(str(error), exit_code=1) from error
    finally:
        ray.shutdown()
    return 0


def report(args: Namespace) -> int:
    """The HTML page of a run; with --compare one plot of several runs."""
    from orchestrator.report import write_comparison, write_report
    from orchestrator.summary import NoSummaryError

    folders = [find_run(run, args.runs) for run in args.run]
    try:
        if args.compare is not None:
            print(write_comparison(folders, args.compare, over=args.over))
        else:
            for folder in folders:
                print(write_report(folder))
    except (NoSummaryError, ValueError) as error:
        raise CommandError(str(error)) from error
    return 0


def audit(args: Namespace) -> int:
    """Is every ticket and group accounted for, and none trained on beyond its budget?"""
    from orchestrator.audit import audit_run

    try:
        result = audit_run(find_run(args.run, args.runs))
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error
    print("\n".join(result.lines()))
    return 0 if result.ok else 1


def ledger(args: Namespace) -> int:
    """What is known of each prompt, hardest first."""
    from actors.feed_state import read_ledger

    run_dir = find_run(args.run, args.runs)
    rows = [asdict(row) for row in read_ledger(run_dir / "state" / "tasks")]
    if args.json:
        print(json.dumps(rows, default=int))
        return 0
    rows.sort(key=lambda row: (row["successes"] / row["attempts"] if row["attempts"] else 2.0, row["prompt_id"]))
    width = max((len(row["prompt_id"]) for row in rows), default=6)
    print(f"{'prompt'.ljust(width)}  groups  attempts  right  last rate  helped  right  stage")
    for row in rows[: args.limit]:
        rate = "" if row["last_rate"] is None else f"{row['last_rate']:.2f}"
        counts = f"{row['groups']:6}  {row['attempts']:8}  {row['successes']:5}  {rate:>9}"
        counts += f"  {row['helped_attempts']:6}  {row['helped_successes']:5}  {row['stage']:5}"
        print(f"{row['prompt_id'].ljust(width)}  {counts}{'  retired' if row['retired'] else ''}")
    if len(rows) > args.limit:
        print(f"{len(rows) - args.limit} more; --limit shows them")
    return 0


def trace(args: Namespace) -> int:
    """One sample's life from issue to gradient."""
    from orchestrator.trace import UnknownSampleError, trace_run

    try:
        lines = trace_run(find_run(args.run, args.runs), args.id)
    except UnknownSampleError as error:
        raise CommandError(str(error)) from error
    print("\n".join(lines))
    return 0


# -- before a run -----------------------------------------------------------------------------------------------


def plan(args: Namespace) -> int:
    """What a run would take and what asynchrony could gain."""
    hide_progress_bars()
    from rich.console import Console

    from actors.renderer import Renderer
    from orchestrator.plan import make_plan
    from orchestrator.shapes import local_model_folder, model_shape, task_shape
    from rewards.tasks import load_tasks

    config = _laid_out(load_run_config(args.recipe, args.set))
    folder = local_model_folder(config.model)
    if folder is None:
        raise CommandError(
            f"model {config.model!r} is not on this machine, and without its tokenizer nothing can be counted: "
            f"`braid fetch-model {config.model}`, or --set model=FOLDER"
        )
    try:
        tasks = task_shape(load_tasks(config.tasks), Renderer(str(folder), config.tasks.system_prompt))
        made = make_plan(
            config, tasks, model_shape(folder), _available(config, args.address), train_ratio=args.train_ratio
        )
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    if args.json:
        print(made.as_json())
    else:
        made.print(Console())
    return 0


def doctor(args: Namespace) -> int:
    """What is installed and what is missing."""
    from rich.console import Console

    from orchestrator.doctor import examine, print_checks

    checks = examine(timeout_s=args.timeout)
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print_checks(checks, Console())
    return 1 if any(check.status == "missing" for check in checks) else 0


def recipes(args: Namespace) -> int:
    """Built-in recipes; with a name its whole configuration."""
    if args.name is not None:
        print(load_run_config(args.name, args.set).model_dump_json(indent=2))
        return 0
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        print(f"{name.ljust(width)}  {recipe_summary(name)}")
    return 0


def fetch_model(args: Namespace) -> int:
    """Makes a known model available in the cache."""
    from actors.model_store import ModelError, resolve_model

    try:
        print(resolve_model(args.model))
    except ModelError as error:
        raise CommandError(str(error)) from error
    return 0


# -- after a run ------------------------------------------------------------------------------------------------


def model_of(run_dir: Path, which: str) -> Path:
    """The folder of a run's final or best model.

    Raises:
        CommandError: it does not exist yet.
    """
    folder = run_dir / ("best" if which == "best" else "model")
    if not (folder / "config.json").exists():
        raise CommandError(
            f"{run_dir} has no {'best' if which == 'best' else 'trained'} model yet: it is written when "
            f"{'an evaluation finds one (evaluation.every)' if which == 'best' else 'the run ends'}. "
            "`braid export --which checkpoint` makes one from the newest checkpoint"
        )
    return folder


def export(args: Namespace) -> int:
    """A run's model as a folder that transformers and vLLM load."""
    hide_progress_bars()
    run_dir, target = find_run(args.run, args.runs), args.target.expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CommandError(f"{target} exists and is not an empty folder: name another target")
    which = args.which or ("final" if (run_dir / "model" / "config.json").exists() else "checkpoint")
    if which == "checkpoint":
        step = _export_checkpoint(run_dir, target)
        print(f"{target} (from the checkpoint after step {step})")
    else:
        shutil.copytree(model_of(run_dir, which), target, dirs_exist_ok=True)
        print(target)
    return 0


def merge(args: Namespace) -> int:
    """One model of several that were trained from the same base."""
    from learner.merge import MergeError, merge_models

    try:
        num = merge_models(args.models, args.into, method=args.method, base=args.base)
    except (MergeError, FileExistsError) as error:
        raise CommandError(str(error)) from error
    print(f"{args.into} ({num} tensors of {len(args.models)} models, {args.method})")
    return 0


def _export_checkpoint(run_dir: Path, target: Path) -> int:
    from actors.assembly import companion_folders
    from actors.model_store import resolve_model
    from actors.run_checkpoint import newest_restore_point
    from learner.trainer import Trainer

    config = load_run_config(str(run_dir / "config.json"), ["learner.num_ranks=1"])
    point = newest_restore_point(run_dir / "checkpoints")
    if point is None:
        raise CommandError(f"{run_dir} has no checkpoint and no finished model, so there is nothing to export")
    trainer = Trainer(
        config.learner,
        config.terms,
        resolve_model(config.model),
        temperature=config.rollout.sampling.temperature,
        companions=companion_folders(config.learner),
    )
    trainer.load(point.folder)
    trainer.export(target)
    return point.step
