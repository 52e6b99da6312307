"""Runs model-written Python in the sandbox and compares what comes out with what was expected, outside of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeGuard

from rewards import sandbox
from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.math_text import segment
from rewards.verifiers.structured import MalformedError, same_json, strict_json

MAX_TESTS = 200
FENCE_LINE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*$", re.MULTILINE)

FUNCTION_DRIVER = """
import json, os, sys
job = json.loads(sys.stdin.buffer.read())
records = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
space = {"__name__": "solution"}
exec(compile(job["source"], "solution.py", "exec"), space)
for index, arguments in enumerate(job["calls"]):
    try:
        line = json.dumps([index, space[job["entry_point"]](*arguments)], allow_nan=False)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        continue
    records.write(line + "\\n")
"""
"""Holds arguments only; a value written by whatever the program does is compared like any other."""


def code(
    answer: str,
    task: Task,
    *,
    score: Literal["all", "fraction"] = "all",
    threshold: float = 0.0,
    think_tag: str | None = "think",
    limits: Mapping[str, Any] | None = None,
    min_tier: Literal["A", "B"] = "B",
    unsafe_no_sandbox: bool = False,
) -> Verdict:
    """Pays for the tests the last fenced Python block passes.

    `metadata["tests"]` is `{"entry_point": name, "cases": [{"args": [...], "expected": value}]}` for a function, or
    `{"cases": [{"stdin": text, "stdout": text}]}` for a program. Values are JSON and types must match; a tuple counts
    as a list. Output is compared line by line without trailing blanks.

    Args:
        score: `all` pays 1.0 when every test passes; `fraction` the share that passes, 0 below `threshold`.
        limits: fields of `sandbox.Limits` to change; keep all runs together below `reward.timeout_s`.
        min_tier: the weakest sandbox that will do; `extras["sandbox"]` says which one it was.
        unsafe_no_sandbox: run without isolation where none works; the verdict carries a warning.

    Returns:
        no_answer without a fenced block; timeout, resource or crash when no test passed for that reason; invalid_gold
        for unusable tests; infra_error when the sandbox cannot start.

    Raises:
        ValueError: an option is unknown.
    """
    if score not in ("all", "fraction"):
        raise ValueError(f"code: score={score!r} must be 'all' or 'fraction'")
    tests = task.metadata.get("tests")
    if not _is_usable(tests):
        error = "metadata needs 'tests' with 'cases': {'args', 'expected'} and an 'entry_point', or {'stdin', 'stdout'}"
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": error})
    source = last_block(answer, think_tag)
    if source is None:
        return Verdict.floor(Status.NO_ANSWER)
    options = {
        "limits": sandbox.Limits(**(limits or {})),
        "min_tier": min_tier,
        "unsafe_no_sandbox": unsafe_no_sandbox,
    }
    run = _run_function if "entry_point" in tests else _run_program
    try:
        passed, outcome = run(source, tests, options, stop_early=score == "all")
    except sandbox.SandboxError as error:
        return Verdict.unscored(Status.INFRA_ERROR, extras={"error": str(error)})
    num_tests = len(tests["cases"])
    extras = {"passed": passed, "tests": num_tests, "exit_code": outcome.exit_code, "sandbox": outcome.tier}
    if outcome.stderr:
        extras["stderr"] = outcome.stderr[-500:].decode(errors="replace")
    if outcome.warning:
        extras["warning"] = outcome.warning
    if passed == 0 and (fault := _fault(outcome)):
        return Verdict.floor(fault, extras=extras)
    fraction = passed / num_tests
    if score == "all":
        return Verdict.scored(float(passed == num_tests), extras=extras)
    return Verdict.scored(fraction if fraction >= threshold else 0.0, extras=extras)


def last_block(answer: str, think_tag: str | None = "think") -> str | None:
    """The last closed fenced block marked as Python or not marked, outside the thinking; None when there is none."""
    text = segment(answer, think_tag)
    if text is None:
        return None
    found, opening = None, None
    for fence in FENCE_LINE.finditer(text):
        if opening is None:
            opening = fence
        elif not fence[1]:
            if opening[1].lower() in ("", "python", "py", "python3"):
                found = text[opening.end() + 1 : fence.start()]
            opening = None
    return found


def _run_function(
    source: str, tests: Mapping[str, Any], options: dict[str, Any], *, stop_early: bool
) -> tuple[int, sandbox.Outcome]:
    """One process for all calls."""
    job = {"source": source, "entry_point": tests["entry_point"], "calls": [case["args"] for case in tests["cases"]]}
    outcome = sandbox.run_python(["-c", FUNCTION_DRIVER], stdin=json.dumps(job).encode(), **options)
    values: dict[int, list[Any]] = {}
    for line in outcome.stdout.splitlines():
        try:
            record = strict_json(line.decode())
        except (MalformedError, UnicodeDecodeError):
            continue
        if isinstance(record, list) and len(record) == 2 and type(record[0]) is int:
            values.setdefault(record[0], []).append(record[1])
    passed = [
        len(values.get(index, ())) == 1 and same_json(values[index][0], _plain(case["expected"]))
        for index, case in enumerate(tests["cases"])  # a second record of a test makes it fail
    ]
    return sum(passed), outcome


def _run_program(
    source: str, tests: Mapping[str, Any], options: dict[str, Any], *, stop_early: bool
) -> tuple[int, sandbox.Outcome]:
    """One process for each input; when all must pass, the first failure ends it."""
    passed, worst = 0, None
    for case in tests["cases"]:
        outcome = sandbox.run_python(["-c", source], stdin=case["stdin"].encode(), **options)
        is_right = outcome.fate == "exited" and _lines(outcome.stdout) == _lines(case["stdout"].encode())
        passed += is_right
        worst = outcome if worst is None or not is_right else worst
        if stop_early and not is_right:
            break
    assert worst is not None
    return passed, worst


def _lines(output: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in output.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _fault(outcome: sandbox.Outcome) -> Status | None:
    if outcome.fate == "timeout":
        return Status.TIMEOUT
    if outcome.fate == "output" or outcome.exit_code in (137, 152, 153):  # killed, CPU limit, file size limit
        return Status.RESOURCE
    return Status.CRASH if outcome.exit_code else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _is_usable(tests: Any) -> TypeGuard[Mapping[str, Any]]:
    if not isinstance(tests, Mapping) or not isinstance(tests.get("cases"), list):
        return False
    cases = tests["cases"]
    if not 1 <= len(cases) <= MAX_TESTS or not all(isinstance(case, Mapping) for case in cases):
        return False
    if "entry_point" in tests:
        is_name = isinstance(tests["entry_point"], str) and tests["entry_point"].isidentifier()
        return is_name and all(isinstance(case.get("args"), list) and "expected" in case for case in cases)
    return all(isinstance(case.get("stdin"), str) and isinstance(case.get("stdout"), str) for case in cases)
