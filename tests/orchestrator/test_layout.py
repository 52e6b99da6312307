import pytest

from actors.assembly import parse_cores
from learner.config import ClippedSurrogate, LearnerConfig, Term
from orchestrator.config import RunConfig
from orchestrator.layout import apply_layout


def config(**fields) -> RunConfig:
    return RunConfig(terms=(Term(loss=ClippedSurrogate()),), **fields)


def test_halves_gives_each_role_a_core_of_its_own():
    applied = apply_layout(config(layout="halves"), num_cores=2)
    assert (applied.rollout.engine.cores, applied.rollout.engine.threads) == ("0", 1)
    assert (applied.learner.cores, applied.learner.threads_per_rank) == ("1", 1)


def test_explicit_cores_win_over_the_layout():
    applied = apply_layout(config(layout="halves", learner=LearnerConfig(cores="0")), num_cores=2)
    assert applied.learner.cores == "0"


def test_one_core_is_shared():
    assert apply_layout(config(layout="halves"), num_cores=1).rollout.engine.cores is None


@pytest.mark.parametrize(("text", "cores"), [("0", {0}), ("0,2-3", {0, 2, 3}), ("4-4", {4})])
def test_core_lists(text, cores):
    assert parse_cores(text) == cores


def test_a_bad_core_list_is_refused():
    with pytest.raises(ValueError, match="core list 'all'"):
        parse_cores("all")
