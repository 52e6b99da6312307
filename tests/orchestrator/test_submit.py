import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.submit import PACKAGES, Submission, SubmitError, auth_token, connect
from tests.orchestrator.ray_head import TOKEN, ray_head

ROOT = Path(__file__).parents[2]

OWN_TASK = """
from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig
from learner.config import ClippedSurrogate, Term
from orchestrator.config import EvaluationConfig, RunConfig
from own_pkg.parts import WORDS
from rewards.config import RewardComponent, RewardConfig, TaskConfig
from rewards.task import Task


def load():
    return [Task(task_id=word, prompt=f"Reverse {word}.", reference=word[::-1]) for word in WORDS]


def score(answer, task):
    return sum(a == b for a, b in zip(answer, task.reference)) / len(task.reference)


def reverse() -> RunConfig:
    return RunConfig(
        name="reverse",
        model="tiny",
        tasks=TaskConfig(source="own_task:load", num_train=20, num_heldout=4),
        reward=RewardConfig(components={"letters": RewardComponent(verifier="own_task:score")}),
        terms=(Term(loss=ClippedSurrogate()),),
        rollout=RolloutConfig(
            group_size=2,
            engine=EngineConfig(kind="transformers", max_model_len=128),
            sampling=SamplingConfig(max_new_tokens=4),
        ),
        replay=ReplayConfig(groups_per_update=2),
        evaluation=EvaluationConfig(at_start=False),
        num_steps=2,
    )
"""


@pytest.fixture
def folder(tmp_path):
    """A user's folder: one file with tasks, reward and recipe, a package of their own, and what must not be sent."""
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    (tmp_path / "own_pkg").mkdir()
    words = [f"{a}{b}{c}" for a in "abc" for b in "def" for c in "ghi"]
    (tmp_path / "own_pkg" / "parts.py").write_text(f"WORDS = {words!r}\n")
    (tmp_path / "runs").mkdir()
    return tmp_path


# -- what is sent -------------------------------------------------------------------------------------------------


def submission(folder, recipe="grpo", **fields):
    return Submission(recipe=recipe, working_dir=folder, **fields)


def test_the_command_is_that_of_train(folder):
    there = submission(folder, overrides=("a.b=1", "name=two words"), name="mine", runs=Path("~/shared runs"))
    assert shlex.split(there.entrypoint()) == [
        *("python", "-m", "orchestrator.cli", "train", "grpo", "--set", "a.b=1", "--set", "name=two words"),
        *("--name", "mine", "--runs", "~/shared runs", "--address", "auto", "--no-view"),
    ]


def test_a_run_on_the_cluster_can_be_continued(folder):
    there = Submission(resume="mine", working_dir=folder, runs=Path("/shared"), overrides=("num_steps=9",))
    assert " train --resume mine --set num_steps=9 --runs /shared --address auto" in there.entrypoint()


@pytest.mark.parametrize("function", ["", ":reverse"])
def test_a_recipe_file_is_named_as_it_lies_in_the_folder_that_is_sent(folder, function, monkeypatch):
    monkeypatch.chdir(folder / "own_pkg")
    assert f" ./own_task.py{function} " in submission(folder, f"../own_task.py{function}").entrypoint()


def test_a_recipe_outside_of_what_is_sent_is_refused(folder):
    with pytest.raises(SubmitError, match=r"does not lie in .* set --working-dir"):
        submission(folder / "own_pkg", str(folder / "own_task.py")).entrypoint()


def test_names_and_modules_go_as_they_are(folder):
    assert " own_task:reverse " in submission(folder, "own_task:reverse").entrypoint()


def test_braid_is_sent_along_unless_it_is_there(folder):
    sent = submission(folder).runtime_env()
    assert sent["working_dir"] == str(folder)
    assert [Path(module).name for module in sent["py_modules"]] == list(PACKAGES)
    assert all((Path(module) / "__init__.py").is_file() for module in sent["py_modules"])
    assert "py_modules" not in submission(folder, ship_braid=False).runtime_env()
    assert "py_modules" not in submission(ROOT).runtime_env()  # the folder is a checkout itself


def test_what_stays_behind(folder):
    excludes = submission(folder, excludes=("data/raw",)).runtime_env()["excludes"]
    assert {".git", "/runs", "/.venv*", "/checkpoints", "data/raw"} <= set(excludes)


def test_a_working_dir_that_is_none(folder):
    with pytest.raises(SubmitError, match="is no folder"):
        submission(folder / "own_task.py").runtime_env()


# -- the token ----------------------------------------------------------------------------------------------------


def test_the_token_is_looked_for_where_ray_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SubmitError, match="asks for a token and there is none"):
        auth_token({})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    assert auth_token({})[0] == "from-home"
    (tmp_path / "other").write_text("from-path")
    assert auth_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")})[0] == "from-path"
    assert auth_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": "x"}) == ("given", "RAY_AUTH_TOKEN")


@pytest.mark.parametrize(
    ("address", "told"),
    [("127.0.0.1:8265", "must be the address of the dashboard"), ("http://127.0.0.1:1", "no Ray dashboard answers")],
)
def test_an_address_where_nobody_answers(address, told):
    with pytest.raises(SubmitError, match=told):
        connect(address)


# -- a real head --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head():
    folder = Path(tempfile.mkdtemp(prefix="braid-"))
    with ray_head(folder) as address:
        yield address
    shutil.rmtree(folder, ignore_errors=True)


def braid(*arguments, cwd, token: str | None = TOKEN, module=("-m", "orchestrator.cli"), **environment):
    """The command in a process of its own, as a user in another folder has it: installed, with a token at hand."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        variables.pop(name, None)
    if token is not None:
        variables["RAY_AUTH_TOKEN"] = token
    variables |= environment
    return subprocess.run(
        [sys.executable, *module, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=900
    )


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestOnARealHead:
    def test_a_users_own_task_and_reward_run_unmodified(self, head, folder, tiny_model_path):
        results = folder / "results"
        done = braid(
            *("submit", "./own_task.py", "--address", head, "--runs", str(results), "--name", "there"), cwd=folder
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Held-out accuracy" in done.stdout  # the final table came back with the log
        run = results / "there"
        assert (run / "summary.json").is_file()
        assert (run / "model" / "config.json").is_file()
        assert (run / "report.html").is_file()
        audited = braid("audit", str(run), cwd=folder)
        assert audited.returncode == 0, audited.stdout

    def test_the_thin_script_does_the_same(self, head, folder, tiny_model_path):
        results = folder / "results"
        done = braid(
            *("own_task.py", "--address", head, "--runs", str(results), "--", "--name", "thin", "--set", "num_steps=1"),
            cwd=folder,
            module=(str(ROOT / "deploy" / "submit.py"),),
            RAY_AUTH_MODE="token",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (results / "thin" / "summary.json").is_file()

    def test_what_is_refused_there_comes_back_with_its_reason_and_exit_code(self, head, folder):
        settings = ("--set", "placement=split", "--set", "rollout.num_gpus_per_worker=1")
        done = braid("submit", "./own_task.py", "--address", head, "--runs", "runs", *settings, cwd=folder)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "the run asks for 2 GPUs" in done.stdout
        assert "the cluster at" in done.stdout

    def test_a_recipe_with_a_fault_is_refused_here(self, head, folder):
        done = braid("submit", "./own_task.py", "--address", head, "--set", "num_stps=3", cwd=folder)
        assert done.returncode == 2
        assert "did you mean 'num_steps'" in done.stderr
        assert "job " not in done.stdout

    def test_a_wrong_or_missing_token_is_told(self, head, folder, tmp_path):
        wrong = braid("submit", "grpo", "--address", head, cwd=folder, token="not-the-token-of-this-cluster")
        assert wrong.returncode == 2
        assert "refuses the token in RAY_AUTH_TOKEN" in wrong.stderr
        home = tmp_path / "home"
        home.mkdir()
        missing = braid("submit", "grpo", "--address", head, cwd=folder, token=None, HOME=str(home))
        assert missing.returncode == 2
        assert "asks for a token and there is none" in missing.stderr
