import io
import json
import sys

import pytest

from orchestrator.cli import main
from recipes.arithmetic_demo import arithmetic_demo
from rewards import sandbox
from rewards.task import Task
from rewards.tasks import load_tasks


@pytest.fixture
def verify(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        code = main(["verify", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def problem() -> Task:
    return load_tasks(arithmetic_demo().tasks).train[0]


def test_a_task_of_a_recipe(verify, problem):
    code, out, _ = verify(problem.task_id, f"it is {problem.reference}")
    assert code == 0
    assert f"task       {problem.task_id}: {problem.prompt}" in out
    assert "score      1\nstatus     scored\n" in out
    assert "(final_number): scored 1, weight 1" in out


def test_plain_data(verify, problem):
    code, out, _ = verify(problem.task_id, "it is no number", "--json")
    data = json.loads(out)
    assert (code, data["score"], data["status"]) == (0, 0.0, "no_answer")
    assert [part["status"] for part in data["parts"].values()] == ["no_answer"]


def test_one_verifier_with_a_prompt_and_a_reference(verify):
    arguments = ("What is 1/2 + 1/4?", "x = 0.75", "--verifier", "math", "--reference", "3/4")
    assert "status     no_answer" in verify(*arguments)[1]
    assert "score      1" in verify(*arguments, "--option", "fallback=whole")[1]


def test_answers_from_files_and_standard_input(verify, tmp_path, monkeypatch):
    (tmp_path / "answer.txt").write_text("it is 5")
    options = ("--verifier", "final_number", "--reference", "5")
    assert "score      1" in verify("p", "@answer.txt", *options)[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO("it is 6"))
    assert "score      0" in verify("p", "-", *options)[1]


def test_gates_reasons_and_lengths_are_told(verify):
    settings = (
        "--set", "reward.components={a: {verifier: final_number}, b: {verifier: soft_overlong, gate: a, "
        "options: {max_tokens: 8, buffer_tokens: 4}}}",
    )  # fmt: skip
    _, out, _ = verify("p", "it is 6", "--reference", "5", "--num-tokens", "6", *settings)
    assert "b (soft_overlong): scored -0.5, weight 1 behind a closed gate" in out
    code, out, _ = verify("p", "it is 5", "--reference", "5", *settings)
    assert code == 1
    assert "score      none: the sample is masked\nstatus     infra_error" in out


@pytest.mark.skipif(sandbox.tier() == "none", reason="runs a program")
def test_a_task_file_with_tests(verify, tmp_path):
    tests = {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]}
    (tmp_path / "task.json").write_text(json.dumps({"prompt": "Write add.", "metadata": {"tests": tests}}))
    answer = "```python\ndef add(a, b): return a + b + 1\n```"
    code, out, _ = verify("task.json", answer, "--verifier", "code", "--set", "reward.timeout_s=30")
    assert (code, "score      0" in out, "passed: 0" in out) == (0, True, True)
    assert f"sandbox: {sandbox.tier()}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "5"), r"no task 'nowhere' among the \d+ of this recipe, e.g. arithmetic/"),
        (("missing.json", "5"), "no task in missing.json"),
        (("p", "@missing.txt", "--reference", "5"), "no answer in missing.txt"),
        (("p", "5", "--reference", "5", "--option", "a=1"), "--option a=1 belongs to --verifier"),
        (("p", "5", "--reference", "5", "--verifier", "math", "--option", "a"), "'a' must be KEY=VALUE"),
        (("p", "5", "--reference", "5", "--verifier", "maths"), "did you mean 'math'"),
    ],
)
def test_bad_input_is_told_in_one_line(verify, arguments, message):
    code, out, err = verify(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)
