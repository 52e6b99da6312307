"""What Ray reads from the environment when it is first imported: where it listens, and how it knows its clients."""

from __future__ import annotations

import json
import os
from pathlib import Path

SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: the address of this node is 127.0.0.1, so that nothing listens elsewhere, as by default on Windows and macOS; a
cluster cannot have a second node then. Ray has no other switch for that."""

AUTH_MODE = "RAY_AUTH_MODE"


def for_a_cluster_of_our_own() -> None:
    """A local cluster opens no port to other machines."""
    os.environ.setdefault(SEVERAL_NODES, "0")


def for_the_cluster_of(run_dir: Path) -> None:
    """The way a run's cluster is reached from another process; Ray asks nobody at an address for it."""
    file = run_dir / "cluster.json"
    cluster = json.loads(file.read_text()) if file.exists() else {}
    if cluster.get("auth_mode") is not None:
        os.environ.setdefault(AUTH_MODE, cluster["auth_mode"])
    if str(cluster.get("address", "")).startswith("127.0.0.1:"):
        for_a_cluster_of_our_own()
