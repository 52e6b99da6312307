import json
from collections import Counter

import pytest

from rewards.config import TaskConfig
from rewards.tasks import load_tasks
from rewards.text_segments import segments, text_segment_tasks
from rewards.verifiers.next_segment import next_segment

TEXT = "One came. Two came!  Three came? Four came. Five came."


def made(tmp_path, **options):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{TEXT} Document {i} ends."}) for i in range(8)))
    return text_segment_tasks(num_train=8, num_heldout=4, seed=0, path=str(path), **options)


def test_a_text_is_cut_into_its_sentences():
    assert segments(TEXT) == ["One came.", "Two came!", "Three came?", "Four came.", "Five came."]


def test_next_shows_nothing_of_what_follows_and_missing_one_sentence(tmp_path):
    tasks = made(tmp_path, missing_share=0.25)
    every = (*tasks.train, *tasks.heldout)
    assert Counter(task.tags["mode"] for task in every) == {"next": 9, "missing": 3}
    for task in every:
        parts = segments(f"{TEXT} Document {task.metadata['document']} ends.")
        i = task.metadata["segment"]
        assert parts[i] not in task.prompt
        assert " ".join(parts[:i]) in task.prompt
        shown_after = [part for part in parts[i + 1 :] if part in task.prompt]
        assert shown_after == (parts[i + 1 : i + 2] if task.tags["mode"] == "missing" else [])


def test_texts_are_on_one_side_only(tmp_path):
    tasks = made(tmp_path)
    sides = [{task.metadata["document"] for task in side} for side in (tasks.train, tasks.heldout)]
    assert not sides[0] & sides[1]


def test_one_segment_or_the_window_is_paid_and_anything_else_is_not(tmp_path):
    task = next(t for t in made(tmp_path, missing_share=0.0).train if t.metadata["segment"] == 2)
    right = ["Three came.", "three came, four came"]
    assert [next_segment(a, task, min_words=2).score for a in right] == [1.0, 1.0]
    assert [next_segment(a, task, min_words=2).score for a in ("Four came.", "Three came. Five")] == [0.0, 0.0]


def test_generated_texts_are_a_source(tmp_path):
    tasks = load_tasks(TaskConfig(source="text_segments", num_train=300, num_heldout=40))
    assert (len(tasks.train), len(tasks.heldout)) == (300, 40)
    task = next(t for t in tasks.train if t.tags["mode"] == "next")
    last = str(task.prompt).split("\n\n")[0].split(". ")[-1].rstrip(".")
    assert task.reference is not None
    assert task.reference.split()[0] == last.split()[-1]


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needed: ask for fewer"):
        made(tmp_path, min_before=5)
    with pytest.raises(ValueError, match="missing_share=2"):
        made(tmp_path, missing_share=2)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"words": 1}')
    with pytest.raises(ValueError, match=r"bad.jsonl:1"):
        text_segment_tasks(num_train=1, num_heldout=0, seed=0, path=str(bad))
