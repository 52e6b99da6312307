"""The whole command on a Ray cluster of two nodes (two raylets of this machine): weights cross between them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import pytest

from orchestrator.audit import audit_run
from tests.cluster.runs import SIMULATED, Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """The address of a cluster whose nodes have one CPU each: learner and rollout worker cannot share one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=200 << 20, include_dashboard=False)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def test_an_engine_on_another_node_gets_every_version_verified_and_probed(tmp_path, tiny_model_path, two_nodes):
    settings = (
        *SIMULATED,
        f"model={tiny_model_path}",
        "rollout.engine.kind=transformers",
        "rollout.engine.options={}",
        f"weights.directory={tmp_path / 'weights'}",
        "num_steps=4",
    )
    run = Run(tmp_path / "runs", "far", "--address", two_nodes, settings=settings)
    run.wait_for_step(2)
    mirrors = glob.glob(str(tmp_path / "weights" / "*-on-*" / "v*" / "model.safetensors"))
    assert run.wait() == 0, run.log
    assert mirrors, "no version was copied to a second node"
    assert audit_run(run.folder).ok
    activated = [line for line in run.lines("events.jsonl") if line["kind"] == "activated"]
    assert len({line["version"] for line in activated}) >= 3
    assert all(line["probe_mean_error"] < 1e-4 for line in activated)
    assert os.listdir(tmp_path / "weights") == [], "versions or mirrors were left behind"
