"""Durable history: a journal of events, packed blocks beside it, snapshots that shorten the way back.

    journal.jsonl        one event per line behind its crc32; an audit can follow every group. When it has grown too
                         large it is replaced as a whole by one that begins with the state it led to
    blocks/live-3.blk    length- and crc-prefixed packed groups; a file goes when none of its groups is needed
    snapshot.json        the state up to a position of this journal; without it the whole journal is replayed

A crash may cut the last line or block: it is dropped, because nobody was told that it is durable. Damage anywhere
else is an error.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Fsync = Literal["always", "commit", "never"]
"""When bytes are forced to disk: with every event, with events whose loss a peer would notice, or left to the system.

Data that reached the operating system survives the death of the process in all three cases."""

_BLOCK = struct.Struct("<II")


class CorruptLogError(RuntimeError):
    """History in the middle of a log cannot be read; a torn end is not an error."""


def write_json(path: Path, value: Any) -> None:
    """Replaces a file durably: temporary name, fsync, rename, fsync of the folder."""
    body = json.dumps(value, separators=(",", ":"))
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(f"{zlib.crc32(body.encode()):08x} {body}\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_folder(path.parent)


def read_json(path: Path) -> Any | None:
    """What `write_json` wrote; None when the file is missing or not intact."""
    try:
        return _parse_line(path.read_bytes())
    except FileNotFoundError:
        return None


class Journal:
    """An append-only file of JSON events, one per line."""

    def __init__(self, path: Path, *, fsync: Fsync = "commit") -> None:
        """Opens or creates the file and cuts a torn end.

        Raises:
            CorruptLogError: a line in the middle is damaged.
        """
        self._fsync: Fsync = fsync
        self.path = path
        end, self.generation = 0, 0
        """How often the file was replaced."""
        for event, position in read_journal(path):
            end, self.generation = position, event.get("generation", self.generation)
        is_new = not path.exists()
        self._file = path.open("ab", buffering=0)
        self._file.truncate(end)
        self._end = end
        if is_new:
            _sync_folder(path.parent)

    @property
    def end(self) -> int:
        """Bytes written; the position of the next event."""
        return self._end

    def append(self, event: Mapping[str, Any], *, durable: bool = False) -> None:
        """Writes one event; `durable` ones are on disk when this returns, unless fsync is never.

        Raises:
            OSError: it could not be written whole; what was written of it is cut off again.
        """
        body = json.dumps(event, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"{self.path}: {written} of {len(line)} bytes of an event were written: disk full?")
            if self._fsync == "always" or (durable and self._fsync == "commit"):
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(line)

    def begin_anew(self, first: Mapping[str, Any]) -> None:
        """Replaces the file by one that holds this event, in one step: a crash leaves the old or the new one.

        Raises:
            OSError: it could not be written; the old file is as it was.
        """
        temporary = self.path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        fresh = Journal(temporary, fsync=self._fsync)
        try:
            fresh.append({**first, "generation": self.generation + 1}, durable=True)
            temporary.rename(self.path)
        except OSError:
            fresh.close()
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self.path.parent)
        self._file.close()
        self._file, self._end, self.generation = fresh._file, fresh._end, self.generation + 1

    def sync(self) -> None:
        if self._fsync != "never":
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The events from byte `start` on, each with the position behind it; a torn end is left out.

    Raises:
        CorruptLogError: an intact event follows a damaged one.
    """
    if not path.exists():
        return
    position, damaged_at = start, None
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            event = _parse_line(line)
            if event is None:
                damaged_at = position if damaged_at is None else damaged_at
            elif damaged_at is not None:
                raise CorruptLogError(
                    f"{path}: byte {damaged_at} begins a damaged event, but intact ones follow. Restore the file from "
                    "a copy; cutting it there would forget what others rely on."
                )
            position += len(line)
            if event is not None:
                yield event, position


def _parse_line(line: bytes) -> Any | None:
    if len(line) < 10 or not line.endswith(b"\n"):
        return None
    checksum, _, body = line[:-1].partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


class BlockStore:
    """Packed groups in numbered files of bounded size, one series per lifetime (live, frozen)."""

    def __init__(self, folder: Path, *, fsync: Fsync = "commit", max_file_bytes: int = 64 << 20) -> None:
        self._folder, self._fsync, self._max_file_bytes = folder, fsync, max_file_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._open: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        """Of the open files; one text for all blocks in a file, because millions of groups hold it."""
        self._unsynced: set[str] = set()
        numbers = [int(p.stem.rpartition("-")[2]) for p in folder.glob("*.blk")]
        self._next_number = max(numbers, default=-1) + 1

    def append(self, series: str, data: bytes) -> list[Any]:
        """Writes one block; returns where it lies: [file, offset, bytes].

        Raises:
            OSError: it could not be written whole.
        """
        file = self._open.get(series)
        if file is None or file.tell() >= self._max_file_bytes:
            file = self._rotate(series)
        offset = file.tell()
        block = _BLOCK.pack(len(data), zlib.crc32(data)) + data
        written = file.write(block)
        if written != len(block):
            file.truncate(offset)
            file.seek(offset)
            raise OSError(f"{file.name}: {written} of {len(block)} bytes of a group were written: disk full?")
        self._unsynced.add(series)
        if self._fsync == "always":
            self.sync()
        return [self._names[series], offset, len(data)]

    def read(self, blob: Sequence[Any]) -> bytes | None:
        """The block at that place; None when the file is gone or the block is not intact."""
        name, offset, size = blob
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(offset)
                head, data = file.read(_BLOCK.size), file.read(size)
        except FileNotFoundError:
            return None
        if head != _BLOCK.pack(size, zlib.crc32(data)) or len(data) != size:
            return None
        return data

    def sync(self) -> None:
        """Everything written so far is on disk when this returns, unless fsync is never."""
        if self._fsync != "never":
            for series in self._unsynced:
                os.fsync(self._open[series].fileno())
        self._unsynced.clear()

    def keep_only(self, needed: Iterable[Sequence[Any]]) -> None:
        """Deletes files in which no needed block lies."""
        names = Counter(name for name, _, _ in needed)
        writing = {Path(file.name).name for file in self._open.values()}
        for path in self._folder.glob("*.blk"):
            if path.name not in names and path.name not in writing:
                path.unlink()

    def sparse(self, needed: Iterable[Sequence[Any]]) -> set[str]:
        """Files that are not being written and of which needed blocks are less than half, but some."""
        sizes: Counter[str] = Counter()
        for name, _, size in needed:
            sizes[name] += size + _BLOCK.size
        writing = {Path(file.name).name for file in self._open.values()}
        files = (name for name in sizes if name not in writing and (self._folder / name).exists())
        return {name for name in files if 2 * sizes[name] < (self._folder / name).stat().st_size}

    def close(self) -> None:
        for file in self._open.values():
            file.close()

    def _rotate(self, series: str) -> Any:
        self.sync()
        if series in self._open:
            self._open[series].close()
        file = (self._folder / f"{series}-{self._next_number}.blk").open("wb", buffering=0)
        self._next_number += 1
        self._open[series] = file
        self._names[series] = Path(file.name).name
        _sync_folder(self._folder)
        return file


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a folder remembers: a state, and the events after it."""

    state: Mapping[str, Any] | None
    events: Sequence[Mapping[str, Any]]


class ReplayLog:
    """The folder of one replay cache."""

    def __init__(self, folder: Path, *, fsync: Fsync = "commit", max_file_bytes: int = 64 << 20) -> None:
        """Opens or creates the folder; Raises CorruptLogError when its history is damaged."""
        folder.mkdir(parents=True, exist_ok=True)
        self._snapshot_path = folder / "snapshot.json"
        self.journal = Journal(folder / "journal.jsonl", fsync=fsync)
        self.blocks = BlockStore(folder / "blocks", fsync=fsync, max_file_bytes=max_file_bytes)

    def recover(self) -> Recovered:
        """The newest intact snapshot and the events after it, or all events."""
        snapshot = read_json(self._snapshot_path)
        is_of_this = snapshot is not None and snapshot.get("generation", 0) == self.journal.generation
        if snapshot is None or not is_of_this or snapshot["position"] > self.journal.end:
            return Recovered(None, [event for event, _ in read_journal(self.journal.path)])
        return Recovered(snapshot["state"], [e for e, _ in read_journal(self.journal.path, snapshot["position"])])

    def append(self, event: Mapping[str, Any], *, durable: bool = False) -> None:
        """Writes one event; blocks it refers to reach the disk before it does."""
        if durable:
            self.blocks.sync()
        self.journal.append(event, durable=durable)

    def sync(self) -> None:
        """Everything written so far is on disk when this returns, unless fsync is never."""
        self.blocks.sync()
        self.journal.sync()

    def begin_anew(self, state: Mapping[str, Any], **settings: Any) -> None:
        """Forgets the events that led to this state, which is all of it; `settings` stand beside it for readers."""
        self.blocks.sync()
        self.journal.begin_anew({"kind": "base", "state": state, **settings})

    def snapshot(self, state: Mapping[str, Any], needed: Iterable[Sequence[Any]]) -> Path:
        """Makes the state up to now durable and deletes blocks nobody needs."""
        self.sync()
        write_json(
            self._snapshot_path, {"position": self.journal.end, "generation": self.journal.generation, "state": state}
        )
        self.blocks.keep_only(needed)
        return self._snapshot_path

    def close(self) -> None:
        self.journal.close()
        self.blocks.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
