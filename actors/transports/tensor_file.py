"""A safetensors file written as a stream: each tensor is appended and digested while it is still in the cache."""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""numpy's and torch's names to those of the file format."""

HEADER_BYTES = 1 << 20
"""Room kept for the header, which is known last; enough for about ten thousand tensors."""

BLOCK_BYTES = 1 << 20
"""Written and digested at once, so that the second reads what the first left in the processor's cache."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: [start, end) in bytes of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    checksum: str


class TensorFileWriter:
    """Writes one safetensors file front to back; the header, whose size is reserved, is filled in by `finish`."""

    def __init__(self, path: Path, *, header_bytes: int = HEADER_BYTES, spare: Path | None = None) -> None:
        """
        Args:
            spare: a file nobody needs any more, taken and written over if it is there: its memory is already mapped,
                and getting fresh pages from the system takes longer than filling them.
        """
        self._path, self._header_bytes = path, header_bytes
        taken = spare is not None and _take(spare, path)
        self._fd = os.open(path, os.O_RDWR if taken else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._mapped = _map_existing_pages(self._fd) if taken else None
        self._algorithm, self._new_checksum = checksum_function()
        self._end = 0
        self.entries: list[TensorEntry] = []

    @property
    def algorithm(self) -> str:
        """Name of the checksum in the entries."""
        return self._algorithm

    def add(self, name: str, dtype: str, shape: Sequence[int], data: Bytes) -> None:
        """Appends one tensor.

        Args:
            dtype: name in the file format, e.g. "F32".
            data: [bytes] contiguous, row-major.
        """
        view, checksum = data.data, self._new_checksum()
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            self._write(self._header_bytes + self._end + start, block)
            checksum.update(block)
        entry = TensorEntry(name, dtype, tuple(shape), self._end, self._end + len(view), checksum.hexdigest())
        self.entries.append(entry)
        self._end = entry.end

    def finish(self) -> None:
        """Writes the header and closes the file."""
        header = _header(self.entries)
        if 8 + len(header) > self._header_bytes:
            self._make_room(8 + len(header))
        header = header.ljust(self._header_bytes - 8)
        self._unmap()
        os.ftruncate(self._fd, self._header_bytes + self._end)
        _write_all(self._fd, memoryview(len(header).to_bytes(8, "little") + header), 0)
        self.close()

    def close(self) -> None:
        """Closes the file as it is; a second call does nothing."""
        self._unmap()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, position: int, block: memoryview) -> None:
        if self._mapped is not None and position + len(block) <= len(self._mapped):
            self._mapped[position : position + len(block)] = block
        else:
            _write_all(self._fd, block, position)

    def _unmap(self) -> None:
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None

    def _make_room(self, needed: int) -> None:
        """Copies the data behind a larger header; only models with very many tensors come here."""
        larger = self._path.with_name(self._path.name + ".larger")
        header_bytes = (needed + 4095) // 4096 * 4096
        with open(self._fd, "rb", closefd=False) as old, larger.open("wb") as new:
            old.seek(self._header_bytes)
            new.seek(header_bytes)
            while block := old.read(BLOCK_BYTES):
                new.write(block)
        self.close()
        larger.replace(self._path)
        self._fd = os.open(self._path, os.O_RDWR)
        self._header_bytes = header_bytes


def _take(spare: Path, path: Path) -> bool:
    try:
        spare.rename(path)
    except FileNotFoundError:
        return False
    return True


def _map_existing_pages(fd: int) -> mmap.mmap | None:
    """The file in memory, with all pages entered at once where the system can do that; None for an empty file."""
    if not os.fstat(fd).st_size:
        return None
    return mmap.mmap(fd, 0, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))


def mismatched_tensors(path: Path, entries: Sequence[TensorEntry], algorithm: str) -> list[str]:
    """Names of the tensors whose bytes are not those that were written.

    Raises:
        ValueError: the file's header does not list exactly these tensors, or the checksum is not known here.
    """
    header, data = read_layout(path)
    expected = json.loads(_header(entries))
    if header != expected:
        raise ValueError(f"{path}: the header lists other tensors than the manifest")
    if entries and len(data) != entries[-1].end:
        raise ValueError(f"{path}: {len(data)} bytes of data, expected {entries[-1].end}")
    new_checksum = checksum_function(algorithm)[1]

    def digest(entry: TensorEntry) -> str:
        checksum = new_checksum()
        checksum.update(data[entry.start : entry.end].data)
        return checksum.hexdigest()

    return [entry.name for entry in entries if digest(entry) != entry.checksum]


def read_layout(path: Path) -> tuple[dict[str, Any], Bytes]:
    """Header and mapped data section of a safetensors file.

    Raises:
        ValueError: not such a file, or cut off.
    """
    mapped = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)
    size = int.from_bytes(mapped[:8].tobytes(), "little") if len(mapped) >= 8 else -1
    if not 0 <= size <= len(mapped) - 8:
        raise ValueError(f"{path}: cut off or not a safetensors file ({len(mapped)} bytes)")
    try:
        header = json.loads(mapped[8 : 8 + size].tobytes())
    except ValueError as error:
        raise ValueError(f"{path}: unreadable header ({error})") from error
    return header, mapped[8 + size :]


class Checksum(Protocol):
    """Of bytes that come in pieces."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def checksum_function(algorithm: str | None = None) -> tuple[str, Callable[[], Checksum]]:
    """The named checksum, or the fastest one installed: 64-bit xxh3 where there is xxhash, else CRC-32.

    Raises:
        ValueError: the named one is not available here.
    """
    known: dict[str, Callable[[], Checksum]] = {}
    try:
        import xxhash
    except ImportError:
        pass
    else:
        known["xxh3_64"] = xxhash.xxh3_64
    known["crc32"] = _Crc32
    name = algorithm or next(iter(known))
    if name not in known:
        raise ValueError(f"checksum {name!r} is not available here (have {', '.join(known)}); install xxhash")
    return name, known[name]


def entry_as_json(entry: TensorEntry) -> dict[str, Any]:
    return asdict(entry)


def entry_from_json(value: Mapping[str, Any]) -> TensorEntry:
    return TensorEntry(**{**value, "shape": tuple(value["shape"])})


def _header(entries: Sequence[TensorEntry]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.end],
        }
    return json.dumps(header, separators=(",", ":")).encode()


def _write_all(fd: int, view: memoryview, position: int) -> None:
    while len(view):
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
