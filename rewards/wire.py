"""Tasks and verdicts as JSON, and the frames they cross a process boundary in.

JSON and not pickle: the far side runs code that is not ours, and reading its words must not run anything here.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Collection
from typing import Any

from rewards.task import ExpertResponse, Task
from rewards.verdict import Status, Verdict

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct("!Q")


class FrameError(ConnectionError):
    """The far side closed the connection or sent something that is not a frame."""


def task_to_json(task: Task) -> dict[str, Any]:
    """Plain containers of a task; `metadata` must already consist of JSON types."""
    return {
        "task_id": task.task_id,
        "prompt": task.prompt if isinstance(task.prompt, str) else [dict(message) for message in task.prompt],
        "reference": task.reference,
        "metadata": dict(task.metadata),
        "expert": [[answer.text, answer.logprobs, answer.author, answer.score] for answer in task.expert],
        "tags": dict(task.tags),
    }


def task_from_json(data: dict[str, Any]) -> Task:
    """The inverse of `task_to_json`."""
    prompt = data["prompt"]
    expert = tuple(
        ExpertResponse(text=text, logprobs=None if logprobs is None else tuple(logprobs), author=author, score=score)
        for text, logprobs, author, score in data["expert"]
    )
    return Task(
        task_id=data["task_id"],
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        reference=data["reference"],
        metadata=data["metadata"],
        expert=expert,
        tags=data["tags"],
    )


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "score": verdict.score,
        "status": verdict.status.value,
        "components": dict(verdict.components),
        "extras": dict(verdict.extras),
        "seconds": verdict.seconds,
        "correct": verdict.correct,
    }


def verdict_from_json(data: Any) -> Verdict:
    """Checks every field: the sender runs code that is not ours.

    Raises:
        ValueError: not a verdict.
    """
    try:
        score = data["score"]
        components = {str(name): None if value is None else float(value) for name, value in data["components"].items()}
        return Verdict(
            score=None if score is None else float(score),
            status=Status(data["status"]),
            components=components,
            extras=dict(data["extras"]),
            seconds=float(data["seconds"]),
            correct=None if data.get("correct") is None else bool(data["correct"]),
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"not a verdict: {error!r}") from error


def parts_from_json(data: Any, names: Collection[str]) -> dict[str, Verdict]:
    """Verdicts by component, of exactly the named ones.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(data, dict) or data.keys() != set(names):
        raise ValueError(f"not verdicts of {sorted(names)}")
    return {name: verdict_from_json(value) for name, value in data.items()}


def encode(message: Any) -> bytes:
    """Writes a message as JSON.

    Raises:
        TypeError, ValueError, RecursionError: it holds something JSON has no type for.
    """
    return json.dumps(message).encode()


def send(connection: socket.socket, payload: bytes) -> None:
    """Sends one frame: eight bytes of length, then the encoded message."""
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive(connection: socket.socket) -> Any:
    """Receives one frame.

    Raises:
        FrameError: end of stream, an oversized frame, or bytes that are not JSON.
        TimeoutError: the socket's timeout passed between two pieces.
    """
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {size} bytes; the limit is {MAX_FRAME_BYTES}")
    try:
        return json.loads(_exactly(connection, size))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame that is not JSON: {error}") from error


def _exactly(connection: socket.socket, size: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < size:
        piece = connection.recv(min(size - len(pieces), 1 << 20))
        if not piece:
            raise FrameError("the connection was closed")
        pieces += piece
    return bytes(pieces)
