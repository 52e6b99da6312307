import json
from types import SimpleNamespace

import pytest

from orchestrator.ray_environment import AUTH_MODE, SEVERAL_NODES, for_the_cluster_of


@pytest.fixture
def variables(monkeypatch):
    """The environment without Ray's variables; what a test sets is taken back."""
    made: dict[str, str] = {}
    monkeypatch.setattr("orchestrator.ray_environment.os", SimpleNamespace(environ=made))
    return made


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"address": "127.0.0.1:6379", "auth_mode": "token"}, {SEVERAL_NODES: "0", AUTH_MODE: "token"}),
        ({"address": "10.0.0.3:6379", "auth_mode": "token"}, {AUTH_MODE: "token"}),
        ({"address": "10.0.0.3:6379", "auth_mode": None}, {}),
        (None, {}),
    ],
)
def test_a_run_is_reached_as_its_cluster_was_started(tmp_path, variables, cluster, expected):
    if cluster is not None:
        (tmp_path / "cluster.json").write_text(json.dumps(cluster))
    for_the_cluster_of(tmp_path)
    assert variables == expected


def test_what_the_user_has_set_stays(tmp_path, variables):
    variables[AUTH_MODE] = "disabled"
    (tmp_path / "cluster.json").write_text(json.dumps({"address": "127.0.0.1:1", "auth_mode": "token"}))
    for_the_cluster_of(tmp_path)
    assert variables[AUTH_MODE] == "disabled"


def test_ray_listens_where_the_variable_says():
    """Ray names it after other systems; should it stop to read it, runs would be open to the network again."""
    from ray._private import ray_constants

    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == SEVERAL_NODES
