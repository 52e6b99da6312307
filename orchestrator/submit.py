"""`braid submit`: a run on a cluster somewhere else, through the Ray Jobs API."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("rewards", "learner", "actors", "orchestrator", "recipes")

EXCLUDES = (".git", "__pycache__", "*.pyc", "/.venv*", "/venv", "/runs", "/checkpoints", "/wandb")
"""Left out of what is sent; gitwildmatch patterns. What .gitignore names stays behind as well."""

STATUS_POLL_S = 1.0
FINAL_STATUS_S = 30.0
"""How long after the end of its log a job may take to report its final status."""


class SubmitError(RuntimeError):
    """The cluster cannot be reached, refuses, or could not find what the job needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One run to be started elsewhere.

    Attributes:
        recipe: as for `braid train`; a file must lie in `working_dir`. None where `resume` names a run to continue.
        working_dir: sent along; the job runs in a copy of it, so a user's own modules work as they do here.
        runs: folder on the cluster for results; "~" is the home of the job there.
        ship_braid: send this installation's packages too; they win over those installed on the cluster.
    """

    recipe: str | None = None
    resume: str | None = None
    overrides: tuple[str, ...] = ()
    working_dir: Path = Path()
    runs: Path = Path("~/braid-runs")
    name: str | None = None
    excludes: tuple[str, ...] = ()
    ship_braid: bool = True

    def entrypoint(self) -> str:
        """The command line the job runs."""
        command = ["python", "-m", "orchestrator.cli", "train"]
        command += [self._recipe_there(self.recipe)] if self.recipe is not None else []
        command += ["--resume", self.resume] if self.resume is not None else []
        command += [part for override in self.overrides for part in ("--set", override)]
        command += ["--name", self.name] if self.name else []
        command += ["--runs", str(self.runs), "--address", "auto", "--no-view"]
        return shlex.join(command)

    def runtime_env(self) -> dict[str, Any]:
        """What is sent to the cluster beside the command."""
        folder = self.working_dir.resolve()
        if not folder.is_dir():
            raise SubmitError(f"--working-dir {self.working_dir} is no folder")
        env: dict[str, Any] = {"working_dir": str(folder), "excludes": [*EXCLUDES, *self.excludes]}
        if self.ship_braid and not (folder / "orchestrator" / "cli.py").is_file():
            env["py_modules"] = [_package_folder(name) for name in PACKAGES]
        return env

    def _recipe_there(self, recipe: str) -> str:
        """The recipe with a file's path relative to the folder that is sent."""
        path, colon, function = recipe.rpartition(":")
        if not (colon and path.endswith(".py")):
            path, colon, function = recipe, "", ""
        if not path.endswith((".py", ".yaml", ".yml", ".json")):
            return recipe
        file, folder = Path(path).expanduser().resolve(), self.working_dir.resolve()
        if not file.is_relative_to(folder):
            raise SubmitError(f"recipe {path} does not lie in {folder}, which is what is sent: set --working-dir")
        return f"./{file.relative_to(folder)}{colon}{function}"


def _package_folder(name: str) -> str:
    spec = find_spec(name)
    assert spec is not None  # these packages are running
    assert spec.origin is not None
    return str(Path(spec.origin).parent)


def submit_job(submission: Submission, address: str, *, follow: bool = True) -> int:
    """Starts the run, prints its log until it ends and returns the exit code of the command there.

    Args:
        address: of the cluster's dashboard, e.g. http://127.0.0.1:8265.
        follow: False returns 0 once the job is accepted.

    Raises:
        SubmitError: what went wrong, and the way out.
    """
    entrypoint, env = submission.entrypoint(), submission.runtime_env()
    client = connect(address)
    try:
        job = client.submit_job(entrypoint=entrypoint, runtime_env=env)
    except (RuntimeError, ValueError, OSError) as error:
        raise SubmitError(f"the cluster at {address} did not accept the job: {error}") from error
    print(
        f"job        {job}\ncluster    {address}\nsent       {env['working_dir']}\ncommand    {entrypoint}", flush=True
    )
    if not follow:
        return 0
    return follow_job(client, job, address)


def connect(address: str) -> Any:
    """A client of the cluster's job server; sends the token of this user only to a cluster that asks for one.

    Raises:
        SubmitError: nobody answers there, or the token is missing or refused.
    """
    if "://" not in address:
        raise SubmitError(f"--address {address!r} must be the address of the dashboard, e.g. http://127.0.0.1:8265")
    client = _client(address, {})
    if client is not None:
        return client
    token, where = auth_token()
    client = _client(address, {"Authorization": f"Bearer {token}"})
    if client is None:
        raise SubmitError(
            f"the cluster at {address} refuses the token in {where}: use the one `ray get-auth-token` prints on its "
            "head node, in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    return client


def _client(address: str, headers: dict[str, str]) -> Any:
    """A client, or None when the cluster wants another token."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # a line for each package it sends
    try:
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError:
        return None
    except (RuntimeError, OSError) as error:
        raise SubmitError(
            f"no Ray dashboard answers at {address} ({_first_line(error)}): is the cluster up (`ray start --head`), "
            "and is this the address of its dashboard, port 8265 unless told otherwise?"
        ) from error


def auth_token(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """(token, where it was found), looked for where Ray does: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        SubmitError: there is none.
    """
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    default = Path.home() / ".ray" / "auth_token"
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or default).expanduser()
    token = path.read_text().strip() if path.is_file() else ""
    if not token:
        raise SubmitError(
            f"the cluster asks for a token and there is none in RAY_AUTH_TOKEN or {path}: `ray get-auth-token` on its "
            "head node prints it"
        )
    return token, str(path)


def follow_job(client: Any, job: str, address: str) -> int:
    """Prints the log of a job until it ends; returns the exit code of its command, 130 after Ctrl-C.

    Raises:
        SubmitError: the connection was lost; the job goes on.
    """
    try:
        return asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(
            f"\n{job} goes on. Its log: ray job logs --follow --address {address} {job}; "
            f"to stop it: ray job stop --address {address} {job}",
            file=sys.stderr,
        )
        return 130
    except (RuntimeError, OSError) as error:
        raise SubmitError(
            f"lost the connection to {job} ({_first_line(error)}); the job may go on: `ray job status --address "
            f"{address} {job}`"
        ) from error


async def _follow(client: Any, job: str) -> int:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)
    waited = 0.0
    while not (info := await asyncio.to_thread(client.get_job_info, job)).status.is_terminal():
        if waited >= FINAL_STATUS_S:
            raise RuntimeError(f"its log ended but its status is still {info.status.value}")
        await asyncio.sleep(STATUS_POLL_S)
        waited += STATUS_POLL_S
    if info.status.value == "SUCCEEDED":
        return 0
    print(f"{job} {info.status.value}: {info.message or 'no message'}", file=sys.stderr)
    return info.driver_exit_code or 1


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
