import re

import pytest

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from orchestrator.run_files import RunFiles, weights_directory
from orchestrator.run_folders import UnknownRunError, find_run, new_run_folder
from rewards.config import TaskConfig


@pytest.fixture
def runs(tmp_path):
    for name in ("grpo-20260101-120000", "grpo-20260102-120000", "demo"):
        (tmp_path / name / "state").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "no-run").mkdir()
    return tmp_path


def test_a_new_run_has_its_name_or_a_time_stamp(tmp_path):
    assert new_run_folder(tmp_path, "grpo", "mine") == tmp_path / "mine"
    assert re.fullmatch(r"grpo-\d{8}-\d{6}", new_run_folder(tmp_path, "grpo", None).name)


@pytest.mark.parametrize("name", ["../up", "a b", ".hidden", "a/b"])
def test_names_that_are_no_folder_are_refused(tmp_path, name):
    with pytest.raises(UnknownRunError, match="use letters"):
        new_run_folder(tmp_path, "grpo", name)


def test_by_path_by_name_and_by_recipe(runs, tmp_path):
    assert find_run(str(runs / "demo"), tmp_path / "elsewhere") == runs / "demo"
    assert find_run("demo", runs) == runs / "demo"
    assert find_run("grpo", runs).name == "grpo-20260102-120000"


def test_an_unknown_run_suggests_the_nearest(runs):
    with pytest.raises(UnknownRunError, match="did you mean 'demo'"):
        find_run("dmo", runs)
    with pytest.raises(UnknownRunError, match=r"no run 'zzzzzz': 3 runs are in"):
        find_run("zzzzzz", runs)
    with pytest.raises(UnknownRunError, match="no run 'no-run'"):
        find_run("no-run", runs)


def test_runs_of_one_name_keep_their_weights_apart(tmp_path):
    config = RunConfig(model="tiny", tasks=TaskConfig(source="arithmetic"), terms=(Term(loss=ClippedSurrogate()),))
    one, other = (weights_directory(config, RunFiles(tmp_path / place / "run")) for place in ("a", "b"))
    assert one != other
    assert one == weights_directory(config, RunFiles(tmp_path / "a" / "run"))
    assert one.name.startswith("braid-run-")
