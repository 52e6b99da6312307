"""A group as one immutable block of bytes: JSON header, then raw numpy columns, then a checksum.

    magic 4s | format u16 | flags u16 | header bytes u32 | column bytes u64 | header | columns | crc32 u32

Not pickle: blocks lie on disk and cross machines, and reading one must not run anything. The columns of all members
are concatenated (token ids, then train prompts, then log-probs, then roles), little-endian, so that decoding is one
JSON parse and a few views. NaN log-probs keep their bits.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rewards.trajectory import (
    Context,
    FinishReason,
    Group,
    PolicyVersion,
    Reward,
    SamplingRecord,
    Source,
    Trajectory,
    Turn,
    VersionSpan,
)
from rewards.wire import verdict_from_json, verdict_to_json

MAGIC = b"BRGP"
FORMAT = 1
_PREFIX = struct.Struct("<4sHHIQ")
_CHECKSUM = struct.Struct("<I")
_ALIGNMENT = 8
_GROUP_KEYS = {"group_id", "prompt_id", "source", "ticket_id", "num_asked", "context", "history", "tags", "created_at"}
_MEMBER_KEYS = {
    "trajectory_id", "source", "num_tokens", "num_train_prompt", "versions", "sample_context", "verdict", "rewards",
    "turns", "finish_reason", "terminated", "truncated", "sampling", "images",
}  # fmt: skip


class CodecError(ValueError):
    """Bytes that are not an intact group block, or a group that cannot be written as one."""


def payload_digest(data: bytes) -> str:
    """32 hex digits that identify a block; equal groups have equal blocks and so equal digests."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def encode_group(group: Group) -> bytes:
    """The group as one block; the same group always gives the same bytes.

    Raises:
        CodecError: `tags`, `history` or a verdict's `extras` hold something JSON has no type for.
    """
    members = group.trajectories
    prompts = [t.train_prompt_ids for t in members if t.train_prompt_ids is not None]
    columns = b"".join(
        [
            *(_raw(t.token_ids, "<i4") for t in members),
            *(_raw(ids, "<i4") for ids in prompts),
            *(_raw(t.behavior_logprobs, "<f4") for t in members),
            *(_raw(t.roles, "i1") for t in members),
        ]
    )
    header = _header_bytes(group)
    body = _PREFIX.pack(MAGIC, FORMAT, 0, len(header), len(columns)) + header + columns
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode_group(data: bytes) -> Group:
    """The inverse of `encode_group`; arrays are read-only views into `data`.

    Raises:
        CodecError: wrong magic, unknown format, damaged or cut bytes, or fields that are not those of a group.
    """
    header, offset, num_bytes = _checked(data)
    try:
        columns = _Columns(data, offset, num_bytes, header["members"])
        members = tuple(
            _member(fields, header["group"]["group_id"], columns, i) for i, fields in enumerate(header["members"])
        )
        return _group(header["group"], members)
    except CodecError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CodecError(f"a group block whose fields do not make a group: {error!r}") from error


def _raw(array: np.ndarray, dtype: str) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _header_bytes(group: Group) -> bytes:
    header = {
        "group": {
            "group_id": group.group_id,
            "prompt_id": group.prompt_id,
            "source": group.source.value,
            "ticket_id": group.ticket_id,
            "num_asked": group.num_asked,
            "context": asdict(group.context),
            "history": dict(group.history),
            "tags": dict(group.tags),
            "created_at": group.created_at,
        },
        "members": [_member_header(t) for t in group.trajectories],
    }
    try:
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CodecError(
            f"group {group.group_id} cannot be written: {error}. Tags, history and verdict extras must be JSON types."
        ) from error
    return text + b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT)


def _member_header(t: Trajectory) -> dict[str, Any]:
    return {
        "trajectory_id": t.trajectory_id,
        "source": t.source.value,
        "num_tokens": len(t.token_ids),
        "num_train_prompt": None if t.train_prompt_ids is None else len(t.train_prompt_ids),
        "versions": None if t.versions is None else [[s.start, s.end, s.version] for s in t.versions],
        "sample_context": asdict(t.sample_context),
        "verdict": None if t.verdict is None else verdict_to_json(t.verdict),
        "rewards": [[r.name, r.value, r.position] for r in t.rewards],
        "turns": [[turn.start, turn.end, turn.finish_reason.value] for turn in t.turns],
        "finish_reason": t.finish_reason.value,
        "terminated": t.terminated,
        "truncated": t.truncated,
        "sampling": asdict(t.sampling),
        "images": list(t.images),
    }


def _checked(data: bytes) -> tuple[dict[str, Any], int, int]:
    """Header, offset of the columns and their size, once every byte is known to be what was written."""
    if len(data) < _PREFIX.size + _CHECKSUM.size:
        raise CodecError(f"a group block of {len(data)} bytes is shorter than its fixed parts")
    magic, version, flags, header_size, num_bytes = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CodecError(f"not a group block: it starts with {bytes(magic)!r}, not {MAGIC!r}")
    if version != FORMAT or flags != 0:
        raise CodecError(f"group block of format {version} flags {flags}; this code reads format {FORMAT} flags 0")
    expected = _PREFIX.size + header_size + num_bytes + _CHECKSUM.size
    if len(data) != expected:
        raise CodecError(f"group block has {len(data)} bytes, its prefix says {expected}")
    (checksum,) = _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)
    if zlib.crc32(memoryview(data)[: -_CHECKSUM.size]) != checksum:
        raise CodecError("group block is damaged: its checksum does not match")
    offset = _PREFIX.size + header_size
    try:
        header = json.loads(data[_PREFIX.size : offset])
    except (ValueError, RecursionError) as error:
        raise CodecError(f"group block with an unreadable header: {error}") from error
    _expect_keys(header, {"group", "members"}, "block")
    _expect_keys(header["group"], _GROUP_KEYS, "group")
    if not isinstance(header["members"], list):
        raise CodecError("the members of a group block are not a list")
    for fields in header["members"]:
        _expect_keys(fields, _MEMBER_KEYS, "member")
    return header, offset, num_bytes


def _expect_keys(fields: Any, keys: set[str], what: str) -> None:
    if not isinstance(fields, Mapping) or set(fields) != keys:
        found = sorted(fields) if isinstance(fields, Mapping) else type(fields).__name__
        raise CodecError(f"{what} header has {found}, expected {sorted(keys)}")


class _Columns:
    """Views of each member's slices of the concatenated columns."""

    def __init__(self, data: bytes, offset: int, num_bytes: int, members: Sequence[Mapping[str, Any]]) -> None:
        lengths = [_count(m["num_tokens"]) for m in members]
        prompts = [0 if m["num_train_prompt"] is None else _count(m["num_train_prompt"]) for m in members]
        total, total_prompts = sum(lengths), sum(prompts)
        if num_bytes != 9 * total + 4 * total_prompts:
            raise CodecError(f"columns of {num_bytes} bytes do not hold {total} tokens and {total_prompts} prompt ids")
        self._token_starts, self._prompt_starts = _starts(lengths), _starts(prompts)
        self._token_ids = np.frombuffer(data, "<i4", total, offset)
        self._prompt_ids = np.frombuffer(data, "<i4", total_prompts, offset + 4 * total)
        self._logprobs = np.frombuffer(data, "<f4", total, offset + 4 * (total + total_prompts))
        self._roles = np.frombuffer(data, "i1", total, offset + 4 * (2 * total + total_prompts))

    def tokens(self, index: int) -> dict[str, np.ndarray]:
        part = slice(self._token_starts[index], self._token_starts[index + 1])
        return {
            "token_ids": self._token_ids[part],
            "roles": self._roles[part],
            "behavior_logprobs": self._logprobs[part],
        }

    def train_prompt(self, index: int) -> np.ndarray:
        return self._prompt_ids[self._prompt_starts[index] : self._prompt_starts[index + 1]]


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CodecError(f"a token count must be a non-negative integer, got {value!r}")
    return value


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def _member(fields: Mapping[str, Any], group_id: str, columns: _Columns, index: int) -> Trajectory:
    versions = fields["versions"]
    spans = None if versions is None else tuple(VersionSpan(a, b, PolicyVersion(v)) for a, b, v in versions)
    return Trajectory(
        trajectory_id=fields["trajectory_id"],
        group_id=group_id,
        source=Source(fields["source"]),
        **columns.tokens(index),
        versions=spans,
        sample_context=Context(**fields["sample_context"]),
        train_prompt_ids=None if fields["num_train_prompt"] is None else columns.train_prompt(index),
        verdict=None if fields["verdict"] is None else verdict_from_json(fields["verdict"]),
        rewards=tuple(Reward(name, value, position) for name, value, position in fields["rewards"]),
        turns=tuple(Turn(start, end, FinishReason(reason)) for start, end, reason in fields["turns"]),
        finish_reason=FinishReason(fields["finish_reason"]),
        terminated=fields["terminated"],
        truncated=fields["truncated"],
        sampling=SamplingRecord(**fields["sampling"]),
        images=tuple(fields["images"]),
    )


def _group(fields: Mapping[str, Any], members: tuple[Trajectory, ...]) -> Group:
    return Group(
        group_id=fields["group_id"],
        prompt_id=fields["prompt_id"],
        source=Source(fields["source"]),
        trajectories=members,
        ticket_id=fields["ticket_id"],
        num_asked=fields["num_asked"],
        context=Context(**fields["context"]),
        history=fields["history"],
        tags=fields["tags"],
        created_at=fields["created_at"],
    )
