import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator import cli, commands
from orchestrator.cli import main, make_parser
from orchestrator.load_config import load_run_config, recipe_names

OWN_TASK = """
from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig
from learner.config import ClippedSurrogate, Term
from orchestrator.config import EvaluationConfig, RunConfig
from rewards.config import RewardComponent, RewardConfig, TaskConfig
from rewards.task import Task


def load():
    def task(a, b):
        tags = {"parity": ("even", "odd")[a % 2]}
        return Task(task_id=f"{a}+{b}", prompt=f"Calculate {a} + {b}.", reference=str(a + b), tags=tags)

    return [task(a, b) for a in range(6) for b in range(6)]


def own() -> RunConfig:
    return RunConfig(
        name="own",
        model="tiny",
        tasks=TaskConfig(source="own_task:load", num_train=24, num_heldout=8),
        reward=RewardConfig(components={"right": RewardComponent(verifier="final_number")}),
        terms=(Term(loss=ClippedSurrogate()),),
        rollout=RolloutConfig(
            group_size=2,
            engine=EngineConfig(kind="transformers", max_model_len=96),
            sampling=SamplingConfig(max_new_tokens=6),
        ),
        replay=ReplayConfig(groups_per_update=2),
        evaluation=EvaluationConfig(split_by="parity"),
        num_steps=2,
    )
"""


@pytest.fixture(autouse=True)
def _own_search_path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_task", None)
    sys.modules.pop("braid_recipe_own_task", None)


@pytest.fixture
def braid(capsys, tmp_path, monkeypatch):
    """The command as a function that returns exit code, output and errors; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAID_DEBUG", raising=False)

    def run(*arguments):
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


# -- what can be asked --------------------------------------------------------------------------------------------


COMMANDS = (
    *("train", "submit", "plan", "doctor", "recipes", "fetch-model", "eval", "export"),
    *("report", "status", "stop", "audit", "ledger"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_help_lists_all_commands_and_shows_examples():
    text = make_parser().format_help()
    assert all(command in text for command in COMMANDS)
    assert "braid train arithmetic_demo" in text


def test_help_needs_none_of_the_heavy_packages():
    script = (
        "import sys\n"
        "for name in ('torch', 'ray', 'vllm', 'transformers', 'datasets'): sys.modules[name] = None\n"
        "from orchestrator.cli import main\nmain(['recipes'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in recipe_names())


def test_a_recipe_can_be_looked_at(braid):
    code, out, _ = braid("recipes", "dapo", "--set", "num_steps=7")
    assert code == 0
    assert json.loads(out)["num_steps"] == 7


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "name a recipe"),
        (["train", "grppo"], "unknown recipe 'grppo': did you mean 'grpo'?"),
        (["train", "grpo", "--set", "rollout.grop_size=3"], "unknown key 'grop_size'"),
        (["train", "./none.py"], "no file none.py"),
        (["train", "grpo", "--name", "a/b"], "run name 'a/b': use letters"),
        (["train", "--resume", "nothing"], "no run 'nothing'"),
        (["train", "grpo", "--resume", "nothing"], "continues with the run's own configuration"),
        (["train", "no_such_pkg:recipe"], "no module 'no_such_pkg'"),
        (["plan", "grpo", "--set", "model=./nowhere"], "model './nowhere' is not on this machine"),
        (["recipes", "dapoo"], "did you mean 'dapo'?"),
        (["fetch-model", "./nowhere"], "model './nowhere' is neither a known name"),
        (["eval", "tiny", "--k", "4", "--samples", "2"], "pass@4 needs at least as many samples"),
        (["eval", "tiny", "--samples", "2", "--temperature", "0"], "would draw the same answer each time"),
        (["export", "nothing", "target"], "no run 'nothing'"),
        (["report", "nothing"], "no run 'nothing'"),
        (["status", "nothing"], "no run 'nothing'"),
        (["stop", "nothing"], "no run 'nothing'"),
        (["audit", "nothing"], "no run 'nothing'"),
        (["ledger", "nothing"], "no run 'nothing'"),
        (["submit"], "name either a recipe"),
        (["submit", "grpo", "--address", "nowhere"], "must be the address of the dashboard"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(braid, arguments, told, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = braid(*arguments)
    assert code == 2
    assert told in err
    assert err.startswith("braid: ")
    assert err.count("\n") == 1
    assert out == ""


def test_several_reasons_are_several_lines(braid, tmp_path):
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    settings = ["--set", "rollout.num_gpus_per_worker=1", "--set", "rollout.rules=[drop_constnt]"]
    code, _, err = braid("train", "./own_task.py", "--local", *settings)
    assert code == 2
    assert [line.startswith("braid: ") for line in err.splitlines()] == [True, True, True]
    assert not (tmp_path / "runs").exists()


def failing(error):
    def command(args):
        raise error

    return command


def test_the_unexpected_keeps_its_traceback_for_those_who_ask(braid, monkeypatch):
    monkeypatch.setattr(commands, "recipes", failing(KeyError("x")))
    code, _, err = braid("recipes")
    assert code == 1
    assert err == "braid: unexpected KeyError: 'x' (BRAID_DEBUG=1 shows where)\n"
    monkeypatch.setenv("BRAID_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["recipes"])


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (commands.CommandError("no", exit_code=1), 1), (commands.CommandError("no"), 2)],
)
def test_exit_codes(braid, monkeypatch, error, code):
    monkeypatch.setattr(commands, "recipes", failing(error))
    assert braid("recipes")[0] == code


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m orchestrator.cli recipes dapo | head -1",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stderr == ""


# -- a run of its own ---------------------------------------------------------------------------------------------


def start(*arguments, cwd):
    """The command in a process of its own, as a user in another folder has it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_model_path):
    """A folder with a user's recipe and a finished run of two steps."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "own_task.py").write_text(OWN_TASK)
    process = start("train", "./own_task.py", "--local", "--name", "first", cwd=folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Held-out accuracy" in output
    return folder


@pytest.mark.slow
class TestAfterARun:
    @pytest.fixture
    def braid(self, run_folder, capsys, monkeypatch):
        monkeypatch.chdir(run_folder)

        def run(*arguments):
            code = main(arguments)
            out, err = capsys.readouterr()
            return code, out, err

        return run

    def test_its_folder_holds_what_the_table_names(self, run_folder):
        run = run_folder / "runs" / "first"
        for name in ("config.json", "metrics.jsonl", "summary.json", "report.html", "model", "checkpoints"):
            assert (run / name).exists(), name
        assert load_run_config(str(run / "config.json")).name == "own"

    def test_status(self, braid):
        code, out, _ = braid("status", "first")
        assert code == 0
        assert "not running; last phase: done" in out
        assert json.loads(braid("status", "first", "--json")[1])["step"] == 2

    def test_stop_of_a_run_that_is_over(self, braid):
        code, _, err = braid("stop", "first")
        assert code == 1
        assert err.count("\n") == 1

    def test_audit(self, braid):
        code, out, _ = braid("audit", "first")
        assert code == 0
        assert "every ticket and group is accounted for" in out

    def test_audit_finds_a_book_that_was_changed(self, braid, run_folder):
        batches = next((run_folder / "runs" / "first" / "checkpoints").glob("step-*/batches.json"))
        before = batches.read_text()
        try:
            batches.write_text("{}")
            assert braid("audit", "first")[0] == 1
        finally:
            batches.write_text(before)

    def test_ledger(self, braid):
        code, out, _ = braid("ledger", "first", "--limit", "2")
        assert code == 0
        assert "attempts" in out
        assert "more; --limit shows them" in out
        rows = json.loads(braid("ledger", "first", "--json")[1])
        assert sum(row["attempts"] for row in rows) >= 2 * 2 * 2  # two updates, two groups, two answers

    def test_report_and_comparison(self, braid, run_folder):
        assert braid("report", "first")[1].strip().endswith("report.html")
        assert braid("report", "first", "--compare", "curves.svg")[0] == 0
        assert (run_folder / "curves.svg").stat().st_size > 1000

    def test_export_of_the_final_model_and_of_a_checkpoint(self, braid, run_folder):
        assert braid("export", "first", "final")[0] == 0
        assert (run_folder / "final" / "model.safetensors").is_file()
        code, out, _ = braid("export", "first", "saved", "--which", "checkpoint")
        assert code == 0
        assert "from the checkpoint after step 2" in out
        final, saved = ((run_folder / f / "model.safetensors").read_bytes() for f in ("final", "saved"))
        assert final == saved
        code, _, err = braid("export", "first", "final")
        assert code == 2
        assert "is not an empty folder" in err
        assert "has no best model yet" in braid("export", "first", "best", "--which", "best")[2]

    def test_eval_of_its_model(self, braid):
        code, out, _ = braid("eval", "first", "--k", "1", "3", "--num-tasks", "4", "--json")
        assert code == 0
        result = json.loads(out)["all"]
        assert result["num_tasks"] == 4
        assert 0 <= result["pass_at"]["1"]["value"] <= result["pass_at"]["3"]["value"] <= 1

    def test_eval_keeps_what_it_has_found(self, braid, monkeypatch):
        ask = ("eval", "first", "--num-tasks", "2", "--out", "found", "--majority", "whole")
        code, out, _ = braid(*ask)
        assert code == 0
        assert "maj@1" in out
        assert Path("found/report.html").read_text().count("first · all") == 1
        monkeypatch.setattr("orchestrator.evaluate_model.answer_tasks", None)  # a known cell asks no model again
        assert braid(*ask)[:2] == (0, out)
        assert "names no component" in braid(*ask, "--reasoning", "logic")[2]

    def test_the_same_name_again_is_refused(self, braid):
        code, _, err = braid("train", "./own_task.py", "--local", "--name", "first")
        assert code == 2
        assert "already holds a run" in err

    def test_what_cannot_change_when_it_goes_on(self, braid):
        code, _, err = braid(
            "train", "--resume", "first", "--set", "replay.groups_per_update=3", "--set", "num_steps=3"
        )
        assert code == 2
        assert "braid: replay.groups_per_update cannot change" in err

    def test_it_goes_on_from_another_folder(self, braid, run_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run = str(run_folder / "runs" / "first")
        code, out, err = braid("train", "--resume", run, "--local", "--set", "num_steps=3")
        assert code == 0, err
        assert "3 of 3" in out
        assert braid("audit", run)[0] == 0
        assert load_run_config(str(run_folder / "runs" / "first" / "config.json")).num_steps == 3

    def test_dry_run_starts_nothing(self, braid, run_folder):
        code, out, _ = braid("train", "./own_task.py", "--dry-run", "--name", "dry")
        assert code == 0
        assert json.loads(out)["name"] == "own"
        assert not (run_folder / "runs" / "dry").exists()

    def test_plan_of_it(self, braid):
        code, out, _ = braid("plan", "./own_task.py")
        assert code == 0
        assert "Throughput over sampling and training in turn" in out


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
class TestDuringARun:
    """On a Ray cluster that the command starts, with the token Ray asks for."""

    def test_status_then_stop_then_further(self, tmp_path, tiny_model_path):
        (tmp_path / "own_task.py").write_text(OWN_TASK)
        endless = ("--set", "num_steps=100000", "--set", "evaluation.at_start=false", "--no-view")
        train = start("train", "./own_task.py", "--name", "long", *endless, cwd=tmp_path)
        try:
            for line in train.stdout:
                if re.match(r"step [1-9]\d*/", line):
                    break
            else:
                pytest.fail(f"the run ended with exit code {train.wait()}")
            status = start("status", "long", "--json", cwd=tmp_path)
            output, _ = status.communicate()
            assert status.returncode == 0
            state = json.loads(output[output.index("{\n") :])
            assert state["alive"]
            assert state["phase"] == "training"
            assert state["step"] >= 1
            ending = threading.Thread(target=train.communicate)  # reads on and waits, as a shell would
            ending.start()
            stop = start("stop", "long", cwd=tmp_path)
            output, _ = stop.communicate()
            assert stop.returncode == 0, output
            assert "braid train --resume" in output
            ending.join(timeout=60)
            assert train.returncode == 0
        finally:
            train.kill()
        audit = start("audit", "long", cwd=tmp_path)
        output, _ = audit.communicate()
        assert audit.returncode == 0, output
        steps = json.loads((tmp_path / "runs" / "long" / "summary.json").read_text())["step"]
        further = start("train", "--resume", "long", "--set", f"num_steps={steps + 2}", "--no-view", cwd=tmp_path)
        output, _ = further.communicate()
        assert further.returncode == 0, output
        assert json.loads((tmp_path / "runs" / "long" / "summary.json").read_text())["step"] == steps + 2
