"""Published versions as folders on this node: written beside their final name, renamed once, never changed after.

A folder holds `model.safetensors` (Hugging Face names) or a PEFT adapter, and `manifest.json` with a checksum per
tensor. On Linux the folder lies in /dev/shm, so engines map it without a copy. The memory of a deleted version may be
written over by the next one: who reads a version holds a ReadLease.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.transports.tensor_file import (
    DTYPE_NAMES,
    Bytes,
    TensorEntry,
    TensorFileWriter,
    entry_as_json,
    entry_from_json,
    mismatched_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
SPARE = ".spare"
"""Tensor file of a deleted version, whose memory the next version is written into."""
ADAPTER_CONFIG = "adapter_config.json"
FILE_NAMES = {"full": "model.safetensors", "adapter": "adapter_model.safetensors"}


class CorruptVersionError(RuntimeError):
    """A published version is not what its manifest says."""


class VersionGoneError(RuntimeError):
    """A published version has been deleted; a newer one exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a version folder contains; its digest identifies the version's bytes."""

    version: int
    step: int
    incarnation: int
    kind: str
    algorithm: str
    tensors: tuple[TensorEntry, ...]
    config: Mapping[str, Any] | None = None
    """PEFT's adapter configuration; None for full weights."""

    def as_json(self) -> str:
        values = {name: getattr(self, name) for name in ("version", "step", "incarnation", "kind", "algorithm")}
        values |= {"config": self.config, "tensors": [entry_as_json(entry) for entry in self.tensors]}
        return json.dumps(values, sort_keys=True)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.as_json().encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        return self.tensors[-1].end if self.tensors else 0


def version_folder(directory: Path, version: int) -> Path:
    return directory / f"v{version:08d}"


def version_folders(directory: Path) -> dict[int, Path]:
    """The complete version folders that lie in a directory, by version."""
    return {int(path.name[1:]): path for path in sorted(directory.glob("v*")) if path.name[1:].isdigit()}


def write_folder(
    named_tensors: Iterable[tuple[str, Tensor]],
    directory: Path,
    *,
    version: int,
    step: int,
    incarnation: int,
    dtype: str,
    kind: str,
    adapter_config: Mapping[str, Any] | None = None,
) -> tuple[Path, Manifest]:
    """Streams tensors into a new version folder; each is cast, written and digested before the next is asked for.

    Raises:
        ValueError: unknown dtype or kind, an adapter without its configuration, or no tensors at all.
        FileExistsError: the version exists already; versions are never rewritten.
    """
    if dtype not in DTYPE_NAMES or kind not in FILE_NAMES:
        raise ValueError(
            f"dtype={dtype!r} kind={kind!r}: need one of {list(DTYPE_NAMES)} and one of {list(FILE_NAMES)}"
        )
    if kind == "adapter" and adapter_config is None:
        raise ValueError("an adapter version needs adapter_config, or no engine can load it")
    target = version_folder(directory, version)
    if target.exists():
        raise FileExistsError(f"{target} exists: version {version} was published before and is never rewritten")
    directory.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_writes(directory)
    building = directory / f".{target.name}-{os.getpid()}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        writer = TensorFileWriter(building / FILE_NAMES[kind], spare=directory / SPARE)
        _write_tensors(named_tensors, writer, dtype)
        if not writer.entries:
            raise ValueError(f"version {version} has no tensors; nothing is published")
        manifest = Manifest(
            version=version,
            step=step,
            incarnation=incarnation,
            kind=kind,
            algorithm=writer.algorithm,
            tensors=tuple(writer.entries),
            config=adapter_config,
        )
        if adapter_config is not None:
            (building / ADAPTER_CONFIG).write_bytes(_adapter_config_bytes(adapter_config))
        (building / MANIFEST).write_text(manifest.as_json())
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return target, manifest


def read_manifest(folder: Path) -> Manifest:
    """Raises CorruptVersionError when it cannot be read, VersionGoneError when the folder is not there."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
        tensors = tuple(entry_from_json(entry) for entry in values.pop("tensors"))
        manifest = Manifest(**values, tensors=tensors)
        if manifest.kind not in FILE_NAMES:
            raise ValueError(f"kind {manifest.kind!r}")
        return manifest
    except FileNotFoundError as error:
        raise VersionGoneError(f"{folder} is not there (any more)") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptVersionError(f"{folder / MANIFEST} is damaged: {error}") from error


def verify_folder(folder: Path, digest: str | None = None) -> Manifest:
    """Reads every byte of a version and compares it with the manifest, and the manifest with `digest` when given.

    Raises:
        CorruptVersionError: names what differs.
        VersionGoneError: the folder is not there.
    """
    manifest = read_manifest(folder)
    found = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    if digest is not None and found != digest:
        raise CorruptVersionError(f"{folder}: manifest digest {found[:16]}, announced {digest[:16]}")
    path = folder / FILE_NAMES[manifest.kind]
    try:
        wrong = mismatched_tensors(path, manifest.tensors, manifest.algorithm)
    except FileNotFoundError as error:
        raise CorruptVersionError(f"{path} is missing") from error
    except ValueError as error:
        raise CorruptVersionError(str(error)) from error
    if wrong:
        raise CorruptVersionError(f"{path}: {len(wrong)} tensors differ from the manifest, first {wrong[0]}")
    if manifest.config is not None:
        _verify_adapter_config(folder / ADAPTER_CONFIG, manifest.config)
    return manifest


def _verify_adapter_config(path: Path, expected: Mapping[str, Any]) -> None:
    """An adapter's scaling stands beside its tensors and decides as much as they do."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptVersionError(f"{path} is missing") from error
    if content != _adapter_config_bytes(expected):
        raise CorruptVersionError(f"{path} differs from the manifest")


def _adapter_config_bytes(config: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(config), indent=2, sort_keys=True).encode()


class ReadLease:
    """Keeps a version folder from being deleted; ends with `release` or with the process that holds it."""

    def __init__(self, folder: Path) -> None:
        try:
            self._fd = os.open(folder / MANIFEST, os.O_RDONLY)
        except FileNotFoundError as error:
            raise VersionGoneError(f"{folder} is not there (any more)") from error
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        if not (folder / MANIFEST).exists():  # deleted between open and lock
            self.release()
            raise VersionGoneError(f"{folder} was deleted while it was being taken")

    def release(self) -> None:
        """Gives the folder free; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ReadLease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def delete_unless_read(folder: Path, *, keep_memory: bool = False) -> bool:
    """Deletes a version folder when no ReadLease holds it; True when it is gone.

    Args:
        keep_memory: its tensor file stays as the directory's spare, for the next version to be written into.
    """
    try:
        fd = os.open(folder / MANIFEST, os.O_RDONLY)
    except FileNotFoundError:
        shutil.rmtree(folder, ignore_errors=True)
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The manifest goes first: a reader that opened it and waits for the lock then sees that the version is gone.
        (folder / MANIFEST).unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    if keep_memory:
        for file in folder.glob("*.safetensors"):
            file.replace(folder.parent / SPARE)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _write_tensors(named_tensors: Iterable[tuple[str, Tensor]], writer: TensorFileWriter, dtype: str) -> None:
    import torch

    target = getattr(torch, dtype)
    try:
        for name, tensor in named_tensors:
            writer.add(name, DTYPE_NAMES[dtype], tensor.shape, _as_bytes(tensor.detach().to("cpu", target)))
        writer.finish()
    finally:
        writer.close()


def _as_bytes(tensor: Tensor) -> Bytes:
    """[bytes] of a CPU tensor without a copy when it is contiguous; numpy has no bfloat16."""
    import torch

    flat = tensor.contiguous().view(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)


def _remove_abandoned_writes(directory: Path) -> None:
    """Unfinished folders of writers that no longer live."""
    for folder in directory.glob(".v*.tmp"):
        pid = folder.name.removesuffix(".tmp").rpartition("-")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
