"""Experience from elsewhere: caches of other runs, traces of teachers, answers of experts, as frozen groups."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.replay.config import ImportConfig
from actors.replay.log import BlockStore, read_journal
from rewards.codec import decode_group, payload_digest
from rewards.task import Message
from rewards.trajectory import Group, Role, Source, Trajectory
from rewards.verdict import Verdict


class ImportedDataError(ValueError):
    """A file that cannot be imported, with the line and the way out."""


class Tokens(Protocol):
    """What turns text into the tokens this run trains on."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]: ...

    def answer_ids(self, text: str) -> list[int]: ...


def imported_groups(entry: ImportConfig, tokens: Tokens) -> Iterator[Group]:
    """Frozen groups of one import, under ids that are the same whenever it is read.

    Raises:
        ImportedDataError: there is nothing to read, or a line of it cannot be used.
    """
    path, groups = Path(entry.path), _of_file
    if path.is_dir():
        groups = _of_run
    elif not path.is_file():
        raise ImportedDataError(f"replay.imports: {path} is neither the folder of a run nor a .jsonl file")
    taken = 0
    for group in groups(path, entry, tokens):
        kept = _only_right(group) if entry.only_right else group
        if kept is not None and (entry.max_groups is None or taken < entry.max_groups):
            taken += 1
            yield kept
    if not taken:
        raise ImportedDataError(
            f"replay.imports: {path} holds no group that could be used"
            + (" (only_right is set: are its answers judged?)" if entry.only_right else "")
        )


def check_needs(group: Group, needs: Container[str], path: str) -> None:
    """Raises ImportedDataError when answers lack recorded log-probs or scores that a term of their source reads."""
    lacking = []
    if "behavior_logprobs" in needs and any(
        np.isnan(member.behavior_logprobs[member.sampled_mask]).any() for member in group.trajectories
    ):
        lacking.append("log-probs")
    if "scores" in needs and group.num_scored < len(group.trajectories):
        lacking.append("scores")
    if lacking:
        raise ImportedDataError(
            f"replay.imports: group {group.group_id} of {path} has no {' and no '.join(lacking)}, which a term on "
            f"source {group.source.value!r} needs. Import data that has them, or use a loss that does without."
        )


def _only_right(group: Group) -> Group | None:
    right = tuple(member for member in group.trajectories if member.is_right)
    return replace(group, trajectories=right) if right else None


# -- another run's cache ----------------------------------------------------------------------------------------------


def _of_run(path: Path, entry: ImportConfig, tokens: Tokens) -> Iterator[Group]:
    """Every group whose block the run still keeps. Its policy versions mean nothing here, so the groups have no age;
    what is known of its log-probs stays known."""
    del tokens
    folder = next((f for f in (path / "state" / "replay", path) if (f / "journal.jsonl").exists()), None)
    folders = [folder] if folder is not None else sorted((path / "state" / "replay").glob("shard-*"))
    if not folders:
        raise ImportedDataError(f"replay.imports: {path} holds no replay journal: is it the folder of a run?")
    name = hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
    for each in folders:
        blocks = BlockStore(each / "blocks") if (each / "blocks").is_dir() else None
        for blob, digest in _stored(each).values():
            data = blocks.read(blob) if blocks is not None and blob is not None else None
            if data is not None and payload_digest(data) == digest:
                yield _as_import(decode_group(data), Source(entry.source), f"{entry.source}:{name}:")


def _stored(folder: Path) -> dict[str, tuple[Sequence[Any] | None, str]]:
    """Place and digest of every group a journal knows, by id."""
    stored: dict[str, tuple[Sequence[Any] | None, str]] = {}
    for event, _ in read_journal(folder / "journal.jsonl"):
        if event["kind"] == "base":
            stored = {row["group_id"]: (row["blob"], row["digest"]) for row in event["state"]["entries"]}
        elif event["kind"] == "put":
            stored[event["group"]] = event["blob"], event["digest"]
        elif event["kind"] == "moved":
            stored |= {group_id: (blob, stored[group_id][1]) for group_id, blob in event["blobs"].items()}
    return stored


def _as_import(group: Group, source: Source, prefix: str) -> Group:
    group_id = f"{prefix}{group.group_id}"
    members = tuple(
        replace(member, group_id=group_id, trajectory_id=f"{group_id}/{number}", source=source, versions=None)
        for number, member in enumerate(group.trajectories)
    )
    return replace(group, group_id=group_id, source=source, trajectories=members, ticket_id=None)


# -- a file of rows ---------------------------------------------------------------------------------------------------


def _of_file(path: Path, entry: ImportConfig, tokens: Tokens) -> Iterator[Group]:
    """Rows of one prompt that follow each other are one group."""
    pending: list[tuple[int, Mapping[str, Any]]] = []
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _row(path, number, line)
            if row.get("source", entry.source) != entry.source:
                continue  # a file may hold several sources; each import takes its own
            if pending and row["prompt"] != pending[0][1]["prompt"]:
                yield _group(path, entry, tokens, pending)
                pending = []
            pending.append((number, row))
    if pending:
        yield _group(path, entry, tokens, pending)


def _row(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ImportedDataError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict) or "prompt" not in row or not ("response" in row or "token_ids" in row):
        raise ImportedDataError(
            f"{path}, line {number}: a row needs `prompt` (text or messages) and `response` (text) or `token_ids`; "
            "`logprobs`, `score`, `correct`, `prompt_id` and `source` may be there"
        )
    return row


def _group(path: Path, entry: ImportConfig, tokens: Tokens, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Group:
    prompt = rows[0][1]["prompt"]
    messages: Sequence[Message] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    prompt_ids = tokens.prompt_ids(messages)
    text = json.dumps([row for _, row in rows], sort_keys=True)
    name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    group_id, source = f"{entry.source}:{name}", Source(entry.source)
    members = tuple(
        _member(f"{path}, line {number}", row, group_id, index, source, prompt_ids, tokens)
        for index, (number, row) in enumerate(rows)
    )
    prompt_id = rows[0][1].get("prompt_id") or hashlib.blake2b(str(prompt).encode(), digest_size=8).hexdigest()
    return Group(
        group_id=group_id,
        prompt_id=str(prompt_id),
        source=source,
        trajectories=members,
        num_asked=len(members),
    )


def _member(
    where: str,
    row: Mapping[str, Any],
    group_id: str,
    index: int,
    source: Source,
    prompt_ids: Sequence[int],
    tokens: Tokens,
) -> Trajectory:
    answer = list(row["token_ids"]) if "token_ids" in row else tokens.answer_ids(row["response"])
    start, length = len(prompt_ids), len(answer)
    logprobs = np.full(start + length, np.nan, dtype=np.float32)
    if row.get("logprobs") is not None:
        if len(row["logprobs"]) != length:
            raise ImportedDataError(
                f"{where}: {len(row['logprobs'])} log-probs for {length} tokens. Give `token_ids` beside them, or "
                "leave them out: then they stay unknown, and no loss that needs them can use the row."
            )
        logprobs[start:] = [np.nan if value is None else value for value in row["logprobs"]]
    roles = np.full(start + length, Role.SAMPLED, dtype=np.int8)
    roles[:start] = Role.CONTEXT
    score = row.get("score")
    return Trajectory(
        trajectory_id=f"{group_id}/{index}",
        group_id=group_id,
        source=source,
        token_ids=np.asarray([*prompt_ids, *answer], dtype=np.int32),
        roles=roles,
        behavior_logprobs=logprobs,
        verdict=None if score is None else Verdict.scored(float(score), correct=row.get("correct")),
    )
