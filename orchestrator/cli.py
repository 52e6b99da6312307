"""The `braid` command: what can be asked, and how it is answered when something is wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator import commands, evaluate_command, look_commands, train_reward, verify_answer
from orchestrator.load_config import ConfigError, make_importable
from orchestrator.run_folders import UnknownRunError
from rewards.import_path import ImportPathError

DEBUG = "BRAID_DEBUG"

EPILOG = """\
examples:
  braid train arithmetic_demo                      learn on this machine, on a Ray cluster of its own
  braid train grpo --set num_steps=20              change a setting of a recipe
  braid train ./my_recipe.py --address auto        a recipe of your own, on the Ray cluster that is running here
  braid submit ./my_recipe.py --address http://head:8265
  braid plan chord_mu                              what it would take, before it starts
  braid train --resume runs/grpo-20260101-120000   go on after a crash

A recipe is a name (`braid recipes`), a .py file, a .yaml or .json file, or module:function.
`braid COMMAND --help` says more. BRAID_DEBUG=1 shows tracebacks.
"""

SET_HELP = "change a setting, as rollout.group_size=4 or terms.0.loss.clip_high=0.3; the value is YAML; repeatable"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 refused for bad input, 130 interrupted."""
    args = make_parser().parse_args(argv)
    make_importable(Path.cwd())  # a user's own modules, as with `python -m`
    try:
        return args.command(args)
    except KeyboardInterrupt:
        return _tell(["interrupted"], 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has seen enough
        return 0
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        return _told(error)


def _told(error: Exception) -> int:
    if isinstance(error, commands.CommandError):
        return _tell([str(error)], error.exit_code)
    if isinstance(error, (ConfigError, ImportPathError, UnknownRunError)):
        return _tell([str(error)], 2)
    problems = getattr(error, "problems", None)
    if problems:
        return _tell(problems, 2)
    return _tell([f"unexpected {type(error).__name__}: {error} ({DEBUG}=1 shows where)"], 1)


def _tell(problems: Sequence[str], exit_code: int) -> int:
    for problem in problems:
        print(f"braid: {' '.join(problem.split())}", file=sys.stderr)
    return exit_code


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines, and the longest option leaves room for its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


# -- what can be asked ------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="braid",
        description="Reinforcement-learning post-training of language models on Ray, from on- and off-policy data.",
        epilog=EPILOG,
        formatter_class=_Help,
    )
    add = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(add)
    _add_submit(add)
    _add_before_a_run(add)
    _add_during_a_run(add)
    _add_measuring(add)
    _add_for_models(add)
    _add_after_a_run(add)
    return parser


def _command(
    add: argparse._SubParsersAction, name: str, function, help: str, examples: str = ""
) -> argparse.ArgumentParser:
    parser = add.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=_Help,
    )
    parser.set_defaults(command=function)
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=SET_HELP)


def _add_runs(parser: argparse.ArgumentParser, default: str = "runs", help: str = "folder of the runs") -> None:
    parser.add_argument("--runs", type=Path, default=Path(default), metavar="DIR", help=f"{help} (default: {default})")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="ADDRESS", help="an existing Ray cluster: `auto` for the one running here, or host:port"
    )


def _add_train(add: argparse._SubParsersAction) -> None:
    parser = _command(
        add,
        "train",
        commands.train,
        "train from a recipe, or continue a run",
        "  braid train arithmetic_demo\n"
        "  braid train chord_mu --set learner.optimizer.learning_rate=1e-5 --name low-rate\n"
        "  braid train ./my_run.yaml --dry-run\n"
        "  braid train --resume low-rate --set num_steps=120\n",
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name, .py or .yaml file, or module:function")
    _add_set(parser)
    parser.add_argument("--name", help="name of the run (default: the recipe's, with date and time)")
    _add_runs(parser)
    _add_address(parser)
    parser.add_argument("--resume", metavar="RUN", help="continue this run from its newest intact checkpoint")
    parser.add_argument("--local", action="store_true", help="all in this process, without Ray: for small experiments")
    parser.add_argument("--no-view", action="store_true", help="one line per step instead of the live page")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the configuration, start nothing"
    )
    parser.add_argument(
        "--no-resource-check",
        action="store_true",
        help="start although the cluster is too small now, because it grows by itself",
    )


def _add_submit(add: argparse._SubParsersAction) -> None:
    parser = _command(
        add,
        "submit",
        commands.submit,
        "train on a cluster somewhere else, through the Ray Jobs API",
        "  braid submit grpo --address http://127.0.0.1:8265\n"
        "  braid submit ./my_recipe.py --address http://head:8265 --working-dir . --runs /shared/runs\n\n"
        "The working directory is sent along (without .git, .venv, runs, checkpoints and what .gitignore names), so\n"
        "rewards and tasks of your own work unmodified. A cluster that asks for a token gets the one in\n"
        "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.\n",
    )
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="name, file in the working directory, or module:function"
    )
    _add_set(parser)
    parser.add_argument("--resume", metavar="RUN", help="continue this run, which lies in --runs on the cluster")
    parser.add_argument(
        "--address", default="http://127.0.0.1:8265", help="the cluster's dashboard (default: %(default)s)"
    )
    parser.add_argument(
        "--working-dir", type=Path, default=Path(), metavar="DIR", help="folder to send (default: this one)"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave out of it; as in .gitignore"
    )
    _add_runs(parser, "~/braid-runs", "folder on the cluster for the results; on several nodes a shared one")
    parser.add_argument("--name", help="name of the run")
    parser.add_argument("--installed", action="store_true", help="use the braid installed there, do not send this one")
    parser.add_argument("--no-wait", action="store_true", help="return when the job is accepted")


def _add_before_a_run(add: argparse._SubParsersAction) -> None:
    parser = _command(
        add,
        "plan",
        commands.plan,
        "show what a run would take and what asynchrony could gain",
        "  braid plan chord_mu\n  braid plan grpo --set rollout.num_workers=4 --train-ratio 0.5 --json\n",
    )
    parser.add_argument("recipe", metavar="RECIPE")
    _add_set(parser)
    _add_address(parser)
    parser.add_argument(
        "--train-ratio",
        type=float,
        default=1.0,
        metavar="R",
        help="time to train a batch over the time to sample it with all slots busy (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="plain data instead of tables")

    parser = _command(add, "doctor", commands.doctor, "show what is installed and what is missing")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds one import may take")
    parser.add_argument("--json", action="store_true", help="plain data instead of a table")

    parser = _command(
        add,
        "recipes",
        commands.recipes,
        "list the built-in recipes, or show one",
        "  braid recipes\n  braid recipes dapo\n",
    )
    parser.add_argument("name", nargs="?", metavar="RECIPE", help="show its whole configuration as JSON")
    _add_set(parser)

    parser = _command(
        add,
        "verify",
        verify_answer.verify,
        "judge one answer to one task, and say why",
        "  braid verify arithmetic/12+34 46\n"
        "  braid verify my-task-7 @answer.txt --recipe ./my_recipe.py\n"
        "  braid verify 'What is 1/2 + 1/4?' '\\boxed{0.75}' --verifier math --reference 3/4\n"
        "  braid verify ./task.json - --verifier code < answer.md\n",
    )
    parser.add_argument(
        "task", metavar="TASK", help="a task id of the recipe, a .json file, or with --reference a prompt"
    )
    parser.add_argument("answer", metavar="ANSWER", help="its text, @FILE, or - for standard input")
    parser.add_argument("--recipe", default="arithmetic_demo", help="whose tasks and reward (default: %(default)s)")
    _add_set(parser)
    parser.add_argument("--verifier", help="judge by this one alone: a built-in name or module:function")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of --verifier; repeatable")
    parser.add_argument("--reference", metavar="TEXT", help="the right answer, of a task that is only a prompt")
    parser.add_argument("--num-tokens", type=int, metavar="N", help="length of the answer, for rewards that ask for it")
    parser.add_argument("--json", action="store_true", help="the verdict as plain data")

    parser = _command(
        add,
        "fetch-model",
        commands.fetch_model,
        "get a model and print its folder",
        "  braid fetch-model smollm2-135m\n",
    )
    parser.add_argument("model", metavar="MODEL", help="a known name, a folder, or a hub id")


def _add_during_a_run(add: argparse._SubParsersAction) -> None:
    parser = _command(add, "status", commands.status, "show what a run is doing")
    parser.add_argument("run", metavar="RUN")
    _add_runs(parser)
    parser.add_argument("--json", action="store_true", help="everything, as plain data")

    parser = _command(
        add,
        "watch",
        look_commands.watch,
        "show the live page of a run from another terminal, until it ends",
        "  braid watch my-run\n\nReads the run's folder only; Ctrl-C leaves the run alone.\n",
    )
    parser.add_argument("run", metavar="RUN")
    _add_runs(parser)
    parser.add_argument("--no-view", action="store_true", help="one line per step instead of the live page")

    parser = _command(add, "stop", commands.stop, "end a run after the step in flight, with a checkpoint")
    parser.add_argument("run", metavar="RUN")
    _add_runs(parser)
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="how long to wait for its end; 0: not"
    )

    parser = _command(add, "ledger", commands.ledger, "show what is known of each prompt, hardest first")
    parser.add_argument("run", metavar="RUN")
    _add_runs(parser)
    parser.add_argument("--limit", type=int, default=40, metavar="N", help="rows to show (default: 40)")
    parser.add_argument("--json", action="store_true", help="all rows, as plain data")

    parser = _command(
        add,
        "scale",
        commands.scale,
        "change the number of a run's rollout or reward workers while it trains",
        "  braid scale my-run rollout=4\n  braid scale my-run rollout=2 reward=3\n\n"
        "Newcomers serve when they have verified the newest weights; who leaves finishes its groups first.\n",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("size", nargs="+", metavar="ROLE=N", help="how many workers of a role the run is to have")
    _add_runs(parser)

    parser = _command(
        add,
        "trace",
        commands.trace,
        "tell one sample's life from issue to gradient",
        "  braid trace my-run t0-5.12.0/3\n  braid trace my-run arithmetic/12+34\n",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("id", metavar="ID", help="a group, a member GROUP/N, a ticket, or a prompt")
    _add_runs(parser)


def _add_measuring(add: argparse._SubParsersAction) -> None:
    parser = _command(
        add,
        "eval",
        evaluate_command.evaluate,
        "measure pass@k of models or runs' models on held-out tasks",
        "  braid eval smollm2-135m --recipe arithmetic_demo\n"
        "  braid eval runs/grpo-20260101-120000 --samples 16 --k 1 4 16\n"
        "  braid eval grpo-1 grpo-2 dapo-1 dapo-2 --recipe grpo --out comparison\n",
    )
    parser.add_argument("target", metavar="MODEL_OR_RUN", nargs="+", help="runs of one recipe count as its seeds")
    parser.add_argument(
        "--recipe", nargs="+", help="where tasks and reward come from (default: the run's, or arithmetic_demo)"
    )
    _add_set(parser)
    _add_runs(parser)
    parser.add_argument("--which", choices=("final", "best"), default="final", help="model of a run (default: final)")
    parser.add_argument("--engine", choices=("vllm", "transformers"), help="instead of the recipe's")
    parser.add_argument("--k", type=int, nargs="+", default=[1], metavar="K", help="for pass@k (default: 1)")
    parser.add_argument("--samples", type=int, metavar="N", help="answers per task (default: the largest k)")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: 0 for one sample, 1 for several")
    parser.add_argument("--num-tasks", type=int, metavar="N", help="how many held-out tasks (default: all)")
    parser.add_argument("--majority", choices=("math", "last_number", "whole"), help="also maj@k; how answers are read")
    parser.add_argument("--reasoning", metavar="COMPONENT", help="also CoT-pass@k; what judges the reasoning")
    parser.add_argument("--contamination", action="store_true", help="look for held-out tasks the model has seen")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write report.html and cells.jsonl, and go on there")
    parser.add_argument("--json", action="store_true", help="plain data")

    parser = _command(
        add,
        "train-reward",
        train_reward.train_reward,
        "train a scalar reward model on preference pairs",
        "  braid train-reward pairs.jsonl ./reward-model --model smollm2-135m\n",
    )
    parser.add_argument("pairs", type=Path, metavar="PAIRS", help="JSON lines with prompt, chosen, rejected")
    parser.add_argument("target", type=Path, metavar="TARGET", help="an empty or new folder")
    parser.add_argument("--model", required=True, metavar="MODEL", help="what it starts from")
    parser.add_argument("--heldout", type=float, default=0.1, metavar="SHARE", help="of the prompts (default: 0.1)")
    parser.add_argument("--epochs", type=int, default=1, metavar="N", help="passes over the pairs (default: 1)")
    parser.add_argument("--pairs-per-step", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--learning-rate", type=float, default=1e-5, metavar="R", help="default: 1e-5")
    parser.add_argument("--max-length", type=int, default=4096, metavar="N", help="tokens (default: 4096)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _add_for_models(add: argparse._SubParsersAction) -> None:
    parser = _command(
        add,
        "export",
        commands.export,
        "write a run's model as a Hugging Face folder",
        "  braid export my-run ./my-model\n",
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("target", type=Path, metavar="TARGET", help="an empty or new folder")
    parser.add_argument(
        "--which",
        choices=("final", "best", "checkpoint"),
        help="default: the final model, or of an unfinished run the newest checkpoint",
    )
    _add_runs(parser)

    parser = _command(
        add,
        "merge",
        commands.merge,
        "make one model of several that were trained from the same base",
        "  braid merge ./model-a ./model-b --into ./both\n"
        "  braid merge ./model-a ./model-b --into ./both --method ram --base ./base\n",
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="folder in Hugging Face format")
    parser.add_argument("--into", type=Path, required=True, metavar="TARGET", help="an empty or new folder")
    parser.add_argument(
        "--method",
        choices=("mean", "ram"),
        default="mean",
        help="ram: keep whole what only one changed (default: mean)",
    )
    parser.add_argument("--base", type=Path, metavar="MODEL", help="what all of them were trained from, for ram")


def _add_after_a_run(add: argparse._SubParsersAction) -> None:
    parser = _command(
        add,
        "report",
        commands.report,
        "write the HTML page of a run, or one plot of several",
        "  braid report my-run\n  braid report grpo-1 grpo-2 chord-1 chord-2 --compare curves.svg\n",
    )
    parser.add_argument("run", nargs="+", metavar="RUN")
    _add_runs(parser)
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="held-out accuracy of all of them in one .svg or .png"
    )
    parser.add_argument("--over", choices=("step", "minutes"), default="step", help="horizontal axis of --compare")

    parser = _command(
        add,
        "timeline",
        look_commands.timeline,
        "write the course of a run as a trace that ui.perfetto.dev shows",
        "  braid timeline my-run\n",
    )
    parser.add_argument("run", metavar="RUN")
    _add_runs(parser)
    parser.add_argument("--into", type=Path, metavar="FILE", help="default: timeline.json in the run's folder")

    parser = _command(add, "audit", commands.audit, "check that every ticket and group of a run is accounted for")
    parser.add_argument("run", metavar="RUN")
    _add_runs(parser)


if __name__ == "__main__":
    sys.exit(main())
