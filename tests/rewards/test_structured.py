import json
import random

import pytest

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.length import SAMPLE_FACTS, target_length
from rewards.verifiers.repetition import repetition
from rewards.verifiers.structured import box_iou, json_schema, ordering, point_in_box, tool_calls

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def task(**metadata):
    return Task(task_id="t", prompt="p", metadata=metadata)


def call(name="f", **arguments):
    return {"name": name, "arguments": arguments}


def spoken(*calls):
    return "".join(f"<tool_call>{json.dumps(c)}</tool_call>" for c in calls)


def block(value):
    return f"<answer>{json.dumps(value)}</answer>"


class TestJsonSchema:
    @pytest.mark.parametrize("answer", ['{"n": 1}', '```json\n{"n": 1}\n```', ' {"n": -2} '])
    def test_accepts(self, answer):
        assert json_schema(answer, task(schema=SCHEMA)).score == 1.0

    @pytest.mark.parametrize(
        "answer",
        ['{"n": 1.5}', '{"n": "1"}', "{}", '{"n": 1, "m": 2}', '{"n": 1, "n": 2}', '{"n": NaN}', 'it is {"n": 1}',
         '{"n": true}', "[" * 100_000, "{'n': 1}", '{"n": 1e999}'],
    )  # fmt: skip
    def test_refuses(self, answer):
        assert json_schema(answer, task(schema=SCHEMA)).score == 0.0

    def test_unusable_schemas(self):
        for schema in (None, 3, {"type": "nothing"}, {"$ref": "http://example.invalid/schema"}):
            assert json_schema("1", task(schema=schema)).status is Status.INVALID_GOLD


class TestToolCalls:
    def test_gold_and_near_misses(self):
        gold = task(calls=[call(x=1, y=[True, "a"]), call("g")])
        assert tool_calls(spoken(call(y=[True, "a"], x=1), call("g")), gold).score == 1.0
        for wrong in (
            spoken(call("g"), call(x=1, y=[True, "a"])),
            spoken(call(x=1.0, y=[True, "a"]), call("g")),
            spoken(call(x=1, y=[1, "a"]), call("g")),
            spoken(call(x=1, y=[True, "a"], z=0), call("g")),
            spoken(call(x=1, y=[True, "a"])),
            spoken(call(x=1, y=[True, "a"]), call("g"), call("g")),
        ):
            assert tool_calls(wrong, gold).score == 0.0

    def test_any_order(self):
        gold = task(calls=[call(x=1), {**call(x=2), "accept": {"x": [1]}}])
        assert tool_calls(spoken(call(x=2), call(x=1)), gold, ordered=False).score == 1.0
        assert tool_calls(spoken(call(x=2), call(x=2)), gold, ordered=False).score == 0.0

    def test_accepted_and_optional_arguments(self):
        gold = task(calls=[{**call(x=1), "accept": {"x": [2], "unit": ["cm", None]}}])
        for good in (call(x=1), call(x=2, unit="cm")):
            assert tool_calls(spoken(good), gold).score == 1.0
        assert tool_calls(spoken(call(x=2, unit="m")), gold).score == 0.0

    def test_no_call_expected(self):
        assert tool_calls("no need", task(calls=[])).score == 1.0
        assert tool_calls(spoken(call()), task(calls=[])).score == 0.0
        assert tool_calls("no need", task(calls=[call()])).status is Status.NO_ANSWER

    @pytest.mark.parametrize("answer", ["<tool_call>{}</tool_call>", "<tool_call>", "<tool_call>f(1)</tool_call>"])
    def test_malformed_calls(self, answer):
        assert tool_calls(answer, task(calls=[call()])).status is Status.REJECTED

    def test_whole_answer(self):
        assert tool_calls(json.dumps([call(x=1)]), task(calls=[call(x=1)]), tag=None).score == 1.0


class TestVisual:
    def test_worked_overlap(self):
        gold = task(boxes=[[0, 0, 10, 10]], image_size=[20, 20])
        assert box_iou(block([5, 0, 15, 10]), gold).score == pytest.approx(1 / 3)
        assert box_iou(block([[0, 0, 10, 10]]), gold).score == 1.0
        assert box_iou(block([[0, 0, 10, 10]] * 4), gold).score == 0.25
        assert box_iou(block([]), gold).score == 0.0

    @pytest.mark.parametrize(
        "value", [[10, 0, 0, 10], [0, 0, 30, 10], [0, 0, 1], "0,0,1,1", [0, 0, 1, True], [0, 0, 1, 1e300], {"a": 1}]
    )
    def test_refused_boxes(self, value):
        assert box_iou(block(value), task(boxes=[[0, 0, 10, 10]], image_size=[20, 20])).status is Status.REJECTED

    def test_several_answer_blocks_are_none(self):
        gold = task(boxes=[[0, 0, 10, 10]])
        assert box_iou(block([0, 0, 10, 10]) * 2, gold).status is Status.NO_ANSWER

    def test_points(self):
        gold = task(boxes=[[0, 0, 10, 10]], image_size=[20, 20])
        assert [point_in_box(block(p), gold).score for p in ([5, 5], [10, 10], [11, 5])] == [1.0, 1.0, 0.0]
        assert point_in_box(block([50, 5]), gold).status is Status.REJECTED

    def test_orderings(self):
        gold = task(order=["a", "b", "c"])
        assert ordering(block(["a", "b", "c"]), gold).score == 1.0
        assert ordering(block(["b", "a", "c"]), gold).score == 0.0
        assert ordering(block(["b", "a", "c"]), gold, partial=True).score == pytest.approx(2 / 3)
        for wrong in (["a", "b"], ["a", "a", "b", "c"], ["a", "b", "d"], "abc"):
            assert ordering(block(wrong), gold).status is Status.REJECTED

    def test_generated_golds_are_accepted(self):
        rng = random.Random(0)
        for _ in range(500):
            boxes = [[x := rng.randint(0, 50), y := rng.randint(0, 50), x + rng.randint(1, 50), y + rng.randint(1, 50)]]
            assert box_iou(block(boxes), task(boxes=boxes, image_size=[100, 100])).score == 1.0
            assert point_in_box(block(boxes[0][:2]), task(boxes=boxes)).score == 1.0
            order = rng.sample(range(100), 5)
            assert ordering(block(order), task(order=order)).score == 1.0

    def test_unusable_metadata(self):
        for verify in (box_iou, point_in_box, ordering, tool_calls):
            assert verify("x", task()).status is Status.INVALID_GOLD


class TestShaping:
    def test_repetition(self):
        assert repetition("5 5 5 5 5", task(), ngram=2).score == -0.75
        assert repetition("1 2 3 1 2 3", task()).score == -0.25
        assert repetition("1 2", task()).score == 0.0
        with pytest.raises(ValueError, match="ngram=0"):
            repetition("x", task(), ngram=0)

    def test_target_length(self):
        sample = task(**{SAMPLE_FACTS: {"num_tokens": 80}})
        assert target_length("x", sample, target_tokens=100, max_tokens=400).score == 0.95
        with pytest.raises(ValueError, match="num_tokens"):
            target_length("x", task(), target_tokens=1, max_tokens=2)
