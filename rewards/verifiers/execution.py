"""Pays for knowing what a program does: the values of its variables when a call ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewards import sandbox
from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.structured import MalformedError, read_block, same_json, strict_json

MAX_VARIABLES = 32
PROMPT = (
    "Here is a Python program.\n\n```python\n{source}\n```\n\nIt calls `{call}`. Which values do the variables {names} "
    "of that call hold when it ends? Answer with one JSON object from name to value between <answer> and </answer>."
)

TRACER = """
import json, os, sys
job = json.loads(sys.stdin.buffer.read())
records = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
space = {"__name__": "solution"}
exec(compile(job["source"], "solution.py", "exec"), space)
target, last = space[job["entry_point"]].__code__, {}
def trace(frame, event, argument):
    if frame.f_code is target:
        if event == "return" and frame.f_back is caller:
            last.update(frame.f_locals)
        return trace
caller = sys._getframe()
sys.settrace(trace)
try:
    space[job["entry_point"]](*job["args"])
finally:
    sys.settrace(None)
for name, value in last.items():
    try:
        records.write(json.dumps([name, value], allow_nan=False) + "\\n")
    except (TypeError, ValueError, RecursionError):
        pass
records.flush()
"""
"""Writes the local variables of the outermost call that have a JSON value."""


def variable_values(answer: str, task: Task, *, answer_tag: str | None = "answer", strict: bool = False) -> Verdict:
    """Share of `metadata["variables"]` that the answer's JSON object gives exactly, types included; strict: 1 or 0.

    Returns:
        no_answer without exactly one answer block; rejected for what is no object, for a name that stands twice, and
        for names that were not asked for; invalid_gold for unusable metadata.

    Source: CodeRL+ (execution semantics alignment); the reward is variables right / variables.
    """
    expected = task.metadata.get("variables")
    if not isinstance(expected, Mapping) or not 1 <= len(expected) <= MAX_VARIABLES:
        error = f"metadata needs 'variables', an object of 1 to {MAX_VARIABLES} names and values"
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": error})
    given = read_block(answer, answer_tag)
    if isinstance(given, Verdict):
        return given
    if not isinstance(given, dict):
        return Verdict.floor(Status.REJECTED, extras={"error": "not a JSON object"})
    if extra := sorted(given.keys() - expected.keys()):
        return Verdict.floor(Status.REJECTED, extras={"error": f"values of {extra[:5]}, which nobody asked for"})
    wrong = [name for name, value in expected.items() if name not in given or not same_json(given[name], value)]
    right = len(expected) - len(wrong)
    value = float(not wrong) if strict else right / len(expected)
    return Verdict.scored(value, extras={"wrong": wrong} if wrong else {})


def traced_values(
    source: str, entry_point: str, args: Sequence[Any], *, limits: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Values of the local variables of `entry_point(*args)` when it returns; runs the program twice in the sandbox.

    Left out are variables without a JSON value and those that equal an argument, which copying would get right. None
    when the program does not return, is not deterministic, or leaves nothing to ask for.

    Raises:
        SandboxError: the sandbox cannot start.
    """
    runs = [_traced(source, entry_point, args, limits or {}) for _ in range(2)]
    if runs[0] is None or not same_json(runs[0], runs[1]):
        return None
    plain_args = json.loads(json.dumps(list(args)))
    values = {k: v for k, v in runs[0].items() if not any(same_json(v, a) for a in plain_args)}
    return dict(list(values.items())[:MAX_VARIABLES]) or None


def execution_task(
    task_id: str, source: str, entry_point: str, args: Sequence[Any], *, limits: Mapping[str, Any] | None = None
) -> Task | None:
    """A question about a program, such as one the policy wrote and failed with; None where there is nothing to ask.

    Raises:
        SandboxError: the sandbox cannot start.
    """
    values = traced_values(source, entry_point, args, limits=limits)
    if values is None:
        return None
    call = f"{entry_point}({', '.join(map(repr, args))})"
    names = ", ".join(f"`{name}`" for name in values)
    prompt = PROMPT.format(source=source.strip(), call=call, names=names)
    return Task(task_id=task_id, prompt=prompt, metadata={"variables": values, "program": source, "args": list(args)})


def _traced(source: str, entry_point: str, args: Sequence[Any], limits: Mapping[str, Any]) -> dict[str, Any] | None:
    job = {"source": source, "entry_point": entry_point, "args": list(args)}
    outcome = sandbox.run_python(["-c", TRACER], stdin=json.dumps(job).encode(), limits=sandbox.Limits(**limits))
    if outcome.fate != "exited" or outcome.exit_code != 0:
        return None
    try:
        records = [strict_json(line.decode()) for line in outcome.stdout.splitlines()]
        return {name: value for name, value in records if isinstance(name, str)}
    except (MalformedError, UnicodeDecodeError, ValueError, TypeError):
        return None
