import json

from actors.ledger import LedgerRow, PromptLedger
from actors.ports import Outcome
from rewards.trajectory import PolicyVersion


def outcome(prompt_id="p", scored=4, correct=1, version: int | None = 0, **changes):
    values = {
        "lease_id": "0.0",
        "group_id": "g",
        "prompt_id": prompt_id,
        "num_scored": scored,
        "num_correct": correct,
        "mean_score": correct / scored if scored else None,
        "version": None if version is None else PolicyVersion(version),
        "fate": "stored",
    }
    return Outcome(**(values | changes))


def counted(*outcomes):
    ledger = PromptLedger()
    for one in outcomes:
        ledger.count(one)
    return ledger


def test_an_untried_prompt_has_a_row_of_zeros():
    assert PromptLedger().row("new") == LedgerRow(prompt_id="new")
    assert PromptLedger().rows() == []


def test_groups_add_up_and_the_newest_rate_stays():
    ledger = counted(outcome(scored=4, correct=1, version=3), outcome(scored=3, correct=3, version=5))
    assert ledger.rows() == [
        LedgerRow(
            prompt_id="p",
            groups=2,
            attempts=7,
            successes=4,
            last_rate=1.0,
            last_version=PolicyVersion(5),
            history=(0.25, 1.0),
        )
    ]


def test_a_straggler_of_an_older_version_counts_but_does_not_replace_the_rate():
    row = counted(outcome(correct=4, version=5), outcome(correct=0, version=3), outcome(correct=0, version=None)).row(
        "p"
    )
    assert (row.groups, row.attempts, row.successes) == (3, 12, 4)
    assert (row.last_rate, row.last_version) == (1.0, 5)


def test_another_group_of_the_same_version_replaces_the_rate():
    assert counted(outcome(correct=4, version=5), outcome(correct=1, version=5)).row("p").last_rate == 0.25


def test_a_group_nobody_could_judge_says_nothing_about_the_prompt():
    row = counted(outcome(correct=2, version=1), outcome(scored=0, correct=0, version=2)).row("p")
    assert (row.groups, row.attempts, row.last_rate, row.last_version) == (2, 4, 0.5, 1)


def test_tried_and_solved_prompts_are_counted():
    ledger = counted(outcome("a", correct=0), outcome("b", correct=1), outcome("b", correct=1), outcome("a", correct=0))
    assert (ledger.num_tried, ledger.num_solved) == (2, 1)
    ledger.count(outcome("a", correct=2))
    assert (ledger.num_tried, ledger.num_solved) == (2, 2)


def test_json_brings_every_row_back_in_order():
    ledger = counted(outcome("b", version=None), outcome("a", correct=0), outcome("c", scored=0, correct=0))
    data = json.loads(json.dumps(ledger.to_json()))
    restored = PromptLedger.from_json(data)
    assert restored.rows() == ledger.rows()
    assert restored.num_solved == ledger.num_solved == 1
    assert restored.to_json() == data


def test_rows_written_before_a_column_existed_get_its_default():
    old = {"columns": ["prompt_id", "groups"], "rows": [["p", 2]]}
    assert PromptLedger.from_json(old).row("p") == LedgerRow(prompt_id="p", groups=2)
