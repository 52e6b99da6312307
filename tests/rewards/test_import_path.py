import sys

import pytest

from rewards.import_path import ImportPathError
from rewards.rubric import VERIFIERS, resolve_verifier
from rewards.verifiers.final_number import final_number


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package that is importable for the length of one test."""

    def write(**modules):
        folder = tmp_path / "reward_pkg"
        folder.mkdir(exist_ok=True)
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        return "reward_pkg"

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "reward_pkg"]:
        del sys.modules[name]


def test_every_built_in_name_resolves():
    assert resolve_verifier("final_number") is final_number
    for name in VERIFIERS:
        assert callable(resolve_verifier(name))


def test_import_path_resolves(package):
    package(rewards="def score(answer, task): return 1.0\nclass Box:\n    inner = staticmethod(score)\n")
    assert resolve_verifier("reward_pkg.rewards:score")("a", None) == 1.0
    assert resolve_verifier("reward_pkg.rewards:Box.inner")("a", None) == 1.0


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ImportPathError, match=r"verifier 'final_numbr'.*did you mean 'final_number'"):
        resolve_verifier("final_numbr")
    with pytest.raises(ImportPathError, match=r"known names: answer_frequency, box_iou, .*exact_match, .*my_pkg"):
        resolve_verifier("zzz")


@pytest.mark.parametrize("spec", ["", ":", "a:", ":b"])
def test_half_a_path_is_refused(spec):
    with pytest.raises(ImportPathError, match="unknown verifier"):
        resolve_verifier(spec)


def test_missing_module_names_it_and_the_search_path():
    with pytest.raises(ImportPathError, match=r"no module 'no_such_pkg' on sys.path \(.*PYTHONPATH") as raised:
        resolve_verifier("no_such_pkg.rewards:score")
    assert sys.path[0] in str(raised.value)


def test_missing_submodule(package):
    package(__init__="")
    with pytest.raises(ImportPathError, match=r"no module 'reward_pkg\.nothing'"):
        resolve_verifier("reward_pkg.nothing:score")


def test_missing_attribute_suggests_the_nearest(package):
    package(rewards="def score_answer(answer, task): return 1.0\n")
    with pytest.raises(ImportPathError, match=r"has no attribute 'score_answr'.*did you mean 'score_answer'"):
        resolve_verifier("reward_pkg.rewards:score_answr")


def test_a_users_own_missing_import_is_told_apart(package):
    package(rewards="import no_such_library\n")
    with pytest.raises(ImportPathError, match=r"'reward_pkg\.rewards' was found, but it imports 'no_such_library'"):
        resolve_verifier("reward_pkg.rewards:score")


def test_a_module_that_fails_is_named_with_its_error(package):
    package(syntax="def (", boom="raise RuntimeError('no licence')")
    with pytest.raises(ImportPathError, match=r"'reward_pkg.syntax' failed while it was imported: SyntaxError"):
        resolve_verifier("reward_pkg.syntax:score")
    with pytest.raises(ImportPathError, match="RuntimeError: no licence"):
        resolve_verifier("reward_pkg.boom:score")


def test_target_must_be_callable(package):
    package(rewards="score = 3\n")
    with pytest.raises(ImportPathError, match="names a int, which cannot be called"):
        resolve_verifier("reward_pkg.rewards:score")
