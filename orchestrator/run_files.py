"""Where the files of a run lie, and the identity that survives its restarts."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from actors.assembly import RunSpec
from orchestrator.config import RunConfig


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The folder of one run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face format."""
        return self.root / "model"

    @property
    def fleet(self) -> Path:
        """Names of the rollout workers the run should have now."""
        return self.state / "fleet.json"

    @property
    def cluster(self) -> Path:
        """How to reach the running graph: Ray address and namespace."""
        return self.root / "cluster.json"


class RunExistsError(RuntimeError):
    """A new run was asked for where an old one lies."""


def open_run(config: RunConfig, root: Path, *, resume: bool) -> tuple[RunFiles, int]:
    """Creates or reopens the folder of a run; returns it with the incarnation that now begins.

    Raises:
        RunExistsError: the folder holds a run and `resume` is false.
        FileNotFoundError: nothing to resume.
    """
    files = RunFiles(root.resolve())
    marker = files.state / "incarnation.json"
    if resume and not marker.exists():
        raise FileNotFoundError(f"{root} holds no run to resume; start one with `braid train` without --resume")
    if not resume and files.config.exists():
        raise RunExistsError(f"{root} already holds a run; give another --name, or continue it with --resume {root}")
    incarnation = json.loads(marker.read_text())["incarnation"] + 1 if resume else 0
    files.state.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"incarnation": incarnation}))
    files.config.write_text(config.model_dump_json(indent=2))
    return files, incarnation


def weights_directory(config: RunConfig, files: RunFiles) -> Path:
    """The folder of published versions: configured, else shared memory, else the run's own folder.

    Its name tells users and run folders apart: runs of one name may train on one machine at the same time.
    """
    base = config.weights.directory
    if base is None:
        base = "/dev/shm" if os.path.isdir("/dev/shm") and os.access("/dev/shm", os.W_OK) else str(files.state)
    owner = f"{os.getuid() if hasattr(os, 'getuid') else 0} {files.root}"
    return Path(base) / f"braid-{files.root.name}-{hashlib.sha256(owner.encode()).hexdigest()[:8]}"


def make_spec(config: RunConfig, files: RunFiles, model_path: Path, incarnation: int) -> RunSpec:
    """What the boxes are built from, resolved for this machine."""
    return RunSpec(
        model=config.model,
        model_path=str(model_path),
        state_dir=str(files.state),
        weights_dir=str(weights_directory(config, files)),
        terms=config.terms,
        rollout=config.rollout,
        replay=config.replay,
        learner=config.learner,
        weights=config.weights,
        reward=config.reward,
        tasks=config.tasks,
        system_prompt=config.tasks.system_prompt,
        num_steps=config.num_steps,
        max_minutes=config.max_minutes,
        checkpoint_every=config.checkpoint.every,
        checkpoint_keep=config.checkpoint.keep,
        seed=config.seed,
        incarnation=incarnation,
        config_json=config.model_dump_json(),
        guidance=config.guidance,
        curriculum=config.curriculum,
        pin_roles=config.pin_roles,
    )
