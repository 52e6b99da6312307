import json
import math
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards.config import TaskConfig
from rewards.task import ExpertResponse
from rewards.task_files import read_tasks
from rewards.tasks import load_tasks
from rewards.verdict import Status
from rewards.verifiers.final_number import final_number, reference_number
from rewards.wire import task_from_json, task_to_json

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]


@pytest.fixture
def write(tmp_path):
    """Writes rows as the format the suffix names; returns the path."""

    def write(*rows, name="tasks.jsonl"):
        path = tmp_path / name
        if path.suffix == ".parquet":
            Dataset.from_list(list(rows)).to_parquet(path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def row(**fields):
    return {"prompt": "1 + 1?", "answer": "2"} | fields


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.json", "tasks.parquet"])
class TestFormats:
    def test_text_prompts(self, write, name):
        path = write(row(), row(prompt="2 + 2?", answer="4"), name=name)
        first, second = read_tasks(path)
        assert (first.prompt, first.reference, first.expert) == ("1 + 1?", "2", ())
        assert (second.prompt, second.reference) == ("2 + 2?", "4")
        assert first.task_id == f"{path.parent.name}/tasks/0"
        assert second.task_id == f"{path.parent.name}/tasks/1"

    def test_chat_prompts(self, write, name):
        (task,) = read_tasks(write({"messages": CHAT, "answer": "2"}, name=name))
        assert task.messages == tuple(CHAT)

    def test_fields_that_a_message_lacks_are_left_out(self, write, name):
        call = {"role": "tool", "content": "2", "name": "sum"}
        (task,) = read_tasks(write(row(prompt=[*CHAT, call]), name=name))
        assert [sorted(message) for message in task.messages] == [["content", "role"]] * 2 + [
            ["content", "name", "role"]
        ]

    def test_one_response(self, write, name):
        (task,) = read_tasks(write(row(response="It is 2."), name=name))
        assert task.expert == (ExpertResponse(text="It is 2."),)

    def test_several_responses_some_with_logprobs(self, write, name):
        path = write(row(responses=["It is 2.", "2"], logprobs=[None, [-0.5, -0.25]]), name=name)
        (task,) = read_tasks(path)
        assert task.expert == (ExpertResponse(text="It is 2."), ExpertResponse(text="2", logprobs=(-0.5, -0.25)))

    def test_logprobs_of_one_response_may_be_flat_and_a_null_is_unknown(self, write, name):
        (task,) = read_tasks(write(row(response="2", logprobs=[-0.5, None]), name=name))
        assert task.expert[0].logprobs[0] == -0.5
        assert math.isnan(task.expert[0].logprobs[1])

    def test_a_preference_pair(self, write, name):
        path = write(row(chosen="2", rejected=["3", "4"]), name=name)
        (task,) = read_tasks(path, response_column="chosen", rejected_column="rejected")
        assert [(e.text, e.score) for e in task.expert] == [("2", 1.0), ("3", 0.0), ("4", 0.0)]
        assert not {"chosen", "rejected"} & set(task.metadata)
        assert not read_tasks(path)[0].expert  # nobody asked for them
        assert task_from_json(task_to_json(task)) == task

    def test_rows_without_responses_stand_beside_rows_with_them(self, write, name):
        rows = row(response="2", logprobs=[-0.5]), row(prompt="2?", response=None, logprobs=None)
        with_expert, without = read_tasks(write(*rows, name=name))
        assert len(with_expert.expert) == 1
        assert without.expert == ()

    def test_tags_ids_and_other_columns(self, write, name):
        path = write(row(id=7, tags={"topic": "sum"}, level=3, steps=["a", "b"]), name=name)
        (task,) = read_tasks(path)
        assert task.task_id == "7"
        assert task.tags == {"topic": "sum"}
        assert task.metadata == {"level": 3, "steps": ["a", "b"]}

    def test_named_columns(self, write, name):
        path = write(
            {"q": "1 + 1?", "gold": "2", "teacher": "2", "lp": [-1.0], "labels": {"a": "b"}, "key": "k"}, name=name
        )
        (task,) = read_tasks(
            path,
            prompt_column="q",
            reference_column="gold",
            response_column="teacher",
            logprobs_column="lp",
            tags_column="labels",
            id_column="key",
        )
        assert (task.prompt, task.reference, task.task_id, task.tags) == ("1 + 1?", "2", "k", {"a": "b"})
        assert task.expert == (ExpertResponse(text="2", logprobs=(-1.0,)),)
        assert task.metadata == {}

    def test_a_dataset_without_answers_is_one_clear_error(self, write, name):
        path = write({"prompt": "1 + 1?", "topic": "sum"}, name=name)
        with pytest.raises(ValueError, match="no reference answer column") as raised:
            read_tasks(path)
        message = str(raised.value)
        assert "looked for reference, answer, solution, ground_truth, found prompt, topic" in message
        assert "Name it in tasks.options.reference_column, or set tasks.options.require_reference=false" in message
        assert read_tasks(path, require_reference=False)[0].reference is None

    @pytest.mark.parametrize("blank", [None, "", " \n"])
    def test_a_row_without_an_answer_is_named(self, write, name, blank):
        path = write(row(), row(answer=blank), name=name)
        with pytest.raises(ValueError, match=r"row 1: no reference answer.*Remove the row, or set"):
            read_tasks(path)
        assert read_tasks(path, require_reference=False)[1].reference is None


class TestJson:
    @pytest.mark.parametrize(
        ("answers", "references"),
        [
            (["2020-01-01", "2021-05-05"], ["2020-01-01", "2021-05-05"]),  # not times
            ([3, 0.5], ["3", "0.5"]),  # 3 is no float because its neighbour is one
            ([123456789012345678901234567890], ["123456789012345678901234567890"]),
            ([" 7 "], [" 7 "]),
            (["π", "a\u2028b"], ["π", "a\u2028b"]),
        ],
    )
    def test_answers_are_read_as_they_are_written(self, write, answers, references):
        assert [t.reference for t in read_tasks(write(*(row(answer=a) for a in answers)))] == references

    def test_line_separators_of_unicode_inside_a_text_do_not_end_the_row(self, tmp_path):
        path = tmp_path / "tasks.jsonl"
        path.write_text(json.dumps(row(prompt="a\u2028b\x85c"), ensure_ascii=False) + "\n", encoding="utf-8")
        assert read_tasks(path)[0].prompt == "a\u2028b\x85c"

    def test_prompts_of_both_kinds_and_rows_of_different_columns_stand_in_one_file(self, write):
        tasks = read_tasks(write(row(), row(prompt=CHAT, level=2)))
        assert [len(task.messages) for task in tasks] == [1, 2]
        assert [task.metadata for task in tasks] == [{}, {"level": 2}]

    def test_blank_lines_are_skipped(self, tmp_path):
        path = tmp_path / "tasks.jsonl"
        path.write_text("\n" + json.dumps(row()) + "\r\n\n" + json.dumps(row(prompt="2?")))
        assert [task.task_id[-1] for task in read_tasks(path)] == ["0", "1"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"prompt": "a", "answer": "1"}\n{"prompt": \n', r"line 2 is not JSON"),
            ('"a"\n', "line 1 is not an object with columns but 'a'"),
            ('[{"prompt": "a", "answer": "1"}, 3]', "row 1 is not an object with columns but 3"),
            ("[", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("", "holds no rows"),
            ("\n\n", "holds no rows"),
            ("[]", "holds no rows"),
        ],
    )
    def test_broken_files_name_the_place(self, tmp_path, text, message):
        path = tmp_path / "tasks.jsonl"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_tasks(path)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(
        st.lists(
            st.tuples(
                st.text(min_size=1).filter(str.strip),
                st.text(min_size=1).filter(str.strip) | st.integers(),
                st.lists(st.text(min_size=1).filter(str.strip), max_size=3),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def test_whatever_text_is_written_comes_back(self, write, rows):
        path = write(*({"prompt": p, "answer": a, "responses": r} for p, a, r in rows))
        tasks = read_tasks(path)
        assert [(t.prompt, t.reference, [e.text for e in t.expert]) for t in tasks] == [
            (p, str(a), list(r)) for p, a, r in rows
        ]


class TestBadRows:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"prompt": " "}, "row 0: the prompt must be text or chat messages"),
            ({"prompt": None}, "row 0: the prompt must be text or chat messages"),
            ({"prompt": []}, "the prompt must be text or chat messages"),
            ({"prompt": [{"role": "user"}]}, "the prompt must be text or chat messages"),
            ({"prompt": [*CHAT, {"role": "assistant", "content": "2"}]}, "the prompt would hold the answer"),
            ({"answer": ["2"]}, r"the reference answer must be text or a number, got \['2'\]"),
            ({"answer": True}, "the reference answer must be text or a number"),
            ({"answer": math.nan}, "the reference answer must be text or a number"),
            ({"response": ["2", None]}, "a response must be text"),
            ({"response": "  "}, "a response must be text"),
            ({"response": 2}, "a response must be text"),
            ({"responses": ["a", "b"], "logprobs": [[-1.0]]}, "2 responses but 1 lists of logprobs"),
            ({"responses": ["a", "b"], "logprobs": [-1.0, -2.0]}, "logprobs must be a list of nats per token"),
            ({"response": "a", "logprobs": -1.0}, "logprobs must be a list of nats per token"),
            ({"response": "a", "logprobs": [0.5]}, "a log-prob is a number of at most 0 or null, got 0.5"),
            ({"response": "a", "logprobs": [-math.inf]}, "at most 0 or null, got -inf"),
            ({"response": "a", "logprobs": ["-1"]}, "at most 0 or null, got '-1'"),
            ({"logprobs": [-1.0]}, "logprobs without a response"),
            ({"tags": "easy"}, "tags must map names to labels, got 'easy'"),
            ({"id": None}, "the task id must be text or a number"),
        ],
    )
    def test_one_clear_error_names_row_and_value(self, write, fields, message):
        with pytest.raises(ValueError, match=message):
            read_tasks(write(row(**fields)))

    def test_a_named_column_must_be_there(self, write):
        path = write(row(topic="sum"))
        with pytest.raises(ValueError, match=r"no logprobs column: looked for lps.*tasks.options.logprobs_column"):
            read_tasks(path, logprobs_column="lps")
        with pytest.raises(ValueError, match=r"no prompt column.*Did you mean 'prompt'\?"):
            read_tasks(path, prompt_column="promt")

    def test_files_that_are_not_there_or_of_another_kind(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no task file .*nowhere.jsonl \(looked in .*set tasks.name"):
            read_tasks(tmp_path / "nowhere.jsonl")
        (tmp_path / "tasks.csv").write_text("prompt,answer\n")
        with pytest.raises(ValueError, match=r"\.csv is not one of \.jsonl, \.json, \.parquet"):
            read_tasks(tmp_path / "tasks.csv")

    def test_a_damaged_parquet_file(self, tmp_path, write):
        path = write(row(), name="tasks.parquet")
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"tasks\.parquet cannot be read"):
            read_tasks(path)


class TestExpertFromReference:
    def test_the_reference_becomes_one_more_response(self, write):
        path = write(row(response="two"))
        (task,) = read_tasks(path, expert_from_reference=True, expert_template="It is {answer}.")
        assert [(e.text, e.author) for e in task.expert] == [("two", "dataset"), ("It is 2.", "reference")]

    def test_a_row_without_a_reference_is_refused(self, write):
        with pytest.raises(ValueError, match="row 0: expert_from_reference is set"):
            read_tasks(write(row(answer=None)), require_reference=False, expert_from_reference=True)

    @pytest.mark.parametrize("template", ["two", "{reference}", "{answer"])
    def test_a_bad_template_is_refused_before_the_file_is_read(self, tmp_path, template):
        with pytest.raises(ValueError, match=r"tasks\.options\.expert_template"):
            read_tasks(tmp_path / "nowhere.jsonl", expert_from_reference=True, expert_template=template)


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"GSM8K is not at {GSM8K}")
class TestGsm8k:
    def config(self, **fields):
        files = {"name": str(GSM8K / "train.jsonl"), "heldout_path": str(GSM8K / "test.jsonl")}
        return TaskConfig(source="file", **(files | {"num_train": 8000, "num_heldout": 2000} | fields))

    def test_every_problem_loads_and_every_reference_is_one_number(self):
        tasks = load_tasks(self.config())
        assert (len(tasks.train), len(tasks.heldout)) == (7473, 1319)
        assert all(reference_number(task) is not None for task in (*tasks.train, *tasks.heldout))

    def test_the_worked_answer_is_the_expert_and_earns_the_reward(self):
        options = {"expert_from_reference": True}
        tasks = load_tasks(self.config(num_train=200, num_heldout=50, options=options))
        assert (len(tasks.train), len(tasks.heldout)) == (200, 50)
        for task in tasks.train:
            (expert,) = task.expert
            assert final_number(expert.text, task, strict=True).score == 1.0
            assert final_number("I do not know", task).status is Status.NO_ANSWER

    def test_one_file_can_be_split(self):
        tasks = load_tasks(self.config(heldout_path=None, num_train=100, num_heldout=100))
        assert not {task.prompt for task in tasks.train} & {task.prompt for task in tasks.heldout}
