"""docs/your-own-task.md does what it says: its blocks are run as a reader would."""

import re
import sys
from pathlib import Path

import pytest

from orchestrator.load_config import load_run_config
from orchestrator.preflight import reward_problems
from rewards.rubric import Rubric
from rewards.tasks import load_tasks

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-task.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The reader's folder, with the page's file in it and nothing of Braid's."""
    (tmp_path / "my_task.py").write_text(blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_task", "braid_recipe_my_task"):
        sys.modules.pop(name, None)


def test_it_takes_less_than_40_lines_of_code():
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) < 40


def test_the_recipe_loads_its_tasks_and_its_reward(folder):
    config = load_run_config("./my_task.py")
    assert config.name == "reverse"
    tasks = load_tasks(config.tasks)
    assert (len(tasks.train), len(tasks.heldout)) == (600, 100)
    rubric = Rubric(config.reward)
    task = tasks.train[0]
    assert rubric.judge(task.reference, task).score == 1.0
    assert rubric.judge("", task).score == 0.0
    assert 0 < rubric.judge(task.reference[:1] + "?", task).score < 1


def test_the_yaml_changes_a_built_in_recipe(folder):
    text = next(block for block in blocks("yaml") if block.startswith("recipe:"))
    (folder / "my_run.yaml").write_text(text)
    config = load_run_config("./my_run.yaml", ["num_steps=30", "rollout.group_size=4"])
    assert (config.num_steps, config.rollout.group_size) == (30, 4)
    assert config.terms == load_run_config("dapo").terms
    assert len(load_tasks(config.tasks).train) == 100
    assert not list(reward_problems(config))


def test_the_yaml_of_a_reward_is_one(folder):
    text = next(block for block in blocks("yaml") if block.startswith("reward:"))
    (folder / "my_run.yaml").write_text("recipe: ./my_task.py\n" + text)
    config = load_run_config("my_run.yaml")
    task = load_tasks(config.tasks).train[0]
    rubric = Rubric(config.reward)
    assert rubric.judge(task.reference, task).score == pytest.approx(1.2)
    assert rubric.judge(task.reference + ".", task).score == 1.0


def test_the_task_with_an_expert_is_one():
    scope = {}
    exec(blocks("python")[1].replace("\nTask(", "\ntask = Task("), scope)
    assert scope["task"].expert[0].text == scope["task"].reference
