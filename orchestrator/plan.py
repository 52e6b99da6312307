"""`braid plan`: what a run would take and what asynchrony could gain, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from actors.replay.quotas import LIVE, QuotaPlan
from learner.packing import MIN_SHARED_SAVING, build_forest, choose_layout
from orchestrator.config import RunConfig
from orchestrator.layout import LAYOUTS
from orchestrator.memory_plan import kv_bytes_per_token, memory_items, total_bytes
from orchestrator.overlap import Workload, overlap_gain
from orchestrator.resources import Available, requested
from orchestrator.shapes import ModelShape, TaskShape

CUTS = (3.0, 5.0)
"""Longest answer over mean answer, for which the gain of asynchrony is shown."""

TICKET_WINDOW = 1000
"""Steps over which a composition that changes from step to step is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One table of a plan, and the same as plain data."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All parts, in the order a reader wants them."""

    parts: tuple[Part, ...]

    def as_json(self) -> str:
        return json.dumps({part.key: part.data for part in self.parts}, indent=2, default=str)

    def print(self, console: Console) -> None:
        """Tables with frames on a terminal, aligned columns elsewhere."""
        for part in self.parts:
            _print_part(part, console)


def make_plan(
    config: RunConfig,
    tasks: TaskShape,
    model: ModelShape | None,
    available: Available,
    *,
    train_ratio: float = 1.0,
) -> Plan:
    """The plan of a validated configuration.

    Args:
        model: None leaves the memory unknown.
        train_ratio: time to train one batch over the time to sample it with every slot busy.
    """
    quotas = QuotaPlan(config.replay.groups_per_update, {str(s): share for s, share in config.replay.quotas.items()})
    parts = [batch_part(config, tasks, quotas), flow_part(config, tasks, quotas)]
    if model is not None:
        parts.append(memory_part(config, tasks, model, available, quotas))
    parts.append(resource_part(config, available))
    parts.append(sharing_part(config, tasks, quotas))
    if quotas.has_live:
        parts.append(overlap_part(config, quotas, train_ratio))
    return Plan(parts=tuple(parts))


# -- one update -------------------------------------------------------------------------------------------------


def batch_part(config: RunConfig, tasks: TaskShape, quotas: QuotaPlan) -> Part:
    """Groups, answers and tokens of one update by source; shares are exact."""
    shares = {**quotas.shares, LIVE: 1 - sum(quotas.shares.values(), Fraction(0))}
    rows, data = [], {}
    for source, share in sorted(shares.items(), key=lambda item: item[0] != LIVE):
        if share == 0:
            continue
        groups = share * config.replay.groups_per_update
        answers, tokens = _answers_of(config, tasks, source)
        total = sum(quotas.counts(step)[source] for step in range(config.num_steps))
        num_tokens = round(float(groups) * answers * (tasks.prompt_tokens + tokens))
        at_most = "at most " if source == LIVE else ""
        rows.append(
            (
                source,
                str(share),
                _exact(groups, [quotas.counts(step)[source] for step in range(8)]),
                f"{answers:g}",
                f"{float(groups) * answers:,.1f}".removesuffix(".0"),
                f"{at_most}{num_tokens:,}",
                f"{total:,}",
            )
        )
        data[source] = {
            "share": str(share),
            "groups_per_update": str(groups),
            "answers_per_group": answers,
            "tokens_per_update": num_tokens,
            "groups_in_run": total,
        }
    notes = (
        f"prompts have {tasks.prompt_tokens:.0f} tokens on average and {tasks.longest_prompt} at most, in a sample of "
        f"{len(tasks.prompts)}; each answer is counted with its prompt",
    )
    columns = ("source", "share", "groups per update", "answers per group", "answers", "tokens", "groups in the run")
    title = f"One update: {config.replay.groups_per_update} groups, {config.num_steps} updates"
    return Part(key="batch", title=title, columns=columns, rows=tuple(rows), notes=notes, data=data)


def _answers_of(config: RunConfig, tasks: TaskShape, source: str) -> tuple[float, float]:
    """Answers per group, and tokens per answer: the limit for live ones, the mean for expert ones."""
    if source == LIVE:
        return float(config.rollout.group_size), float(config.rollout.sampling.max_new_tokens)
    return round(tasks.answers_per_expert_group, 2), tasks.expert_answer_tokens


def _exact(groups: Fraction, first: Sequence[int]) -> str:
    """12, or 32/3 with what the first updates really take."""
    if groups.denominator == 1:
        return str(groups)
    return f"{groups} ({', '.join(map(str, first))}, ...)"


def flow_part(config: RunConfig, tasks: TaskShape, quotas: QuotaPlan) -> Part:
    """Everything that follows from the batch and the age bound."""
    rollout, replay = config.rollout, config.replay
    tickets = max_live_groups(config, quotas)
    live_total = quotas.live_total(config.num_steps)
    versions = -(-config.num_steps // config.weights.publish_every) + 1
    facts: dict[str, tuple[Any, str]] = {}
    if quotas.has_live:
        facts["live groups that may exist untrained"] = (
            tickets,
            f"(max_age {replay.max_age} + 1) x fresh groups: tickets end there, so no worker samples further ahead",
        )
        facts["sequences decoded together"] = (
            num_slots(config),
            f"{rollout.num_workers} workers x min(max_num_seqs {rollout.engine.max_num_seqs}, concurrent_groups "
            f"{rollout.concurrent_groups} x group_size {rollout.group_size})",
        )
        facts["passes over the training tasks"] = (
            round(live_total / tasks.num_train, 2),
            f"{live_total:,} live groups / {tasks.num_train:,} tasks",
        )
    if "expert" in replay.quotas and tasks.num_with_expert:
        total = sum(quotas.counts(step)["expert"] for step in range(config.num_steps))
        facts["passes over the expert responses"] = (
            round(total / tasks.num_with_expert, 2),
            f"{total:,} expert groups / {tasks.num_with_expert:,} tasks with a response",
        )
    facts["weight versions published"] = (versions, f"every {config.weights.publish_every} updates, and the first")
    evaluation = config.evaluation
    between = (config.num_steps - 1) // evaluation.every if evaluation.every else 0
    facts["evaluations"] = (
        evaluation.at_start + evaluation.at_end + between,
        f"of {tasks.num_heldout:,} held-out tasks x {evaluation.samples_per_task} samples",
    )
    rows = tuple((name, f"{value:,}", why) for name, (value, why) in facts.items())
    data = {name.replace(" ", "_"): value for name, (value, _) in facts.items()}
    return Part(key="flow", title="What follows", columns=("quantity", "value", "why"), rows=rows, data=data)


def max_live_groups(config: RunConfig, quotas: QuotaPlan) -> int:
    """Most live groups that may be running or stored at the same time: what the next max_age + 1 updates take."""
    window = config.replay.max_age + 1
    counts = [quotas.counts(step)[LIVE] for step in range(min(config.num_steps, TICKET_WINDOW) + window)]
    return max(sum(counts[start : start + window]) for start in range(len(counts) - window + 1))


def num_slots(config: RunConfig) -> int:
    """Sequences all engines together decode at the same time."""
    rollout = config.rollout
    return rollout.num_workers * min(rollout.engine.max_num_seqs, rollout.concurrent_groups * rollout.group_size)


# -- memory and resources ---------------------------------------------------------------------------------------


def memory_part(
    config: RunConfig, tasks: TaskShape, model: ModelShape, available: Available, quotas: QuotaPlan
) -> Part:
    """Bytes per role against what this machine has."""
    batch = _sample_batch(config, tasks, quotas, answer=config.rollout.sampling.max_new_tokens)
    items = memory_items(
        config,
        model,
        tasks,
        num_live_groups=max_live_groups(config, quotas) if quotas.has_live else 0,
        tokens_per_update=_computed_tokens(config, batch),
    )
    rows = tuple(
        (i.role, i.item, f"{_bytes(i.bytes)}{f' x {i.count}' if i.count > 1 else ''}", i.place, i.formula)
        for i in items
        if i.bytes
    )
    totals = {place: total_bytes(items, place) for place in ("memory", "gpu", "shm")}
    notes = [
        "totals: "
        + ", ".join(f"{place} {_bytes(size)}" for place, size in totals.items() if size)
        + "; beside them each process needs about half a gigabyte for Python, torch and Ray"
    ]
    for place, limit in (("memory", available.memory_bytes), ("shm", available.shm_bytes)):
        if limit is not None and totals[place] > limit:
            notes.append(f"DOES NOT FIT: {place} of {available.where} is {_bytes(limit)}")
    engine, per_token = config.rollout.engine, kv_bytes_per_token(config, model)
    wanted = engine.max_num_seqs * engine.max_model_len
    if engine.kind == "vllm" and engine.kv_cache_bytes and engine.kv_cache_bytes // per_token < wanted:
        notes.append(
            f"the KV cache holds {engine.kv_cache_bytes // per_token:,} tokens, {engine.max_num_seqs} sequences of "
            f"full length have {wanted:,}: some will wait or be computed again"
        )
    data = {"items": [asdict(item) for item in items], "totals": totals, "params": model.params}
    title = f"Memory, model of {model.params / 1e6:,.1f} M parameters (P)"
    columns = ("role", "what", "size", "where", "formula")
    return Part(key="memory", title=title, columns=columns, rows=rows, notes=tuple(notes), data=data)


def resource_part(config: RunConfig, available: Available) -> Part:
    """Ray resources asked for and there."""
    roles = requested(config)
    rows = [
        (r.role, str(r.count), f"{r.cpus:g}", f"{r.gpus:g}", f"{r.count * r.cpus:g}", f"{r.count * r.gpus:g}")
        for r in roles
    ]
    cpus, gpus = (sum(r.count * getattr(r, kind) for r in roles) for kind in ("cpus", "gpus"))
    rows.append(("all", "", "", "", f"{cpus:g}", f"{gpus:g}"))
    rows.append((available.where, "", "", "", f"{available.cpus:g}", f"{available.gpus:g}"))
    notes = [f"placement {config.placement}: {_PLACEMENTS[config.placement]}"]
    if config.layout is not None:
        notes.append(f"layout {config.layout}: {LAYOUTS[config.layout].meaning}")
    children = config.reward.num_processes
    notes.append(f"without reserved resources: supervisor, task feed, replay cache, weight store, {children} verifiers")
    if gpus > available.gpus:
        notes.append(f"DOES NOT FIT: {gpus:g} GPUs asked for, {available.gpus:g} there")
    if cpus > available.cpus:
        notes.append(f"{cpus:g} CPUs asked for, {available.cpus:g} there: processes will share cores")
    data = {
        "roles": [asdict(role) for role in roles],
        "requested": {"cpus": cpus, "gpus": gpus},
        "available": {"where": available.where, "cpus": available.cpus, "gpus": available.gpus},
        "placement": config.placement,
        "layout": config.layout,
    }
    columns = ("role", "processes", "CPUs each", "GPUs each", "CPUs", "GPUs")
    return Part(key="resources", title="Resources", columns=columns, rows=tuple(rows), notes=tuple(notes), data=data)


_PLACEMENTS = {
    "cpu": "engines and learner on cores",
    "split": "engines and learner on GPUs of their own",
    "colocated": "engines and learner share GPUs",
}


# -- gains ------------------------------------------------------------------------------------------------------


def sharing_part(config: RunConfig, tasks: TaskShape, quotas: QuotaPlan) -> Part:
    """Whether computing a group's prompt once pays, for a batch as this run would have it."""
    size, prompt, limit = config.rollout.group_size, tasks.prompt_tokens, config.rollout.sampling.max_new_tokens
    rows, data = [], {}
    for name, answer in (("longest", limit), ("a third of it", limit / CUTS[0])) if quotas.has_live else ():
        factor = size * (prompt + answer) / (prompt + size * answer)
        rows.append((f"answers of {answer:.0f} tokens ({name})", f"{factor:.2f}x"))
        data[f"factor_{name.split()[0]}"] = factor
    batch = _sample_batch(config, tasks, quotas, answer=max(1, round(limit / CUTS[0])))
    packed = sum(map(len, batch))
    shared = len(build_forest(batch, share_prefixes=True).token_ids)
    layout = choose_layout(config.learner.attention, batch)
    rows.append(("tokens of a sample batch, each sequence alone", f"{packed:,}"))
    rows.append(("the same with common prefixes once", f"{shared:,} ({1 - shared / packed:.0%} fewer)"))
    rows.append((f"attention={config.learner.attention!r} takes", layout))
    notes = [f"'auto' computes common prefixes once from {MIN_SHARED_SAVING:.0%} fewer tokens on"]
    if quotas.has_live:
        notes.append(
            f"live groups gain {size}(p + a) / (p + {size}a), with p = {prompt:.0f} prompt and a answer tokens"
        )
    data |= {"packed_tokens": packed, "shared_tokens": shared, "layout": layout}
    title = "Prompts computed once"
    return Part(key="sharing", title=title, columns=("case", "value"), rows=tuple(rows), notes=tuple(notes), data=data)


def _computed_tokens(config: RunConfig, batch: Sequence[np.ndarray]) -> int:
    """Tokens the learner computes for a batch under the layout it takes."""
    share_prefixes = choose_layout(config.learner.attention, batch) == "shared_prompt"
    return len(build_forest(batch, share_prefixes=share_prefixes).token_ids)


def _sample_batch(config: RunConfig, tasks: TaskShape, quotas: QuotaPlan, *, answer: int) -> list[np.ndarray]:
    """Token ids of one batch: real prompts and expert answers, live answers of random tokens."""
    rng = np.random.default_rng(0)
    counts = quotas.counts(0)
    prompts = [np.asarray(p, np.int32) for p in tasks.prompts]
    batch = [
        np.concatenate([prompts[i % len(prompts)], rng.integers(0, 1 << 20, answer, np.int32)])
        for i in range(counts[LIVE])
        for _ in range(config.rollout.group_size)
    ]
    frozen = sum(counts.values()) - counts[LIVE]
    with_expert = [i for i, answers in enumerate(tasks.expert_answers) if answers]
    for place in range(frozen if with_expert else 0):
        i = with_expert[place % len(with_expert)]
        batch += [np.concatenate([prompts[i], np.asarray(a, np.int32)]) for a in tasks.expert_answers[i]]
    return batch or prompts


def overlap_part(config: RunConfig, quotas: QuotaPlan, train_ratio: float) -> Part:
    """What sampling ahead of training can gain over doing both in turn."""
    fresh = max(1, round(quotas.live_total(config.num_steps) / config.num_steps))
    rows, data = [], {}
    for cut in CUTS:
        workload = Workload(
            groups_per_update=fresh,
            group_size=config.rollout.group_size,
            slots=num_slots(config),
            cut=cut,
            train_ratio=train_ratio,
        )
        gain = overlap_gain(workload, max_age=config.replay.max_age, seed=config.seed)
        rows.append(
            (
                f"{cut:g}",
                "1.00",
                f"{gain.one_step_off:.2f}",
                f"{gain.this_run:.2f}",
                f"{gain.fully_asynchronous:.2f}",
                f"{gain.dropped_share:.1%}",
            )
        )
        data[f"cut_{cut:g}"] = asdict(gain)
    notes = (
        f"simulated: {fresh} x {config.rollout.group_size} answers per update on {num_slots(config)} slots "
        f"({num_slots(config) / (fresh * config.rollout.group_size):.2f} per answer); lengths lognormal with sigma 1, "
        "cut at the longest; a sequence is as fast beside others as alone; new weights arrive at once",
        f"training a batch takes {train_ratio:g} x the time to sample it with all slots busy (see --train-ratio)",
    )
    columns = (
        "longest / mean length",
        "in turn",
        "one step off",
        f"this run (max_age {config.replay.max_age})",
        "bound",
        "dropped for age",
    )
    title = "Throughput over sampling and training in turn"
    return Part(key="overlap", title=title, columns=columns, rows=tuple(rows), notes=notes, data=data)


# -- printing ---------------------------------------------------------------------------------------------------


def _print_part(part: Part, console: Console) -> None:
    if console.is_terminal:
        table = Table(*part.columns, title=part.title, title_justify="left")
        for row in part.rows:
            table.add_row(*row)
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(part.columns, *part.rows, strict=True)]
        console.print(f"\n{part.title}", soft_wrap=True, markup=False)
        for row in (part.columns, *part.rows):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            console.print(f"  {line}".rstrip(), soft_wrap=True, markup=False)
    for note in part.notes:
        console.print(f"  {note}", soft_wrap=not console.is_terminal, markup=False, highlight=False)


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes every size")
