"""A run is closed to whoever has no token: every port it opens is tried, and its secrets are looked for everywhere."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest

from tests.cluster.runs import SIMULATED, Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

SECRETS = {
    "RAY_AUTH_TOKEN": "canary-of-the-cluster-0123456789abcdef0123456789",
    "WANDB_API_KEY": "canary0wandb0123456789abcdef0123456789abcdef",
    "HF_TOKEN": "hf_canaryOfTheHub0123456789abcdef",
    "OPENAI_API_KEY": "sk-canary-of-a-judge-0123456789abcdef",
}
"""What a user's shell may hold while a run starts."""

PUBLIC_PATHS = {"/", "/api/healthz"}
"""Answered by Ray without a token: the empty page of its dashboard, and that it is there."""

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")

PROMETHEUS = b"# HELP"
"""How numbers for Prometheus begin; Ray gives them to everybody who can reach the port."""

HTTP_PATHS = (
    *sorted(PUBLIC_PATHS),
    *(
        "/api/version",
        "/api/jobs/",
        "/api/v0/actors",
        "/api/v0/tasks",
        "/api/v0/logs",
        "/nodes?view=summary",
        "/api/cluster_status",
    ),
    *("/api/packages/gcs/x.zip", "/logs", "/worker/traceback", "/api/job_agent/jobs/", "/metrics"),
)
GRPC_METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.ActorInfoGcsService/GetAllActorInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeManagerService/ShutdownRaylet",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.LogService/ListLogs",
)


class Port(NamedTuple):
    """A listening socket of the run, and whose it is."""

    address: str
    number: int
    owner: str


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_path) -> Iterator[Run]:
    """A run that trains on two ranks, started by somebody whose environment is full of secrets."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SECRETS.items():
            patched.setenv(name, value)
        settings = (*SIMULATED, f"model={tiny_model_path}", "learner.num_ranks=2", "num_steps=100000")
        made = Run(tmp_path_factory.mktemp("security"), "closed", settings=settings)
    try:
        made.wait_for_events("activated", 1, timeout_s=1200)  # all boxes are up
        yield made
    finally:
        made.kill_everything()


def listening(run: Run) -> list[Port]:
    found = set()
    for process in run.processes():
        try:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    owner = " ".join(process.cmdline())[:120]
                    found.add(Port(connection.laddr.ip, connection.laddr.port, owner))
        except psutil.Error:
            continue  # it ended meanwhile
    return sorted(found)


def reachable(address: str) -> str:
    return "127.0.0.1" if address in ("0.0.0.0", "::", "::1") else address.removeprefix("::ffff:")


def told_over_http(port: Port) -> dict[str, tuple[int, bytes]]:
    """Status and text of each path that is answered at all without a token."""
    told = {}
    for path in HTTP_PATHS:
        connection = http.client.HTTPConnection(reachable(port.address), port.number, timeout=10)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            told[path] = (reply.status, reply.read(1 << 16))
        except (OSError, http.client.HTTPException):
            return told  # it does not speak HTTP
        finally:
            connection.close()
    return told


def asked_over_grpc(port: Port) -> tuple[int, dict[str, bytes]]:
    """How many methods ask for a token, and what those answer that do not."""
    refused, told = 0, {}
    with grpc.insecure_channel(f"{reachable(port.address)}:{port.number}") as channel:
        for method in GRPC_METHODS:
            try:
                told[method] = channel.unary_unary(method)(b"", timeout=10)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return refused, told  # it does not speak gRPC
                refused += error.code() is grpc.StatusCode.UNAUTHENTICATED
    return refused, told


def test_a_client_without_the_token_gets_nothing_from_any_port(run):
    ports = listening(run)
    assert len(ports) >= 5, "the run's ports were not found"
    asked = {"http": 0, "grpc": 0}
    open_ports = [port for port in ports if port.address not in LOOPBACK]
    assert not open_ports, "ports are open to other machines:\n" + "\n".join(map(str, open_ports))
    for port in ports:
        for path, (status, text) in told_over_http(port).items():
            asked["http"] += 1
            if status == 200 and not text.startswith(PROMETHEUS):
                assert path in PUBLIC_PATHS, f"{port} answers {path}: {text[:200]!r}"
                assert b"closed" not in text, f"{port} names the run under {path}"
            assert not any(secret.encode() in text for secret in SECRETS.values())
        refused, told = asked_over_grpc(port)
        asked["grpc"] += refused
        assert not told, f"{port} answers {list(told)}"
    assert min(asked.values()) > 0, "no port speaks HTTP or none speaks gRPC: the test asks in vain"


def test_its_owner_reaches_it_from_another_process(run):
    command = [sys.executable, "-m", "orchestrator.cli", "status", str(run.folder), "--json"]
    variables = {**os.environ, "RAY_AUTH_TOKEN": SECRETS["RAY_AUTH_TOKEN"]}
    asked = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    assert json.loads(asked.stdout)["alive"] is True, asked.stdout + asked.stderr


def test_no_secret_is_written_or_shown(run):
    """Not in the run's folder, on no command line, in none of Ray's logs of this session."""
    shown = [" ".join(process.cmdline()) for process in run.processes() if process.is_running()]
    (session,) = {match[0] for line in shown for match in re.finditer(r"/tmp/ray/session_[\w-]+", line)}
    folders = (run.folder.parent, Path(session) / "logs")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"config.json", "raylet.out"} <= {path.name for path in files}
    for path in files:
        text = path.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in text, f"{name} stands in {path}"
    for name, secret in SECRETS.items():
        assert not any(secret in line for line in shown), f"{name} stands on a command line, where `ps` shows it"
