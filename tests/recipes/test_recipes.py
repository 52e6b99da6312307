import subprocess
import sys

import pytest

from actors.rules.config import donor_sources
from orchestrator.load_config import load_run_config, recipe_names

HEAVY = ("torch", "ray", "vllm", "transformers", "datasets", "reasoning_gym", "wandb")


def test_recipes_load_without_the_heavy_packages():
    """In a fresh interpreter: a laptop without torch, ray or vllm can look at and change every recipe."""
    script = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"  # importing one now raises ImportError
        "from orchestrator.load_config import load_run_config, recipe_names\n"
        "print(*(load_run_config(name, ['seed=3']).name for name in recipe_names()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == recipe_names()


def test_the_catalogue():
    expected = {"grpo", "dapo", "chord_mu", "chord_phi", "sft", "sft_then_rl", "arithmetic_demo"}
    assert expected <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_named_like_its_file_and_says_where_its_values_come_from(name):
    module = __import__(f"recipes.{name}", fromlist=[name])
    function = getattr(module, name)
    assert load_run_config(name).name == name
    assert function.__doc__


@pytest.mark.parametrize("name", recipe_names())
def test_every_term_is_fed(name):
    config = load_run_config(name)
    supplied = set(config.replay.quotas) | ({"live"} if config.replay.live_share > 0 else set())
    spliced = donor_sources(config.rollout.rules)
    assert {term.source for term in config.terms} == supplied | spliced
