"""Brings a run up on a Ray cluster, embedded or existing, and stays with it until it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.model_store import resolve_model
from actors.remote import actor_names, end_actors
from actors.spawn import MAX_CALLS, remove_on_all_nodes
from actors.transports.object_store import remove_versions
from orchestrator.config import RunConfig
from orchestrator.fleet import FleetSizeError
from orchestrator.run_files import RunExistsError, RunFiles, make_spec, open_run, weights_directory
from orchestrator.supervisor import SUPERVISOR, RunSupervisor
from orchestrator.view import RunView

VIEW_PERIOD_S = 1.0

SCALE_TIMEOUT_S = 300.0
"""Longest wait for new reward workers to start."""

SUPERVISOR_AWAY_S = 180.0
"""How long a run may be without its supervisor, which Ray starts again when it dies."""


def launch(
    config: RunConfig, run_dir: Path, *, address: str | None = None, resume: bool = False, show_view: bool = True
) -> int:
    """Runs a configuration to its end; returns the exit code of the command.

    Args:
        address: of an existing cluster ("auto" finds the local one); None starts one in this process's care.
        resume: continue from the newest intact checkpoint in `run_dir`.
    """
    model_path = resolve_model(config.model)
    namespace = f"braid/{run_dir.resolve().name}"
    dashboard = None
    if address is not None:
        dashboard = start_ray(config, namespace, address)
        if SUPERVISOR in actor_names(namespace):
            return _join(config, RunFiles(run_dir.resolve()), namespace, dashboard, address, show_view, resume=resume)
        _end_leftovers(namespace)
    files, incarnation = open_run(config, run_dir, resume=resume)
    if address is None:
        dashboard = start_ray(config, namespace, address)
    files.cluster.write_text(
        json.dumps(
            {
                "address": _gcs_address(),
                "auth_mode": os.environ.get("RAY_AUTH_MODE"),  # set by Ray, where a token is asked for
                "namespace": namespace,
                "dashboard": dashboard,
                "pid": os.getpid(),
            }
        )
    )
    print(f"run        {files.root}\ndashboard  {dashboard or 'not available'}", flush=True)
    spec = make_spec(config, files, model_path, incarnation)
    supervisor = (
        ray.remote(RunSupervisor)
        .options(
            name=SUPERVISOR,
            namespace=namespace,
            num_cpus=0,
            lifetime="detached" if address else "non_detached",
            max_restarts=-1,
            max_concurrency=MAX_CALLS,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
        .remote(config.model_dump_json(), spec, str(files.root), namespace, list(sys.path))
    )
    return _stay_to_the_end(supervisor, config, files, dashboard, address, show_view, resume=resume)


def _join(
    config: RunConfig,
    files: RunFiles,
    namespace: str,
    dashboard: str | None,
    address: str,
    show_view: bool,
    *,
    resume: bool,
) -> int:
    """Stays with a run that is alive on the cluster although the command that began it is gone.

    Raises:
        RunExistsError: another run was meant, or one of this name in another folder is alive.
    """
    started = json.loads(files.cluster.read_text()) if files.cluster.exists() else {}
    if not resume or started.get("namespace") != namespace:
        raise RunExistsError(
            f"a run named {files.root.name!r} is alive on the cluster at {address}: give another --name, or join it "
            "with --resume and the folder it began in"
        )
    print(f"run        {files.root} is alive; this command joins it", flush=True)
    supervisor = ray.get_actor(SUPERVISOR, namespace)
    return _stay_to_the_end(supervisor, config, files, dashboard, address, show_view)


def _end_leftovers(namespace: str) -> None:
    """Ends boxes of a start whose supervisor is gone for good; the run to come would take them for its own."""
    end_actors(namespace)
    while actor_names(namespace):
        time.sleep(0.1)


def _stay_to_the_end(
    supervisor: Any,
    config: RunConfig,
    files: RunFiles,
    dashboard: str | None,
    address: str | None,
    show_view: bool,
    *,
    resume: bool = True,
) -> int:
    try:
        return _stay_with(supervisor, resume, files, dashboard, show_view)
    finally:
        _clean_up(f"braid/{files.root.name}", weights_directory(config, files), embedded=address is None)


def start_ray(config: RunConfig, namespace: str, address: str | None) -> str | None:
    """Connects to `address`, or starts a local cluster bound to the loopback interface; returns the dashboard URL."""
    settings: dict[str, Any] = {"namespace": namespace, "log_to_driver": bool(os.environ.get("BRAID_DEBUG"))}
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    settings["runtime_env"] = {"env_vars": {"PYTHONPATH": path, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}}
    if address is None:
        needed = config.rollout.num_workers * config.rollout.num_cpus_per_worker + config.learner.num_ranks
        settings |= {
            "num_cpus": max(os.cpu_count() or 1, int(needed + 0.999)),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "object_store_memory": 1 << 30,
            "address": "local",  # never another cluster that happens to run on this machine
        }
    else:
        settings["address"] = address
    context = ray.init(**settings)
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _stay_with(supervisor: Any, resume: bool, files: RunFiles, dashboard: str | None, show_view: bool) -> int:
    """Shows the run until it ends; the first Ctrl-C stops it with a checkpoint, the second at once.

    A supervisor that dies is started again by Ray and takes its boxes over; this command waits for it.
    """
    running = supervisor.run.remote(resume=resume)
    stops, is_stopping, away_since = _StopSignals(), False, None
    with stops, RunView(files.root, dashboard=dashboard, enabled=show_view) as view:
        while True:
            done, _ = ray.wait([running], timeout=VIEW_PERIOD_S)
            if stops.take():
                view.message("stopping after the step in flight; a checkpoint is written (again: stop at once)")
                is_stopping = True
            try:
                if done:
                    summary = cast(dict[str, Any], ray.get(running))
                    return 0 if summary["phase"] in ("done", "finishing", "stopped") else 1
                view.update(cast(dict[str, Any], ray.get(supervisor.status.remote())))
                if is_stopping:
                    ray.get(supervisor.stop.remote())
                    is_stopping = False
                away_since = None
            except RayTaskError as error:
                print(f"run failed: {error.cause!r}", file=sys.stderr)
                if os.environ.get("BRAID_DEBUG"):
                    raise
                return 1
            except RayActorError as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > SUPERVISOR_AWAY_S:
                    print(f"run failed: its supervisor died and did not come back: {error}", file=sys.stderr)
                    return 1
                time.sleep(VIEW_PERIOD_S)
                if done:
                    running = supervisor.run.remote(resume=True)


class _StopSignals:
    """Turns SIGINT and SIGTERM into a request; a second one interrupts."""

    def __init__(self) -> None:
        self._requested = False
        self._taken = False

    def __enter__(self) -> _StopSignals:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def take(self) -> bool:
        """True once after the first signal."""
        if self._requested and not self._taken:
            self._taken = True
            return True
        return False


def _clean_up(namespace: str, weights: Path, *, embedded: bool) -> None:
    """Leaves no actor, no engine process and no published weights behind."""
    end_actors(namespace)
    if embedded:
        ray.shutdown()
        remove_versions(weights)
    else:
        remove_on_all_nodes(weights)


def _gcs_address() -> str:
    return ray.get_runtime_context().gcs_address


def run_status(run_dir: Path) -> dict[str, Any]:
    """The live status of a run on this machine.

    Raises:
        ConnectionError: the run is not alive.
    """
    return cast(dict[str, Any], ray.get(_attach(run_dir).status.remote(), timeout=30))


def stop_run(run_dir: Path) -> None:
    """Asks a run to end after the step in flight, with a checkpoint."""
    ray.get(_attach(run_dir).stop.remote(), timeout=60)


def scale_run(run_dir: Path, sizes: Mapping[str, int]) -> str:
    """Asks a run for more or fewer workers; returns what it answered, before rollout workers have joined or left.

    Args:
        sizes: desired number of workers by role, `rollout` or `reward`.

    Raises:
        ConnectionError: the run is not alive.
        FleetSizeError: it cannot have that many now.
    """
    try:
        return cast(str, ray.get(_attach(run_dir).scale.remote(**sizes), timeout=SCALE_TIMEOUT_S))
    except RayTaskError as error:
        if isinstance(error.cause, FleetSizeError):
            raise error.cause from None
        raise


def wait_stopped(run_dir: Path, timeout_s: float) -> bool:
    """True when the run's process ended in time."""
    deadline = time.monotonic() + timeout_s
    pid = json.loads(RunFiles(run_dir.resolve()).cluster.read_text())["pid"]
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.5)
    return False


def _attach(run_dir: Path) -> Any:
    files = RunFiles(run_dir.resolve())
    if not files.cluster.exists():
        raise ConnectionError(f"{run_dir} holds no started run")
    where = json.loads(files.cluster.read_text())
    try:
        if not ray.is_initialized():
            ray.init(address=where["address"], namespace=where["namespace"], log_to_driver=False)
        return ray.get_actor(SUPERVISOR, where["namespace"])
    except (ConnectionError, ValueError) as error:
        raise ConnectionError(f"the run in {run_dir} is not alive ({error})") from error
