"""docs/adding-a-method.md shows what is there: its blocks stand in the files it names, and run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from learner.losses import config
from learner.losses.output import LossOutput, selected
from learner.losses.table import LOSSES
from learner.ratios import log_ratio, mismatch_metrics, require_known
from orchestrator.load_config import load_run_config
from tests.learner import fixture_f as F

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
FILES = re.findall(r"^\| `([\w/.]+)` \|", PAGE, re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FUNCTION, FAMILY, PARAMETERS, RECIPE, WORKED, FORMULA = BLOCKS


def test_it_touches_at_most_four_files():
    assert len(FILES) <= 4
    assert all((ROOT / name).exists() for name in FILES)


@pytest.mark.parametrize(
    ("block", "name"),
    list(zip(BLOCKS, (FILES[0], *FILES, FILES[3]), strict=True)),
    ids=["function", "family", "parameters", "recipe", "worked numbers", "formula"],
)
def test_a_block_is_what_the_file_holds(block, name):
    assert block in (ROOT / name).read_text() + "\n"


def test_the_row_stands_in_the_table():
    (row,) = re.findall(r"^    (\| ROVER .*\|) [^|]+\|$", PAGE, re.MULTILINE)  # what was measured may change
    assert row in (ROOT / "docs" / "algorithms.md").read_text()


def test_the_function_and_its_test_run_as_they_stand():
    scope = {
        **{"Tensor": torch.Tensor, "torch": torch, "LossOutput": LossOutput, "selected": selected},
        **{"log_ratio": log_ratio, "mismatch_metrics": mismatch_metrics, "require_known": require_known},
        **{"F": F, "pytest": pytest},
    }
    exec(FUNCTION, scope)
    exec(WORKED, scope)
    scope["test_rover_on_two_tokens"]()
    broken = {**scope}
    exec(FUNCTION.replace("(value - selected", "(value + selected"), broken)
    exec(WORKED, broken)
    with pytest.raises(AssertionError):
        broken["test_rover_on_two_tokens"]()


def test_the_formula_is_that_of_the_function():
    scope: dict = {}
    exec(FORMULA, scope)
    pi = F.policy()
    loss = LOSSES["log_ratio_regression"].function(pi, F.MU, F.ADVANTAGES, F.TOKEN, temperature=0.7).loss
    tokens = [dict(zip(("pi", "mu", "a"), t, strict=True)) for t in zip(F.PI, F.MU, F.ADVANTAGES, strict=True)]
    assert loss.item() == pytest.approx(sum(float(scope["_regression"](t)[0]) for t in tokens) / 5, abs=1e-10)


def test_the_parameters_and_the_recipe_are_the_repositorys():
    scope = {**vars(config)}
    exec(PARAMETERS, scope)
    model = scope["LogRatioRegression"]
    signature = inspect.signature(LOSSES["log_ratio_regression"].function)
    defaults = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert model().parameters() == defaults
    scope = {}
    exec(RECIPE, scope)
    assert scope["rover"]() == load_run_config("rover")
