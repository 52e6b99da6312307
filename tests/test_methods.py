"""The table of methods in docs/algorithms.md: each row runs by name, is what its recipe does, and has a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from learner.advantages import ADVANTAGES
from learner.losses.table import LOSSES
from learner.statistics import STATISTICS
from orchestrator.load_config import load_run_config, recipe_names

ROOT = Path(__file__).parents[1]
QUOTED = re.compile(r"`([^`]+)`")


class Method(NamedTuple):
    name: str
    functions: frozenset[str]
    recipes: tuple[str, ...]


def read_table() -> list[Method]:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    table = text.partition("| method | source | functions | recipe |")[2].partition("\n\n")[0]
    methods = []
    for line in table.splitlines()[2:]:
        name, _, functions, recipes, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        methods.append(Method(name, frozenset(QUOTED.findall(functions)), tuple(QUOTED.findall(recipes))))
    return methods


METHODS = read_table()
RUNNABLE = [method for method in METHODS if method.recipes]


def test_at_least_eighty_methods_run_by_name():
    assert len({method.recipes for method in RUNNABLE}) == len(RUNNABLE) >= 80
    assert len({method.name for method in METHODS}) == len(METHODS)


def test_every_recipe_is_a_method_of_the_table():
    listed = [name for method in RUNNABLE for name in method.recipes]
    assert sorted(listed) == recipe_names()


@pytest.mark.parametrize("method", RUNNABLE, ids=lambda method: method.recipes[0])
def test_a_row_names_the_functions_its_recipe_uses(method):
    terms = [term for name in method.recipes for term in load_run_config(name).terms]
    used = {term.loss.name for term in terms}
    used |= {term.advantage for term in terms if "scores" in term.needs}
    used |= {term.loss.statistic for term in terms}
    assert method.functions & {*LOSSES, *ADVANTAGES, *STATISTICS} <= used
    assert used & {*LOSSES} <= method.functions or not method.functions & {*LOSSES}


def _named_in_tests(names) -> set[str]:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "tests" / "learner").glob("test_*.py")))
    return {name for name in names if re.search(rf"\b{name}\b", text)}


def test_every_function_of_the_tables_stands_in_a_test_of_its_own():
    """What all recipes are made of; `test_losses.py` besides runs every entry through the invariants."""
    for table in (LOSSES, ADVANTAGES, STATISTICS):
        assert _named_in_tests(table) == set(table)
