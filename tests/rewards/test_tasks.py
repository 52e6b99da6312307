import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.config import TaskConfig
from rewards.import_path import ImportPathError
from rewards.task import Task, TaskSet
from rewards.tasks import TaskError, decontaminated, load_tasks, problem_id, split


def make_tasks(num, prompt="question {}"):
    return [Task(task_id=f"t{i}", prompt=prompt.format(i), reference=str(i)) for i in range(num)]


def ids(tasks):
    return [task.task_id for task in tasks]


@pytest.fixture
def write(tmp_path):
    """Writes a JSON-lines file of prompts; returns its path as text."""

    def write(*prompts, name="tasks.jsonl", **fields):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"prompt": p, "answer": "1", **fields}) + "\n" for p in prompts))
        return str(path)

    return write


@pytest.fixture
def own_source(tmp_path, monkeypatch):
    """Makes a module of a user's own importable; returns the import path of its function `load`."""

    def write(body):
        (tmp_path / "own_tasks.py").write_text(f"from rewards.task import Task, TaskSet\n{body}\n")
        return "own_tasks:load"

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    sys.modules.pop("own_tasks", None)


class TestSplit:
    def test_heldout_tasks_do_not_depend_on_how_many_are_trained_on(self):
        tasks = make_tasks(50)
        few, many = (split(tasks, num_train=n, num_heldout=10, seed=3) for n in (5, 40))
        assert few.heldout == many.heldout
        assert few.train == many.train[:5]
        assert len(many.train) == 40

    def test_the_seed_decides(self):
        tasks = make_tasks(50)
        assert split(tasks, num_train=40, num_heldout=10, seed=0) == split(tasks, num_train=40, num_heldout=10, seed=0)
        assert split(tasks, num_train=40, num_heldout=10, seed=0) != split(tasks, num_train=40, num_heldout=10, seed=1)

    @given(
        st.lists(st.sampled_from(["a", "A ", "b", "c  d", "C D", "e", "f"]), min_size=1, max_size=30),
        st.integers(0, 6),
        st.integers(0, 9),
    )
    def test_equal_prompts_stay_on_one_side(self, prompts, num_heldout, seed):
        tasks = [Task(task_id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]
        try:
            parts = split(tasks, num_train=100, num_heldout=num_heldout, seed=seed)
        except TaskError:
            return  # too few to keep that many aside
        assert len(parts.heldout) == num_heldout
        assert sorted(ids((*parts.train, *parts.heldout))) == sorted(ids(tasks))
        assert not {problem_id(t) for t in parts.train} & {problem_id(t) for t in parts.heldout}

    def test_too_few_tasks_are_refused(self):
        with pytest.raises(TaskError, match=r"5 tasks with 5 distinct prompts cannot be split into num_heldout=5"):
            split(make_tasks(5), num_train=1, num_heldout=5, seed=0)
        with pytest.raises(TaskError, match="5 tasks with 1 distinct prompts"):
            split(make_tasks(5, "the same"), num_train=1, num_heldout=2, seed=0)


class TestProblemId:
    def test_white_space_and_letter_case_do_not_make_another_problem(self):
        same = [Task(task_id="a", prompt=prompt) for prompt in ("What is 1 + 1?", " what IS\n1 + 1? ")]
        assert problem_id(same[0]) == problem_id(same[1])

    def test_words_order_and_roles_do(self):
        def key(*messages):
            return problem_id(Task(task_id="a", prompt=tuple({"role": r, "content": c} for r, c in messages)))

        assert key(("user", "1 + 2")) != key(("user", "2 + 1"))
        assert key(("system", "x"), ("user", "y")) != key(("user", "y"))
        assert key(("user", "x")) == problem_id(Task(task_id="b", prompt="x"))


class TestFileSource:
    def test_one_file_is_split(self, write):
        path = write(*(f"q{i}" for i in range(20)))
        tasks = load_tasks(TaskConfig(source="file", name=path, num_train=100, num_heldout=5))
        assert (len(tasks.train), len(tasks.heldout)) == (15, 5)

    def test_two_files_stay_apart(self, write):
        train, heldout = write("a", "b", "c", name="train.jsonl"), write("d", "e", name="test.jsonl")
        config = TaskConfig(source="file", name=train, heldout_path=heldout, num_train=2, num_heldout=10)
        tasks = load_tasks(config)
        assert len(tasks.train) == 2
        assert {task.prompt for task in tasks.train} < {"a", "b", "c"}
        assert {task.prompt for task in tasks.heldout} == {"d", "e"}

    def test_a_heldout_problem_that_is_trained_on_is_refused(self, write):
        train, heldout = write("What is 1 + 1?", "b", name="train.jsonl"), write("what is  1 + 1?", name="test.jsonl")
        config = TaskConfig(source="file", name=train, heldout_path=heldout, num_train=10, num_heldout=1)
        with pytest.raises(TaskError, match=r"1 held-out tasks have the prompt of a training task, e\.g\. .*train/0"):
            load_tasks(config)

    def test_options_reach_the_reader(self, write):
        path = write("a", "b", note="kept")
        options = {"reference_column": "note"}
        tasks = load_tasks(TaskConfig(source="file", name=path, num_heldout=0, options=options))
        assert {task.reference for task in tasks.train} == {"kept"}

    @pytest.mark.parametrize(
        ("fields", "error", "message"),
        [
            ({"name": None}, TaskError, "tasks.source='file' needs tasks.name, the path of"),
            ({"name": "no/such.jsonl"}, FileNotFoundError, "no task file"),
            ({"heldout_path": "x.jsonl", "num_heldout": 0}, TaskError, "tasks.num_heldout=0: drop one of them"),
            (
                {"options": {"colum": "a"}},
                TaskError,
                r"tasks.options.colum is not known to source 'file': known .*prompt_",
            ),
            ({"options": {"path": "a"}}, TaskError, "tasks.options.path is not known"),
            (
                {"options": {"prompt_column": 3}},
                TaskError,
                "tasks.options.prompt_column=3 of source 'file': Input should",
            ),
            ({"options": {"require_reference": "no"}}, TaskError, "require_reference='no'.*valid boolean"),
        ],
    )
    def test_bad_settings(self, write, fields, error, message):
        config = TaskConfig(**({"source": "file", "name": write("a", "b", "c"), "num_heldout": 1} | fields))
        with pytest.raises(error, match=message):
            load_tasks(config)


class TestOwnSource:
    def test_a_plain_list_is_split_like_a_file(self, own_source):
        path = own_source("def load(): return [Task(task_id=str(i), prompt=f'q{i}') for i in range(12)]")
        tasks = load_tasks(TaskConfig(source=path, num_train=6, num_heldout=4))
        assert (len(tasks.train), len(tasks.heldout)) == (6, 4)

    def test_a_task_set_is_taken_as_it_is(self, own_source):
        parts = "train=(Task(task_id='a', prompt='x'),), heldout=(Task(task_id='b', prompt='y'),)"
        body = f"def load(): return TaskSet({parts})"
        tasks = load_tasks(TaskConfig(source=own_source(body), num_train=1, num_heldout=500))
        assert (ids(tasks.train), ids(tasks.heldout)) == (["a"], ["b"])

    def test_a_generator_function_will_do(self, own_source):
        path = own_source("def load():\n    for i in range(3): yield Task(task_id=str(i), prompt=f'q{i}')")
        assert len(load_tasks(TaskConfig(source=path, num_heldout=0)).train) == 3

    def test_options_are_its_keyword_arguments(self, own_source):
        path = own_source("def load(word='x'): return [Task(task_id='a', prompt=word)]")
        tasks = load_tasks(TaskConfig(source=path, num_heldout=0, options={"word": "hello"}))
        assert tasks.train[0].prompt == "hello"
        with pytest.raises(TaskError, match=r"tasks.options.words is not known to source 'own_tasks:load'.*\['word'\]"):
            load_tasks(TaskConfig(source=path, num_heldout=0, options={"words": "hello"}))

    def test_any_keyword_is_accepted_where_the_function_accepts_any(self, own_source):
        path = own_source("def load(**options): return [Task(task_id='a', prompt=options['word'])]")
        assert load_tasks(TaskConfig(source=path, num_heldout=0, options={"word": "w"})).train[0].prompt == "w"

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("def load(): return ['a question']", "must return a TaskSet or an iterable of Task, got str"),
            ("def load(): return None", "must return a TaskSet or an iterable of Task, got NoneType"),
            ("def load(): return []", "0 tasks with 0 distinct prompts"),
            ("def load(): return TaskSet(train=())", "gave no training tasks"),
            (
                "def load(): return [Task(task_id='a', prompt='x'), Task(task_id='a', prompt='y')]",
                "1 task ids are not uniq",
            ),
            ("def load(): return [Task(task_id='', prompt='x')]", "a task needs an id and a prompt"),
            ("def load(): return [Task(task_id='a', prompt=' ')]", "a task needs an id and a prompt"),
            ("def load(): return [Task(task_id='a', prompt=())]", "a task needs an id and a prompt"),
            (
                "def load(): return [Task(task_id='a', prompt='x', metadata={'s': {1}})]",
                "task 'a': metadata must be JSON .* set is not JSON serializable",
            ),
            (
                "t = Task(task_id='a', prompt='x'), Task(task_id='b', prompt='X')\n"
                "def load(): return TaskSet(train=t[:1], heldout=t[1:])",
                "1 held-out tasks have the prompt of a training task",
            ),
        ],
    )
    def test_what_it_returns_is_checked(self, own_source, body, message):
        with pytest.raises(TaskError, match=message):
            load_tasks(TaskConfig(source=own_source(body), num_heldout=0))


def test_the_built_in_generators_load_by_name():
    tasks = load_tasks(TaskConfig(source="reasoning_gym", name="gcd", num_train=6, num_heldout=3))
    assert (len(tasks.train), len(tasks.heldout)) == (6, 3)
    with pytest.raises(TaskError, match=r"needs tasks\.name, the name of a generator"):
        load_tasks(TaskConfig(source="reasoning_gym"))
    with pytest.raises(TaskError, match=r"tasks.options.expert_max is not known.*expert_max_operand"):
        load_tasks(TaskConfig(source="arithmetic", options={"expert_max": 9}))
    with pytest.raises(TaskError, match=r"tasks.options.expert_max_operand='9' of source 'arithmetic'.*integer"):
        load_tasks(TaskConfig(source="arithmetic", options={"expert_max_operand": "9"}))


def test_an_unknown_source_suggests_the_nearest():
    with pytest.raises(ImportPathError, match=r"unknown task source 'arithmetics': did you mean 'arithmetic'\?"):
        load_tasks(TaskConfig(source="arithmetics"))
    with pytest.raises(ImportPathError, match="no module 'no_such_pkg'"):
        load_tasks(TaskConfig(source="no_such_pkg.tasks:load"))


def test_a_chat_message_makes_the_same_prompt_as_its_text():
    assert TaskSet(train=(Task(task_id="a", prompt="x"),)).train[0].messages == ({"role": "user", "content": "x"},)


def test_a_training_prompt_that_shares_a_stretch_of_words_with_an_evaluation_prompt_is_left_out():
    words = [f"w{i}" for i in range(40)]
    shared, short = " ".join(["a", *words[:32], "b"]), " ".join(["c", *words[:31], "d"])
    tasks = TaskSet(
        train=(Task(task_id="32", prompt=shared.upper()), Task(task_id="31", prompt=short)),
        heldout=(Task(task_id="h", prompt=" ".join(words)),),
    )
    assert [task.task_id for task in decontaminated(tasks, 32).train] == ["31"]
    assert [task.task_id for task in decontaminated(tasks, 31).train] == []
    assert decontaminated(tasks, 32).heldout == tasks.heldout
