"""Sharded checkpoints of one learner group, and folders that are complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from learner.schedules.controllers import ControlState

if TYPE_CHECKING:
    from learner.trainer import Trainer

MANIFEST = "manifest.json"
LATEST = "LATEST"


class CorruptCheckpointError(RuntimeError):
    """A checkpoint folder does not hold what its manifest says."""


def begin_save(trainer: Trainer, folder: Path) -> Future[Any]:
    """Copies the state now and writes it in the background, every rank its own shards; collective.

    Training may go on at once. The folder is complete when the returned future is done on all ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    group = _own_group() if trainer.world_size > 1 else None
    saving = dcp.async_save(_state(trainer), checkpoint_id=folder, process_group=group, no_dist=group is None)
    assert isinstance(saving, Future)
    if group is not None:
        saving.add_done_callback(lambda _: dist.destroy_process_group(group))
    return saving


def _own_group() -> dist.ProcessGroup:
    """A lane of their own for the collectives of saving, beside those of the training steps."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def load(trainer: Trainer, folder: Path) -> None:
    """Restores weights, optimizer and counters in place, from any number of ranks; collective.

    Raises:
        CorruptCheckpointError: the folder holds no learner state, or of another model.
    """
    state = _state(trainer)
    reader = dcp.FileSystemReader(folder)
    try:
        stored = reader.read_metadata().state_dict_metadata
    except (OSError, EOFError) as error:
        raise CorruptCheckpointError(f"{folder} holds no readable learner state ({error})") from error
    if _rng_key(trainer) not in stored:  # saved by fewer ranks
        del state[_rng_key(trainer)]
    missing = sorted(_leaves(state) - set(stored))
    if missing:
        raise CorruptCheckpointError(
            f"{folder} lacks {len(missing)} tensors of this model, first {missing[0]}; it was saved by a run with "
            "another model or adapter"
        )
    dcp.load(state, storage_reader=reader, no_dist=trainer.world_size == 1)
    trainer.steps_done = int(state["steps_done"])
    if "controllers" in state:
        trainer.objective.controls.states = [ControlState(*row) for row in state["controllers"].tolist()]
    if _rng_key(trainer) in state:
        torch.set_rng_state(state[_rng_key(trainer)])


def _state(trainer: Trainer) -> dict[str, Any]:
    """Live tensors by name; loading writes into them."""
    state: dict[str, Any] = {
        **_trained_state(trainer.policy, trainer.optimizer),
        "steps_done": torch.tensor(trainer.steps_done),
        _rng_key(trainer): torch.get_rng_state(),
    }
    controls = trainer.objective.controls.states
    if controls:
        state["controllers"] = torch.tensor([astuple(c) for c in controls], dtype=torch.float64)
    if trainer.critic is not None:
        state["critic"] = _trained_state(trainer.critic.model, trainer.critic.optimizer)
    if trainer.reference is not None and trainer.config.resets.moves_reference:
        state["reference"] = {name: p.detach() for name, p in trainer.reference.named_parameters()}
    return state


def _trained_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Trained weights and their moments by name."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        _materialise_moments(optimizer, parameter)
    return {
        "model": {name: p.detach() for name, p in trained.items()},
        "optimizer": {name: dict(optimizer.state[p]) for name, p in trained.items()},
    }


def _materialise_moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """AdamW's state before its first step, which it would otherwise create in that step."""
    if not optimizer.state[parameter]:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


def _rng_key(trainer: Trainer) -> str:
    return f"rng_of_rank_{trainer.rank}"


def _leaves(state: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Names as the checkpoint flattens them."""
    names: set[str] = set()
    for key, value in state.items():
        names |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}"}
    return names


def publish_checkpoint(folder: Path, target: Path, payload: Mapping[str, Any]) -> None:
    """Makes a filled folder durable under its final name: fsync, manifest with digests, rename, then LATEST.

    A crash at any point leaves either the previous checkpoint or this one complete, never half of it.

    Args:
        folder: temporary folder beside `target`.
        payload: what `verify_checkpoint` gives back, JSON.
    """
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        _sync(file)
        files[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    _write_durably(folder / MANIFEST, json.dumps({"payload": dict(payload), "files": files}, indent=1))
    for directory in {p for p in folder.rglob("*") if p.is_dir()} | {folder}:
        _sync(directory)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    _sync(target.parent)
    pointer = target.parent / f"{LATEST}.tmp"
    _write_durably(pointer, target.name)
    pointer.rename(target.parent / LATEST)
    _sync(target.parent)


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """The payload of a published checkpoint whose every file has the size and digest it was written with.

    Raises:
        CorruptCheckpointError: manifest missing or unreadable, or a file missing, cut or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        payload, files = manifest["payload"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{folder}: manifest cannot be read ({error})") from error
    for name, expected in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            raise CorruptCheckpointError(f"{folder}: {name} has {size} bytes, {expected['bytes']} were written")
        if _sha256(file) != expected["sha256"]:
            raise CorruptCheckpointError(f"{folder}: {name} is not what was written (digest differs)")
    return payload


def newest_checkpoint(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint of a directory with its payload: LATEST first, then older ones; None if none exist.

    Raises:
        CorruptCheckpointError: there are checkpoints, but none is intact.
    """
    folders = sorted((p for p in directory.glob("*") if p.is_dir() and p.suffix != ".tmp"), reverse=True)
    pointer = directory / LATEST
    if pointer.is_file():
        latest = directory / pointer.read_text().strip()
        folders.sort(key=lambda p: p != latest)
    faults = []
    for folder in folders:
        try:
            return folder, verify_checkpoint(folder)
        except CorruptCheckpointError as fault:
            faults.append(str(fault))
    if faults:
        raise CorruptCheckpointError("no intact checkpoint: " + "; ".join(faults))
    return None


def _write_durably(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    """Flushes a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
