import pytest

from rewards.contamination import cut, is_completed, overlap


def test_cut_keeps_every_word_and_leaves_one_on_each_side():
    text = "How many apples are left  over?"
    for share in (0.01, 0.4, 0.99):
        shown, hidden = cut(text, share)
        assert shown + hidden == text
        assert shown.strip()
        assert hidden
    with pytest.raises(ValueError, match="strictly"):
        cut(text, 1.0)


def test_completed_means_every_hidden_word_in_its_place():
    assert is_completed("are left over?", " are left\nover? Ten.")
    assert not is_completed("are left over?", "are left")
    assert not is_completed("are left over?", "there are left over?")
    assert not is_completed("", "anything")


def test_overlap_worked_example():
    """a c d of the four hidden words are found in order among four."""
    assert overlap("a b c d", "a x c d e f") == pytest.approx(2 * 3 / 8)
    assert overlap("a b", "a b c d") == 1.0  # what follows the rest is not held against it
    assert overlap("a b", "") == 0.0
