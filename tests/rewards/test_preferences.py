import itertools
import json

import numpy as np
import pytest

from rewards.preferences import (
    Leaf,
    consistent,
    corrupted_pair,
    num_examples,
    pairs_of_group,
    read_pairs,
    tree_pairs,
    with_wrong_number,
)
from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.final_number import final_number

TASK = Task(task_id="t", prompt="What is 2 + 3?", reference="5")
UNSCORED = Verdict.unscored(Status.JUDGE_ERROR)


def test_pairs_that_teach_nothing_are_counted(tmp_path):
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "y", "source": "people", "margin": 1},
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "x", "rejected": "y"},
        {"prompt": "a", "chosen": "x ", "rejected": "x"},
        {"prompt": "a", "chosen": "", "rejected": "x"},
        {"prompt": "a", "chosen": "x"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pairs, refused = read_pairs(path)
    assert [(p.source, p.margin, p.messages[0]["content"]) for p in pairs] == [("people", 1.0, "a"), ("file", 0.0, "a")]
    assert refused == {"equal": 1, "empty": 1, "not_a_pair": 1}
    path.write_text("\n".join(map(json.dumps, rows[2:])))
    with pytest.raises(ValueError, match="no usable pair"):
        read_pairs(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        read_pairs(path)


def test_unscored_answers_enter_no_pair():
    verdicts = [Verdict.scored(1.0), UNSCORED, Verdict.scored(0.0), Verdict.scored(0.0)]
    pairs = pairs_of_group(TASK, ["5", "5!", "6", "5 "], verdicts)
    assert [(p.chosen, p.rejected) for p in pairs] == [("5", "6")]
    assert pairs_of_group(TASK, ["a", "b"], [Verdict.scored(0.6), Verdict.scored(0.5)], least=0.2) == []


def test_leaves_of_a_tree_by_the_depth_they_part_at():
    """Branching 2, depth 3: eight leaves, four sibling pairs and 24 others."""
    paths = list(itertools.product((0, 1), repeat=3))
    leaves = [Leaf(path, f"answer {i}", float(i)) for i, path in enumerate(paths)]
    pairs = tree_pairs(TASK, leaves)
    assert len(pairs) == 28
    assert sum(p.source == "tree, parted at 2" for p in pairs) == 4
    assert sum(p.source == "tree, parted at 0" for p in pairs) == 16
    assert all(int(p.chosen[7:]) > int(p.rejected[7:]) for p in pairs)
    dull = [Leaf((0,), "a", 1.0), Leaf((1,), "a", 0.0), Leaf((2,), "b", None), Leaf((3,), "c", 1.0)]
    assert [p.chosen for p in tree_pairs(TASK, dull)] == ["c"]


def test_a_corrupted_pair_needs_a_rewriting_that_is_wrong():
    rng = np.random.default_rng(0)
    pair = corrupted_pair(TASK, "2 + 3 = 5", lambda text: with_wrong_number(text, rng), final_number)
    assert pair.chosen == "2 + 3 = 5"
    assert pair.rejected.startswith("2 + 3 = ")
    assert not final_number(pair.rejected, TASK).is_right
    assert corrupted_pair(TASK, "2 + 3 = 5", lambda text: text + " indeed", final_number) is None
    assert corrupted_pair(TASK, "it is 6", lambda text: "it is 7", final_number) is None
    assert with_wrong_number("no number", rng) == "no number"


def test_curation_worked_examples():
    assert [num_examples(p) for p in (0.3, 0.7, 0.9, 0.5, 1.0)] == [8, 3, 1, 8, 0]
    pairs = pairs_of_group(TASK, ["a", "b", "c", "d"], [Verdict.scored(float(i)) for i in range(4)])[:4]
    found = consistent(pairs, [0.9, 0.9, 0.1, 0.2], [0.8, 0.3, 0.4, 0.9])
    assert (found.kept, found.num_dropped) == ((pairs[0],), 2)
    assert (found.recycled[0].chosen, found.recycled[0].rejected) == (pairs[2].rejected, pairs[2].chosen)
