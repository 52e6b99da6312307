"""The life of one sample from issue to gradient, from the journals of a run that may be going on. Only reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actors.replay.log import BlockStore, read_journal
from orchestrator.run_files import RunFiles
from orchestrator.run_log import EVENTS_FILE, read
from rewards.codec import decode_group
from rewards.trajectory import Group, Role, Trajectory

MAX_GROUPS = 8
"""Groups of one prompt that are told, the newest."""


class UnknownSampleError(LookupError):
    """No journal of the run names this sample."""


@dataclass(slots=True)
class Life:
    """What the journals say of one group.

    Attributes:
        events: lines in order of the journals: task stream, then tickets and batches.
        blob: where its packed block lies, if it was stored.
        steps: 0-based learner steps it was trained at in the surviving history.
    """

    group_id: str
    events: list[str] = field(default_factory=list)
    blob: list[Any] | None = None
    steps: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Journals:
    """What the task stream and the cache wrote down, in order."""

    tasks: list[dict[str, Any]]
    replay: list[dict[str, Any]]

    @classmethod
    def of(cls, files: RunFiles) -> _Journals:
        return cls(
            *(
                [event for path in _folders(files, box) for event, _ in read_journal(path / "journal.jsonl")]
                for box in ("tasks", "replay")
            )
        )


def _folders(files: RunFiles, box: str) -> list[Path]:
    """Of a box's journals: one, or one of each shard."""
    return sorted((files.state / box).glob("shard-*")) or [files.state / box]


def trace_run(run_dir: Path, name: str) -> list[str]:
    """Lines about a group, a member `GROUP/N`, all groups of a ticket, or the newest of a prompt.

    Raises:
        UnknownSampleError: nothing in this run has that name.
    """
    files = RunFiles(run_dir)
    journals = _Journals.of(files)
    group_ids, member = _named_groups(journals, name)
    if not group_ids:
        raise UnknownSampleError(
            f"no group, member, ticket or prompt {name!r} in the journals of {run_dir}: group ids stand in "
            "`braid ledger --json` prompts, in events.jsonl and in the checkpoint's manifest; try a prompt id"
        )
    lines: list[str] = []
    for group_id in group_ids:
        lines += [*_told(files, journals, group_id, member), ""]
    return lines[:-1]


def _named_groups(journals: _Journals, name: str) -> tuple[list[str], str | None]:
    """Ids of the groups a name means, oldest first, and the member it names."""
    group_id, slash, number = name.rpartition("/")
    is_member = bool(slash) and (number.isdigit() or number.startswith("donor-"))
    known: dict[str, str] = {}
    for event in journals.tasks:
        if event["kind"] == "finished":
            known[event["group"]] = event["prompt"]
    for event in journals.replay:
        if event["kind"] in ("put", "refused"):
            known.setdefault(event["group"], "")
    if is_member and group_id in known:
        return [group_id], name
    if name in known:
        return [name], None
    found = [g for g, prompt in known.items() if prompt == name or g.startswith(f"{name}.")]
    return found[-MAX_GROUPS:], None


def _told(files: RunFiles, journals: _Journals, group_id: str, member: str | None) -> Iterator[str]:
    life = Life(group_id)
    for event in journals.tasks:
        _follow_task(life, event)
    leases: dict[str, Mapping[str, Any]] = {}
    for event in journals.replay:
        _follow_replay(life, event, leases)
    yield f"group    {group_id}"
    yield from life.events
    block = _block(files, life)
    if block is not None:
        yield from _contents(block, member)
    for step in life.steps:
        yield from _trained(files, step, group_id, member)


def _follow_task(life: Life, event: Mapping[str, Any]) -> None:
    """The stream's side: which task, for whom, and what came of it. A group's name holds its place in the stream."""
    _, index, _ = _parts(life.group_id)
    if event["kind"] == "leased" and str(event["index"]) == index:
        attempt = f", handed out for the {event['attempt'] + 1}. time" if event["attempt"] else ""
        life.events.append(f"task     {event['prompt']} at place {index} to {event['worker']}{attempt}")
    elif event["kind"] == "finished" and event["group"] == life.group_id:
        helped = event.get("helped_scored", 0)
        scored = f"{event['correct']} of {event['scored']} right"
        scored += f", with help {event.get('helped_correct', 0)} of {helped}" if helped else ""
        history = "".join(f", {action} {count}x" for action, count in event.get("history", {}).items())
        life.events.append(f"outcome  {event['fate']}: {scored}, oldest version {event['version']}{history}")
        if context := event.get("context"):
            life.events.append(f"context  {_context_text(context)}")
        extras = {"retired": "prompt retired", "forks": "forked", "stashed": "answers stashed as donors"}
        life.events += [f"rule     {text}" for key, text in extras.items() if event.get(key)]


def _follow_replay(life: Life, event: Mapping[str, Any], leases: dict[str, Mapping[str, Any]]) -> None:
    """The cache's side: ticket, storage, batches, and how it ended."""
    ticket, _, _ = _parts(life.group_id)
    kind, tell = event["kind"], life.events.append
    if kind == "issued" and event["ticket"] == ticket:
        tell(
            f"ticket   {ticket} to {event['worker']}, due at step {event['due']}, weights from step {event['min_step']}"
        )
    elif kind == "returned" and event["ticket"] == ticket:
        tell(f"ticket   returned: {event['reason']}")
    elif kind in ("put", "refused") and event["group"] == life.group_id:
        reason = f": {event['reason']}" if kind == "refused" else ""
        tell(f"{'stored' if kind == 'put' else 'refused':9}{event['tokens']} tokens of {event['source']}{reason}")
        life.blob = event.get("blob")
    elif kind == "leased" and life.group_id in event["groups"]:
        leases[event["lease"]] = event
        tell(f"leased   for step {event['step']} at age {event['ages'].get(life.group_id, 'none')}")
    elif kind == "committed" and event["lease"] in leases:
        step, reason = leases[event["lease"]]["step"], event["dropped"].get(life.group_id)
        tell(f"commit   step {step}" + (f", not trained on: {reason}" if reason else ", trained on"))
        life.steps += [] if reason else [step]
    elif kind == "moved" and life.group_id in event["blobs"]:
        life.blob = event["blobs"][life.group_id]
    elif kind in ("evicted", "lost") and life.group_id in event["groups"]:
        tell(f"{kind:9}{event.get('reason', 'its block could not be read back')}")
    elif kind == "rolled_back" and any(step >= event["step"] for step in life.steps):
        tell(f"rollback to {event['step']} steps: what was trained after them is undone")
        life.steps = [step for step in life.steps if step < event["step"]]


def _contents(group: Group, member: str | None) -> Iterator[str]:
    """What the packed block says of the members; of one of them in full."""
    for trajectory in group.trajectories:
        if member is None or trajectory.trajectory_id == member:
            yield from _member(trajectory, in_full=member is not None)


def _member(t: Trajectory, *, in_full: bool) -> Iterator[str]:
    status = "no verdict" if t.verdict is None else f"{t.verdict.status.value} {_number(t.verdict.score)}"
    versions = "frozen" if not t.versions else ", ".join(f"v{s.version} [{s.start}, {s.end})" for s in t.versions)
    roles = ", ".join(f"{count} {role.name.lower()}" for role in Role if (count := int((t.roles == role).sum())))
    yield f"member   {t.trajectory_id} ({t.source.value}): {status}; {roles}; {t.finish_reason.value}"
    if not in_full:
        return
    known = t.behavior_logprobs[t.sampled_mask]
    mean = f"{float(np.nanmean(known)):.3f} nats" if np.isfinite(known).any() else "unknown"
    yield f"         versions {versions}; mean behaviour log-prob {mean}"
    yield f"         sampled in {_context_text({f: getattr(t.sample_context, f) for f in ('kind', 'amount', 'unit')})}"
    learned = "the prompt it was sampled in" if t.train_prompt_ids is None else "the plain prompt"
    yield f"         learned from {learned}"
    if t.verdict is not None and t.verdict.components:
        parts = ", ".join(f"{name} {_number(value)}" for name, value in t.verdict.components.items())
        yield f"         components {parts}"


def _trained(files: RunFiles, step: int, group_id: str, member: str | None) -> Iterator[str]:
    """How far the policy had moved on the members when they were trained, and how much of them was clipped."""
    records: list[Any] = []
    for event in read(files.root / EVENTS_FILE):
        if event["kind"] == "trained" and event["step"] == step:  # the last one: a step may have been rolled back
            records = event["groups"].get(group_id, [])
    for number, (tokens, ratio, clipped) in enumerate(records):
        name = f"{group_id}/{number}"
        if member in (None, name) or (member is not None and not member.rpartition("/")[2].isdigit()):
            ratio_text = "no ratio" if ratio is None else f"ratio {ratio:.4g}"
            clipped_text = "" if clipped is None else f", {clipped:.1%} clipped"
            yield f"step {step:<4}{name}: {tokens} tokens trained, {ratio_text}{clipped_text}"


def _block(files: RunFiles, life: Life) -> Group | None:
    """The stored group, unless its block is gone: spent groups leave the disk behind a checkpoint."""
    for folder in (path / "blocks" for path in _folders(files, "replay")):
        data = BlockStore(folder).read(life.blob) if life.blob is not None and folder.exists() else None
        group = None if data is None else decode_group(data)
        if group is not None and group.group_id == life.group_id:
            return group
    return None


def _parts(group_id: str) -> tuple[str, str, str]:
    """Ticket, place in the stream, attempt; empty for groups that were preloaded."""
    parts = group_id.rsplit(".", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


def _context_text(context: Mapping[str, Any]) -> str:
    amount = context.get("amount")
    text = str(context["kind"]) if context["kind"] != "none" else "the plain prompt"
    text += f" of {amount:g} {context.get('unit')}" if amount is not None else ""
    return text + (", removed for training" if context.get("removed") else "")


def _number(value: float | None) -> str:
    return "without a score" if value is None else f"{value:g}"
