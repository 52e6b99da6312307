"""Published versions to other nodes: chunks through an object store, one folder in shared memory per node.

The object store is a port with `put` and `get`; whoever holds the references decides how long the chunks live. On the
learner's node a Shipper holds them; on every other node a NodeMirror turns them into a folder again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.engines.protocol import WeightUpdate
from actors.transports.shared_memory import (
    ReadLease,
    VersionGoneError,
    delete_unless_read,
    verify_folder,
    version_folder,
    version_folders,
)
from actors.transports.tensor_file import Bytes
from rewards.trajectory import PolicyVersion

CHUNK_BYTES = 64 << 20

LOCK_FILE = ".fetch.lock"

LOCK_POLL_S = 0.05


MIRROR = "-on-"
"""Between the name of the versions' folder and the node that has copies of them."""


def mirror_folder(folder: Path, node: str) -> Path:
    """Where versions of `folder`, which lies on another node, are copied to on this one."""
    return folder.with_name(f"{folder.name}{MIRROR}{node[:12]}")


def remove_versions(folder: Path) -> None:
    """Deletes a folder of versions and its mirrors on this node, read or not."""
    for path in (folder, *folder.parent.glob(f"{folder.name}{MIRROR}*")):
        shutil.rmtree(path, ignore_errors=True)


class ChunkPort(Protocol):
    """An object store: numpy arrays cross without pickling their bytes."""

    async def put(self, chunk: Bytes) -> Any: ...

    async def get(self, reference: Any) -> Bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedVersion:
    """A version on its way: references to the chunks of each file of its folder, in order."""

    update: WeightUpdate
    files: Mapping[str, Sequence[Any]]


class VersionSource(Protocol):
    """A weight store that ships: WeightPort, and what is needed on a node where its folders do not lie."""

    async def newest(self) -> WeightUpdate | None: ...

    async def wait_newer(self, version: PolicyVersion, timeout_s: float) -> WeightUpdate | None: ...

    async def node(self) -> str:
        """Of the folders that updates name."""
        ...

    async def shipped(self, version: PolicyVersion) -> ShippedVersion:
        """Raises VersionGoneError when the version is not the newest any more."""
        ...


class Shipper:
    """Puts a version into the object store when the first other node asks for it; the newest one stays there."""

    def __init__(self, port: ChunkPort) -> None:
        self._port = port
        self._newest: ShippedVersion | None = None
        self._lock = asyncio.Lock()

    async def shipped(self, update: WeightUpdate) -> ShippedVersion:
        """Raises VersionGoneError when its folder has been deleted."""
        async with self._lock:
            if self._newest is None or self._newest.update.version != update.version:
                self._newest = None  # its chunks go before the new ones come
                with ReadLease(Path(update.path)):
                    self._newest = await ship(update, self._port)
            return self._newest


class NodeMirror:
    """WeightPort of a worker: every update it returns names a folder of the worker's own node.

    Args:
        node: of the worker; versions that lie there already are used where they are.
        directory: folder of this node for versions that came from another; all workers of the node share it.
        always: also fetches versions of the own node.
    """

    def __init__(
        self, source: VersionSource, port: ChunkPort, directory: Path, *, node: str, keep_versions: int, always: bool
    ) -> None:
        self._source, self._port, self._directory = source, port, directory
        self._node, self._keep, self._always = node, keep_versions, always

    async def newest(self) -> WeightUpdate | None:
        update = await self._source.newest()
        return None if update is None else await self._on_this_node(update)

    async def wait_newer(self, version: PolicyVersion, timeout_s: float) -> WeightUpdate | None:
        """The newest update above `version`, fetched; None after the timeout, or when it was outrun on its way."""
        update = await self._source.wait_newer(version, timeout_s)
        return None if update is None else await self._on_this_node(update)

    async def _on_this_node(self, update: WeightUpdate) -> WeightUpdate | None:
        if not self._always and await self._source.node() == self._node:
            return update
        try:
            shipped = await self._source.shipped(update.version)
        except VersionGoneError:  # a newer one is out
            return None
        return await materialise(shipped, self._port, self._directory, keep_versions=self._keep)


async def ship(update: WeightUpdate, port: ChunkPort, *, chunk_bytes: int = CHUNK_BYTES) -> ShippedVersion:
    """Puts every file of a version folder into the object store."""
    files: dict[str, list[Any]] = {}
    for name, content in _mapped_files(Path(update.path)).items():
        starts = range(0, len(content), chunk_bytes)
        files[name] = [await port.put(content[start : start + chunk_bytes]) for start in starts]
    return ShippedVersion(update=update, files=files)


async def materialise(shipped: ShippedVersion, port: ChunkPort, directory: Path, *, keep_versions: int) -> WeightUpdate:
    """The version as a folder on this node; the first caller on a node fetches it, the others wait and use it.

    Args:
        keep_versions: newest versions that stay on this node; older ones go as soon as no ReadLease holds them.

    Returns:
        The update with the local path.

    Raises:
        CorruptVersionError: what arrived is not what was shipped; nothing of it stays, so a second call fetches again.
    """
    target = version_folder(directory, shipped.update.version)
    async with _fetch_lock(directory):
        if not target.exists():
            await _fetch(shipped, port, target)
        await asyncio.to_thread(_delete_old, target, keep_versions)
    return replace(shipped.update, path=str(target))


@asynccontextmanager
async def _fetch_lock(directory: Path) -> AsyncIterator[None]:
    """One process per node fetches at a time. Asked for again and again, because a thread that waits for a file lock
    cannot be cancelled and would take it when nobody wants it any more."""
    fd = _open_lock(directory)
    try:
        while not _try_lock(fd):  # noqa: ASYNC110 - another process holds it, which sets no event here
            await asyncio.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _open_lock(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    return os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _fetch(shipped: ShippedVersion, port: ChunkPort, target: Path) -> None:
    building = target.with_name(f".{target.name}-{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    os.mkdir(building)
    try:
        for name, references in shipped.files.items():
            with (building / name).open("wb") as file:
                for reference in references:
                    chunk = await port.get(reference)
                    await asyncio.to_thread(file.write, chunk.data)
        await asyncio.to_thread(verify_folder, building, shipped.update.digest)
        os.rename(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _delete_old(wanted: Path, keep: int) -> None:
    for _, folder in sorted(version_folders(wanted.parent).items())[:-keep]:
        if folder != wanted:
            delete_unless_read(folder)


def _mapped_files(folder: Path) -> dict[str, Bytes]:
    files = sorted(path for path in folder.iterdir() if path.stat().st_size)
    return {path.name: np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) for path in files}
