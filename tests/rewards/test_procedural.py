import json
from dataclasses import replace

import pytest
import reasoning_gym as library

from rewards import procedural
from rewards.config import TaskConfig
from rewards.import_path import ImportPathError
from rewards.procedural import procedural_tasks
from rewards.tasks import load_tasks, problem_id
from rewards.verifiers.reasoning_gym import reasoning_gym


def drawn(name="chain_sum", num_train=40, num_heldout=20, seed=0, **options):
    return procedural_tasks(name, num_train=num_train, num_heldout=num_heldout, seed=seed, options=options)


def questions(tasks):
    return [task.prompt for task in tasks]


@pytest.mark.parametrize("name", ["chain_sum", "gcd", "letter_counting", "propositional_logic"])
def test_problems_are_distinct_and_no_heldout_one_is_trained_on(name):
    tasks = drawn(name)
    assert (len(tasks.train), len(tasks.heldout)) == (40, 20)
    assert len({problem_id(task) for task in (*tasks.train, *tasks.heldout)}) == 60
    assert len({task.task_id for task in (*tasks.train, *tasks.heldout)}) == 60


def test_the_heldout_problems_do_not_depend_on_how_many_are_trained_on():
    few, many = drawn(num_train=5), drawn(num_train=40)
    assert few.heldout == many.heldout
    assert few.train == many.train[:5]


def test_the_same_seed_gives_the_same_problems_and_neighbours_share_no_draws():
    assert drawn() == drawn()
    assert not set(questions(drawn().train)) & set(questions(drawn(seed=1).train))


def test_metadata_is_what_the_verifier_needs_after_a_trip_through_json():
    for task in drawn("gcd", 5, 2).train:
        arrived = replace(task, metadata=json.loads(json.dumps(task.metadata)))
        assert reasoning_gym(task.reference, arrived).score == 1.0
        assert reasoning_gym(str(int(task.reference) + 1), arrived).score == 0.0


def test_options_reach_the_generator():
    tasks = drawn("chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    assert all(task.metadata["entry"]["metadata"]["num_terms"] == 2 for task in tasks.train)
    assert tasks.train[0].metadata["options"] == {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_a_reference_that_is_not_text_is_left_to_the_scorer():
    task = drawn("propositional_logic", 2, 1).train[0]
    assert task.reference is None
    assert reasoning_gym(task.metadata["entry"]["metadata"]["example_answer"], task).score == 1.0


def test_problems_that_differ_in_letter_case_alone_are_one(monkeypatch):
    class Shouting:
        """Entry i asks question i // 2, in capitals when i is odd."""

        def __getitem__(self, index):
            question = f"what is {index // 2}?"
            return {"question": question.upper() if index % 2 else question, "answer": "1", "metadata": {}}

        def score_answer(self, answer, entry):
            return float(answer == entry["answer"])

    monkeypatch.setattr(library, "create_dataset", lambda name, **options: Shouting())
    config = TaskConfig(source="reasoning_gym", name="chain_sum", num_train=3, num_heldout=2)
    tasks = load_tasks(config)  # which refuses a held-out problem that is trained on
    assert questions((*tasks.heldout, *tasks.train)) == [f"what is {i}?" for i in range(5)]


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("chain_sums", {}, ImportPathError, "no generator 'chain_sums': did you mean one of chain_sum"),
        ("chain_sum", {"min_term": 2}, ValueError, "'chain_sum' does not take tasks.options={'min_term': 2}"),
        ("chain_sum", {"min_terms": 0}, ValueError, "does not take tasks.options={'min_terms': 0}"),
        ("chain_sum", {"seed": 3}, ValueError, "tasks.options.seed: set tasks.seed"),
        ("chain_sum", {"size": 3}, ValueError, "tasks.options.size: set tasks.seed, tasks.num_train"),
        ("arc_agi", {}, ValueError, "'arc_agi': its scorer needs Python types"),
    ],
)
def test_bad_names_and_options_are_one_clear_error(name, options, error, message):
    with pytest.raises(error, match=message):
        procedural_tasks(name, num_train=4, num_heldout=2, seed=0, options=options)


def test_a_generator_with_too_few_problems_says_how_many_it_has():
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    with pytest.raises(ValueError, match=r"'chain_sum' gave only \d+ distinct problems in \d+ draws, 600 are needed"):
        drawn("chain_sum", 400, 200, **tiny)


def test_entries_that_are_not_json_are_refused(monkeypatch):
    class Odd:
        def __getitem__(self, index):
            return {"question": f"q{index}", "answer": "1", "metadata": {"pair": {1, 2}}}

    monkeypatch.setattr(procedural.reasoning_gym, "create_dataset", lambda name, **options: Odd())
    with pytest.raises(ValueError, match="its entries are not JSON"):
        drawn("chain_sum", 2, 1)
