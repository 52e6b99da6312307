"""Runs of one name on one cluster."""

import json

import pytest

from orchestrator.launch import _join
from orchestrator.run_files import RunExistsError, RunFiles
from tests.orchestrator.run_driver import make_config


@pytest.mark.parametrize(("started_in", "resume"), [(None, True), ("braid/other", True), ("braid/run", False)])
def test_a_living_run_of_this_name_is_joined_only_by_who_means_it(tmp_path, started_in, resume):
    files = RunFiles(tmp_path / "run")
    files.root.mkdir()
    if started_in is not None:
        files.cluster.write_text(json.dumps({"namespace": started_in}))
    with pytest.raises(RunExistsError, match="give another --name, or join it"):
        _join(make_config(), files, "braid/run", None, "auto", False, resume=resume)
