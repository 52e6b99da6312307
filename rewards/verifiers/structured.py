"""Judges answers that are JSON: against a schema, as tool calls, as boxes, points and orderings.

JSON is read strictly: no duplicate keys, no NaN or infinity, bounded length and depth; text is never evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from rewards.task import Task
from rewards.verdict import Status, Verdict

MAX_LENGTH = 1 << 20
"""Characters of JSON that are read."""
MAX_DEPTH = 64
MAX_ITEMS = 1000
"""Boxes, points, calls or places in an ordering."""
FENCE = "```"


class MalformedError(ValueError):
    """Text that is not the JSON that was asked for; the message says why."""


def strict_json(text: str) -> Any:
    """The JSON value of a text, which may stand in one fenced block.

    Raises:
        MalformedError: anything else, duplicate keys and non-finite numbers included.
    """
    text = text.strip()
    if text.startswith(FENCE) and text.endswith(FENCE) and text.count(FENCE) == 2:
        head, _, text = text[len(FENCE) : -len(FENCE)].partition("\n")
        if head.strip() not in ("", "json"):
            raise MalformedError(f"a fenced block of {head.strip()[:20]!r}, not of JSON")
    if len(text) > MAX_LENGTH:
        raise MalformedError(f"{len(text)} characters of JSON; the limit is {MAX_LENGTH}")
    _check_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)
    except MalformedError:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON: {error}") from error


def same_json(first: Any, second: Any) -> bool:
    """Equality that tells true from 1 and 1 from 1.0."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_json(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    return first == second


def json_schema(answer: str, task: Task, *, schema: Mapping[str, Any] | None = None) -> Verdict:
    """1.0 when the whole answer is JSON that fits the schema (the option, or `metadata["schema"]`), else 0.0.

    Only references inside the schema are followed; nothing is fetched.

    Returns:
        no_answer for a blank answer, invalid_gold for a missing or malformed schema.
    """
    from jsonschema import Draft202012Validator, SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    rules = schema if schema is not None else task.metadata.get("schema")
    try:
        if not isinstance(rules, Mapping):
            raise SchemaError("metadata needs 'schema'")
        Draft202012Validator.check_schema(rules)
    except SchemaError as error:
        return _invalid(f"no usable JSON schema: {error.message}")
    if not answer.strip():
        return Verdict.floor(Status.NO_ANSWER)
    try:
        error = next(Draft202012Validator(rules, registry=Registry()).iter_errors(strict_json(answer)), None)
    except MalformedError as fault:
        return _wrong(str(fault))
    except Unresolvable as fault:
        return _invalid(f"the schema refers to something outside itself: {fault}")
    return Verdict.scored(1.0) if error is None else _wrong(error.message[:500])


def tool_calls(answer: str, task: Task, *, tag: str | None = "tool_call", ordered: bool = True) -> Verdict:
    """1.0 when the calls in the answer are exactly those of `metadata["calls"]`, else 0.0.

    A call is `{"name": ..., "arguments": {...}}`. An expected call may carry `"accept": {argument: [values]}`, the
    values that are as good; a value `null` in that list makes the argument optional.

    Args:
        tag: each call stands in its own `<tag>...</tag>`; None reads the whole answer as one call or a list.
        ordered: the calls must come in the expected order.

    Returns:
        no_answer when calls are expected and there is none, rejected for malformed calls, invalid_gold for unusable
        metadata.
    """
    expected = task.metadata.get("calls")
    if not _is_list_of(expected, _is_call):
        return _invalid("metadata needs 'calls', a list of {'name', 'arguments'}")
    try:
        given = _calls_in(answer, tag)
    except MalformedError as fault:
        return Verdict.floor(Status.REJECTED, extras={"error": str(fault)})
    if not given and expected:
        return Verdict.floor(Status.NO_ANSWER)
    if len(given) != len(expected):
        return _wrong(f"{len(given)} calls, expected {len(expected)}")
    if ordered:
        return Verdict.scored(float(all(map(_is_same_call, expected, given))))
    matches = [[j for j, call in enumerate(given) if _is_same_call(wanted, call)] for wanted in expected]
    return Verdict.scored(float(_has_perfect_matching(matches)))


def box_iou(answer: str, task: Task, *, answer_tag: str | None = "answer") -> Verdict:
    """Overlap in [0, 1] of the answer's boxes with `metadata["boxes"]`: IoU summed over pairs / larger count.

    A box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2, inside `metadata["image_size"]` = [width, height] when that is
    given. Pairs are made greedily, the largest overlap first, each box used once. Dividing by the larger count leaves
    nothing to gain by naming many boxes. One box may stand without a list.

    Returns:
        no_answer without exactly one answer block, rejected for malformed or outlying boxes, invalid_gold.
    """
    size, gold = task.metadata.get("image_size"), task.metadata.get("boxes")
    if not _is_list_of(gold, lambda box: _is_box(box, size)):
        return _invalid("metadata needs 'boxes', a list of [x1, y1, x2, y2] inside 'image_size'")
    given = read_block(answer, answer_tag)
    if isinstance(given, Verdict):
        return given
    boxes = [given] if _is_box(given, size) else given
    if not _is_list_of(boxes, lambda box: _is_box(box, size)):
        return Verdict.floor(Status.REJECTED, extras={"error": "not boxes [x1, y1, x2, y2] inside the image"})
    if not gold or not boxes:
        return Verdict.scored(float(len(gold) == len(boxes)))
    return Verdict.scored(_paired_overlap(gold, boxes) / max(len(gold), len(boxes)))


def point_in_box(answer: str, task: Task, *, answer_tag: str | None = "answer") -> Verdict:
    """1.0 when the answer's point [x, y] lies inside the only box of `metadata["boxes"]`, edges included, else 0.0.

    Returns:
        no_answer without exactly one answer block, rejected for what is no finite point inside the image, invalid_gold.
    """
    size, gold = task.metadata.get("image_size"), task.metadata.get("boxes")
    if not _is_list_of(gold, lambda box: _is_box(box, size)) or len(gold) != 1:
        return _invalid("metadata needs 'boxes' with exactly one [x1, y1, x2, y2]")
    given = read_block(answer, answer_tag)
    if isinstance(given, Verdict):
        return given
    if not (_are_finite(given, 2) and _is_inside(given, size)):
        return Verdict.floor(Status.REJECTED, extras={"error": "not one finite point [x, y] inside the image"})
    (x1, y1, x2, y2), (x, y) = gold[0], given
    return Verdict.scored(float(x1 <= x <= x2 and y1 <= y <= y2))


def ordering(answer: str, task: Task, *, answer_tag: str | None = "answer", partial: bool = False) -> Verdict:
    """1.0 when the answer's JSON list is `metadata["order"]`, else 0.0; with `partial`, the share of pairs in order.

    Returns:
        no_answer without exactly one answer block, rejected when it is not a permutation of the items, invalid_gold.
    """
    gold = task.metadata.get("order")
    if (
        not _is_list_of(gold, lambda item: isinstance(item, str | int))
        or len(set(map(str, gold))) != len(gold)
        or not gold
    ):
        return _invalid("metadata needs 'order', a list of different words or numbers")
    given = read_block(answer, answer_tag)
    if isinstance(given, Verdict):
        return given
    is_permutation = isinstance(given, list) and len(given) == len(gold) and all(item in given for item in gold)
    if not is_permutation:
        return Verdict.floor(Status.REJECTED, extras={"error": "not a permutation of the expected items"})
    if not partial or len(gold) == 1:
        return Verdict.scored(float(given == gold))
    places = {str(item): place for place, item in enumerate(given)}
    pairs = [(a, b) for i, a in enumerate(gold) for b in gold[i + 1 :]]
    return Verdict.scored(sum(places[str(a)] < places[str(b)] for a, b in pairs) / len(pairs))


def intersection_over_union(first: Sequence[float], second: Sequence[float]) -> float:
    """Area shared by two boxes [x1, y1, x2, y2] over the area they cover together."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def _paired_overlap(gold: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]]) -> float:
    pairs = sorted(
        ((intersection_over_union(a, b), i, j) for i, a in enumerate(gold) for j, b in enumerate(boxes)), reverse=True
    )
    used_gold, used_boxes, total = set(), set(), 0.0
    for overlap, i, j in pairs:
        if i not in used_gold and j not in used_boxes:
            used_gold.add(i)
            used_boxes.add(j)
            total += overlap
    return total


def _calls_in(answer: str, tag: str | None) -> list[dict[str, Any]]:
    if tag is None:
        value = strict_json(answer) if answer.strip() else []
        calls = value if isinstance(value, list) else [value]
    else:
        opening, closing = f"<{tag}>", f"</{tag}>"
        pieces = answer.split(opening)
        if answer.count(closing) != len(pieces) - 1 or any(piece.count(closing) != 1 for piece in pieces[1:]):
            raise MalformedError(f"a <{tag}> that is not closed once")
        if len(pieces) > MAX_ITEMS:
            raise MalformedError(f"more than {MAX_ITEMS} calls")
        calls = [strict_json(piece.partition(closing)[0]) for piece in pieces[1:]]
    if not _is_list_of(calls, _is_call) or any(call.keys() != {"name", "arguments"} for call in calls):
        raise MalformedError("a call that is not {'name': text, 'arguments': object}")
    return calls


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("arguments"), Mapping)
    )


def _is_same_call(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    if wanted["name"] != given["name"]:
        return False
    accept, arguments = wanted.get("accept", {}), given["arguments"]
    for name in {*wanted["arguments"], *accept, *arguments}:
        good = [*accept.get(name, ()), *([wanted["arguments"][name]] if name in wanted["arguments"] else ())]
        if name not in arguments:
            if None not in accept.get(name, ()):
                return False
        elif not any(same_json(value, arguments[name]) for value in good):
            return False
    return True


def _has_perfect_matching(matches: list[list[int]]) -> bool:
    """Whether every row can have a column of its own (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column in matches[row]:
            if column not in seen:
                seen.add(column)
                if column not in owner or place(owner[column], seen):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(matches)))


def read_block(answer: str, tag: str | None) -> Any:
    """The JSON inside the only answer block, or the verdict that says why there is none."""
    if tag is not None:
        opening, closing = f"<{tag}>", f"</{tag}>"
        start, end = answer.find(opening), answer.find(closing)
        if answer.count(opening) != 1 or answer.count(closing) != 1 or end < start:
            return Verdict.floor(Status.NO_ANSWER)
        answer = answer[start + len(opening) : end]
    if not answer.strip():
        return Verdict.floor(Status.NO_ANSWER)
    try:
        return strict_json(answer)
    except MalformedError as fault:
        return Verdict.floor(Status.REJECTED, extras={"error": str(fault)})


def _is_box(value: Any, size: Any) -> bool:
    if not _are_finite(value, 4) or not (value[0] < value[2] and value[1] < value[3]):
        return False
    return _is_inside(value[:2], size) and _is_inside(value[2:], size)


def _is_inside(point: Any, size: Any) -> bool:
    if size is None:
        return True
    return _are_finite(size, 2) and 0 <= point[0] <= size[0] and 0 <= point[1] <= size[1]


def _are_finite(value: Any, count: int) -> bool:
    if not isinstance(value, list | tuple) or len(value) != count:
        return False
    return all(type(x) in (int, float) and abs(x) < 1e9 and math.isfinite(x) for x in value)


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> TypeGuard[list[Any]]:
    return isinstance(value, list | tuple) and len(value) <= MAX_ITEMS and all(is_item(item) for item in value)


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedError(f"JSON nested more than {MAX_DEPTH} deep")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedError("an object with the same key twice")
    return value


def _no_constant(name: str) -> Any:
    raise MalformedError(f"{name} is not JSON")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise MalformedError(f"{literal[:20]} is too large")
    return value


def _wrong(reason: str) -> Verdict:
    return Verdict.scored(0.0, extras={"reason": reason})


def _invalid(error: str) -> Verdict:
    return Verdict.unscored(Status.INVALID_GOLD, extras={"error": error})
