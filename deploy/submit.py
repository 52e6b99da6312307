"""Starts a run on a Ray cluster from a checkout, for people who have Ray here and nothing else of Braid installed.

    python deploy/submit.py ./my_recipe.py --address http://head:8265 --working-dir . -- --set num_steps=20

What follows `--` goes to `braid train` as it is. The packages of this checkout are sent along; torch, vllm and the rest
must be on the cluster. A cluster with token authentication needs RAY_AUTH_MODE=token and the token in RAY_AUTH_TOKEN or
~/.ray/auth_token, as Ray reads them. With Braid installed, use `braid submit`, which checks the recipe first.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
import sys
import time
from pathlib import Path

from ray.job_submission import JobSubmissionClient

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("rewards", "learner", "actors", "orchestrator", "recipes")
EXCLUDES = [".git", "__pycache__", "*.pyc", "/.venv*", "/venv", "/runs", "/checkpoints", "/wandb"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name, file relative to the working directory, or module:function")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the cluster's dashboard")
    parser.add_argument("--working-dir", type=Path, default=Path(), help="folder to send; the run starts in its copy")
    parser.add_argument("--runs", default="~/braid-runs", help="folder on the cluster for the results")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])

    command = ["python", "-m", "orchestrator.cli", "train", args.recipe, *words[end + 1 :]]
    command += ["--runs", args.runs, "--address", "auto", "--no-view"]
    env = {"working_dir": str(args.working_dir.resolve()), "excludes": EXCLUDES}
    if args.working_dir.resolve() != CHECKOUT:
        env["py_modules"] = [str(CHECKOUT / name) for name in PACKAGES]
    logging.disable(logging.INFO)
    client = JobSubmissionClient(args.address)
    job = client.submit_job(entrypoint=shlex.join(command), runtime_env=env)
    print(f"{job}: {shlex.join(command)}", flush=True)
    asyncio.run(print_log(client, job))
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(1)
    return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1


async def print_log(client: JobSubmissionClient, job: str) -> None:
    """Everything the job prints, until it ends."""
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
