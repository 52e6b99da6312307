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
    assert {source for term in config.terms for source in term.sources} == supplied | spliced


DATA_METHODS = [
    "prefixrl",
    "pope",
    "dr_po",
    "ghpo",
    "guide",
    "kepo",
    "agent_rlvr",
    "fission_grpo",
    "luffy",
    "ampo",
    "arpo_gui",
    "bepa",
    "rlep",
    "exgrpo",
    "repo",
    "remix",
    "dars_et",
    "dars_hw",
    "dars_b",
    "brorl",
    "one_shot",
    "pcl",
    "self_interference",
    "npr",
    "difficulty_pools",
    "kimi_sampling",
    "difficulty_band",
    "sws",
    "modomodo",
    "light_r1",
    "bfs_prover",
    "totrl",
    "demo_removed",
    "signal_priority",
    "dapo_band",
    "ttrl",
    "ttrv",
    "random_calculation",
    "ssp",
    "rlpt",
    "ra3",
    "deepsearch",
    "pi_distill",
]


def test_methods_about_data_are_runnable_by_name():
    assert len(set(DATA_METHODS)) >= 35
    assert set(DATA_METHODS) <= set(recipe_names())
