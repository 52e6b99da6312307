"""The whole command on a Ray cluster of a node per role (raylets of this machine): weights cross between them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import pytest

from actors.spawn import ROLE_LABEL
from orchestrator.audit import audit_run
from tests.cluster.runs import SIMULATED, Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def a_node_per_role() -> Iterator[str]:
    """The address of a cluster whose nodes are labelled with the role they are for; rewards need no CPU of Ray's."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for role, num_cpus in (("reward", 0), ("rollout", 2), ("learner", 2)):
            labels = {ROLE_LABEL: role}
            cluster.add_node(num_cpus=num_cpus, object_store_memory=200 << 20, include_dashboard=False, labels=labels)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def nodes_of_actors(address: str) -> dict[str, str]:
    """The node each living actor of the cluster is on, by name; asked of Ray's own table, which needs no dashboard."""
    import ray
    from ray._private.state import actors

    ray.init(address=address, log_to_driver=False)
    try:
        alive = [each for each in actors().values() if each["State"] == "ALIVE"]
        return {each["Name"]: each["Address"]["NodeID"] for each in alive}
    finally:
        ray.shutdown()


def test_an_engine_on_another_node_gets_every_version_verified_and_probed(tmp_path, tiny_model_path, a_node_per_role):
    settings = (
        *SIMULATED,
        f"model={tiny_model_path}",
        "rollout.engine.kind=transformers",
        "rollout.engine.options={}",
        f"weights.directory={tmp_path / 'weights'}",
        "pin_roles=true",
        "num_steps=4",
    )
    run = Run(tmp_path / "runs", "far", "--address", a_node_per_role, settings=settings)
    run.wait_for_step(2, timeout_s=400)
    where = nodes_of_actors(a_node_per_role)
    mirrors = glob.glob(str(tmp_path / "weights" / "*-on-*" / "v*" / "model.safetensors"))
    assert run.wait(400) == 0, run.log
    assert mirrors, "no version was copied to a second node"
    assert len({where[name] for name in ("learner-0", "rollout-0", "reward-0")}) == 3, where
    assert where["replay"] == where["weights"] == where["learner-0"]
    assert audit_run(run.folder).ok
    activated = [line for line in run.lines("events.jsonl") if line["kind"] == "activated"]
    assert len({line["version"] for line in activated}) >= 3
    assert all(line["probe_mean_error"] < 1e-4 for line in activated)
    assert os.listdir(tmp_path / "weights") == [], "versions or mirrors were left behind"
