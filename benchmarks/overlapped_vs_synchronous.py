"""Wall clock of the demo's training, overlapped (max_age=1) over synchronous (max_age=0), whole runs by turns.

Overlapped, engine and learner share the cores. Synchronous, they take turns, each with all cores while the other
waits. Both train the same number of groups; evaluation and start are not counted.

    python -m benchmarks.overlapped_vs_synchronous --repeats 6 --steps 10
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.paired import print_result, ratio_of

OVERLAPPED = ("replay.max_age=1", "layout=shared")
SYNCHRONOUS = ("replay.max_age=0", "layout=turns")


def training_seconds(recipe: str, steps: int, seed: int, settings: tuple[str, ...]) -> float:
    """Of one run, from the first task to the last commit.

    Raises:
        RuntimeError: the run failed.
    """
    changes = (f"num_steps={steps}", f"seed={seed}", "evaluation.at_start=false", "evaluation.at_end=false", *settings)
    with tempfile.TemporaryDirectory(prefix="braid-overlap-") as runs:
        command = [
            sys.executable,
            "-m",
            "orchestrator.cli",
            "train",
            recipe,
            "--name",
            "run",
            "--runs",
            runs,
            "--no-view",
        ]
        done = subprocess.run(
            [*command, *(part for change in changes for part in ("--set", change))], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{settings}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return float(json.loads((Path(runs) / "run" / "summary.json").read_text())["wall_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="arithmetic_demo")
    parser.add_argument("--repeats", type=int, default=6, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=10, help="of every run")
    options = parser.parse_args()
    pairs = []
    for seed in range(options.repeats):
        order = (OVERLAPPED, SYNCHRONOUS) if seed % 2 == 0 else (SYNCHRONOUS, OVERLAPPED)
        seconds = {settings: training_seconds(options.recipe, options.steps, seed, settings) for settings in order}
        pairs.append((seconds[OVERLAPPED], seconds[SYNCHRONOUS]))
        print(json.dumps({"overlapped_s": round(pairs[-1][0], 1), "synchronous_s": round(pairs[-1][1], 1)}), flush=True)
    print_result(
        "overlapped_vs_synchronous", ratio_of(pairs), bar=1.0, recipe=options.recipe, steps=options.steps,
        overlapped=list(OVERLAPPED), synchronous=list(SYNCHRONOUS),
    )  # fmt: skip


if __name__ == "__main__":
    main()
