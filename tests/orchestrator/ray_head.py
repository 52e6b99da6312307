"""A Ray head of its own for one test: free ports, a folder of its own, a token, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

TOKEN = "a-token-that-only-this-test-knows-0123456789"
START_TIMEOUT_S = 240.0


@contextlib.contextmanager
def ray_head(folder: Path, *, num_cpus: int = 2) -> Iterator[str]:
    """The address of the dashboard of a running head that asks for TOKEN.

    Args:
        folder: for its sockets and logs; a short path, because socket names are limited to about a hundred letters.
    """
    dashboard, client, agent, metrics = _free_ports(4)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"),
        *(f"--num-cpus={num_cpus}", "--object-store-memory=200000000", "--disable-usage-stats"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        f"--metrics-export-port={metrics}",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "PATH": path}
    environment.pop("RAY_ADDRESS", None)
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_until_up(head, f"http://127.0.0.1:{dashboard}", folder / "head.log")
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)


def _wait_until_up(head: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until a request with the token finds an agent that takes jobs."""
    deadline = time.monotonic() + START_TIMEOUT_S
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    while time.monotonic() < deadline:
        if head.poll() is not None:
            break
        try:
            urllib.request.urlopen(request, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the Ray head did not come up: {log.read_text()[-2000:]}")


def _free_ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
