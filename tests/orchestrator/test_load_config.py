import json
import sys
from fractions import Fraction

import pytest

from orchestrator.config import RunConfig
from orchestrator.load_config import (
    ConfigError,
    load_run_config,
    make_importable,
    override,
    parse_yaml,
    recipe_names,
    recipe_summary,
)
from rewards.import_path import ImportPathError

OWN_RECIPE = """
from learner.config import NegativeLogLikelihood, Term
from actors.config import ReplayConfig
from orchestrator.config import RunConfig


def helper():
    return 3


def mine() -> RunConfig:
    return RunConfig(name="mine", terms=(Term(loss=NegativeLogLikelihood(), source="expert"),),
                     replay=ReplayConfig(quotas={"expert": 1}), num_steps=helper())
"""


@pytest.fixture(autouse=True)
def _leaves_no_trace(monkeypatch):
    """Recipes put folders on the search path and modules into the interpreter."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if name.startswith(("braid_recipe_", "own_pkg")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# -- where it comes from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_by_name_survives_the_way_through_json(name):
    config = load_run_config(name)
    assert config.name == name
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert recipe_summary(name).endswith(".")


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown recipe 'chord_moo'.*did you mean 'chord_mu'"):
        load_run_config("chord_moo")
    with pytest.raises(ConfigError, match=r"known recipes: .*arithmetic_demo, .*\./my_recipe.py"):
        load_run_config("zzz")


def test_unknown_recipe_beside_a_file_of_that_name(write):
    write("mine.py", OWN_RECIPE)
    with pytest.raises(ConfigError, match=r"did you mean the file \./mine.py"):
        load_run_config("mine")


def test_python_file_with_one_function_that_returns_a_run_config(write):
    write("mine.py", OWN_RECIPE)
    assert load_run_config("./mine.py").num_steps == 3
    assert load_run_config("./mine.py:mine").replay.quotas == {"expert": Fraction(1)}


def test_python_file_can_import_what_lies_beside_it(write):
    write("own_pkg_parts.py", "STEPS = 7\n")
    write(
        "mine.py",
        OWN_RECIPE.replace("def helper", "import own_pkg_parts\n\n\ndef helper").replace(
            "return 3", "return own_pkg_parts.STEPS"
        ),
    )
    assert load_run_config("./mine.py").num_steps == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", r"mine.py defines no function; write `def mine\(\) -> RunConfig"),
        ("def a(): pass\ndef b(): pass\n", r"several functions .*: name one, as in mine.py:a"),
        ("def a(steps): pass\n", r"must take no arguments, but needs steps"),
        ("def a(): return 3\n", r"must return a RunConfig, got int"),
        (
            "import no_such_library\n",
            r"failed while it was imported: ModuleNotFoundError: .*no_such_library.*mine.py:1",
        ),
        ("def a():\n    return {}['x']\n", r"mine.py raised KeyError: 'x' \(.*mine.py:2\)"),
        ("def (\n", r"failed while it was imported: SyntaxError"),
        (
            "from actors.config import RolloutConfig\ndef a():\n    return RolloutConfig(group_sise=4)\n",
            r"recipe mine.py: RolloutConfig: unknown key 'group_sise'.*did you mean 'group_size'",
        ),
    ],
)
def test_python_file_that_is_no_recipe(write, text, told):
    write("mine.py", text)
    with pytest.raises(ConfigError, match=told):
        load_run_config("mine.py")


def test_python_file_without_the_function_asked_for(write):
    write("mine.py", OWN_RECIPE)
    with pytest.raises(ConfigError, match="no function 'min': did you mean 'mine'"):
        load_run_config("mine.py:min")


def test_what_model_copy_slips_past_the_checks_is_found(write):
    write("mine.py", "from recipes.grpo import grpo\ndef a():\n    return grpo().model_copy(update={'num_steps': 0})\n")
    with pytest.raises(ConfigError, match=r"mine.py: num_steps: input should be greater than or equal to 1, got 0"):
        load_run_config("mine.py")


def test_missing_file_names_a_similar_one(write):
    write("mine.yaml", "recipe: grpo\n")
    with pytest.raises(ConfigError, match=r"no file mime.yaml .*Did you mean mine.yaml"):
        load_run_config("mime.yaml")


def test_module_and_function(write, tmp_path):
    write("own_pkg_recipes.py", OWN_RECIPE)
    make_importable(tmp_path)
    assert load_run_config("own_pkg_recipes:mine").name == "mine"
    with pytest.raises(ImportPathError, match=r"recipe 'own_pkg_recipes:mime'.*did you mean 'mine'"):
        load_run_config("own_pkg_recipes:mime")
    with pytest.raises(ImportPathError, match="no module 'own_pkg_none'"):
        load_run_config("own_pkg_none:mine")


def test_yaml_changes_its_base_key_by_key(write):
    write(
        "run.yaml",
        "recipe: chord_mu\nrollout:\n  sampling: {max_new_tokens: 9}\n"
        "learner:\n  optimizer:\n    learning_rate: 1e-4\n",
    )
    base, config = load_run_config("chord_mu"), load_run_config("run.yaml")
    assert config.rollout.sampling.max_new_tokens == 9
    assert config.learner.optimizer.learning_rate == 1e-4
    assert config.rollout.engine == base.rollout.engine
    assert config.learner.optimizer.betas == base.learner.optimizer.betas
    assert config.terms == base.terms


def test_lists_of_a_file_replace_those_of_the_base(write):
    write("run.yaml", "recipe: grpo\nterms:\n- loss: {name: clipped_surrogate, clip_high: 0.28}\n  weight: 0.5\n")
    (term,) = load_run_config("run.yaml").terms
    assert (term.loss.clip_high, term.weight.at(3)) == (0.28, 0.5)


def test_mappings_whose_keys_the_user_names_are_replaced_not_merged(write):
    write(
        "run.yaml",
        "recipe: chord_mu\ntasks: {source: 'm:load', options: {n: 3}}\nlearner: {lora: {rank: 2}}\n"
        "reward: {components: {mine: {verifier: 'm:score'}}}\n",
    )
    base, config = load_run_config("chord_mu"), load_run_config("run.yaml")
    assert base.tasks.options
    assert config.tasks.options == {"n": 3}
    assert list(config.reward.components) == ["mine"]
    assert config.tasks.num_train == base.tasks.num_train
    assert config.learner.lora.rank == 2
    assert config.learner.optimizer == base.learner.optimizer


def test_a_base_can_be_a_file_beside_the_file(write, tmp_path):
    write("mine.py", OWN_RECIPE)
    (tmp_path / "sub").mkdir()
    write("sub/run.yaml", "recipe: ../mine.py:mine\nnum_steps: 11\n")
    assert load_run_config("sub/run.yaml").num_steps == 11


def test_a_base_that_leads_back_is_refused(write):
    write("a.yaml", "recipe: b.yaml\n")
    write("b.yaml", "recipe: a.yaml\n")
    with pytest.raises(ConfigError, match="leads back to itself"):
        load_run_config("a.yaml")


def test_the_saved_configuration_of_a_run_is_a_recipe(write):
    config = load_run_config("dapo", ["num_steps=5"])
    write("config.json", config.model_dump_json(indent=2))
    assert load_run_config("config.json") == config


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("r.yaml", "rollout: [1\n", r"r.yaml is not valid YAML: .*line 2"),
        ("r.json", "{", r"r.json is not valid JSON"),
        ("r.yaml", "- 1\n", r"r.yaml must hold a mapping of sections, got list"),
        ("r.yaml", "seed: 1\nseed: 2\n", r"key 'seed' twice, line 2"),
        ("r.yaml", "recipe: [grpo]\n", r"recipe must be a name or a path"),
        ("r.yaml", "recipe: grp\n", r"r.yaml: unknown recipe 'grp': did you mean 'grpo'"),
        ("r.yaml", "recipe: grpo\nrolout: {}\n", r"r.yaml: unknown key 'rolout' in RunConfig: did you mean 'rollout'"),
        (
            "r.yaml",
            "recipe: grpo\nrollout: {engine: {kind: vlm}}\n",
            r"r.yaml: rollout.engine.kind: .*got 'vlm'; did you mean 'vllm'\?",
        ),
        ("r.yaml", "num_steps: 3\n", r"r.yaml: terms: is required and was not given"),
        (
            "r.yaml",
            "terms: [{loss: cliped_surrogate}]\n",
            r"r.yaml: terms.0.loss: must be one of .*got 'cliped_surrogate'; did you mean 'clipped_surrogate'\?",
        ),
        (
            "r.yaml",
            "recipe: grpo\nterms: [{loss: {name: clipped_surrogate, clip_low: 2}}]\n",
            r"r.yaml: terms.0.loss.clip_low: input should be less than 1, got 2$",
        ),
    ],
)
def test_files_with_a_fault(write, name, text, told):
    write(name, text)
    with pytest.raises(ConfigError, match=told) as raised:
        load_run_config(name)
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_several_faults_are_told_together(write):
    write("r.yaml", "recipe: grpo\nnum_steps: x\nseed: y\nplacement: z\nsynchronous: 9\n")
    with pytest.raises(ConfigError, match=r"num_steps: .*; placement: .*; and \d more"):
        load_run_config("r.yaml")


# -- overrides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("num_steps=7", lambda c: c.num_steps == 7),
        ("learner.optimizer.learning_rate=3e-5", lambda c: c.learner.optimizer.learning_rate == 3e-5),
        ("terms.0.loss.clip_high=0.3", lambda c: c.terms[0].loss.clip_high == 0.3),
        ("terms.0.weight=0.5", lambda c: c.terms[0].weight.at(0) == 0.5),
        ("terms.2.loss=entropy_bonus", lambda c: c.terms[2].loss.name == "entropy_bonus"),
        ("replay.quotas.expert=1/3", lambda c: c.replay.quotas == {"expert": Fraction(1, 3)}),
        ("layout=null", lambda c: c.layout is None),
        ("layout=", lambda c: c.layout is None),
        ("learner.lora.rank=4", lambda c: c.learner.lora.rank == 4),
        ("rollout.rules=[drop_constant]", lambda c: c.rollout.rules == ("drop_constant",)),
        ("rollout.rules.0=drop_constant", lambda c: c.rollout.rules == ("drop_constant",)),
        ("reward.clip=[-1, 1]", lambda c: c.reward.clip == (-1.0, 1.0)),
        ("tasks.options.new={a: 1}", lambda c: c.tasks.options["new"] == {"a": 1}),
        ('tasks.options.expert_template="{answer}"', lambda c: c.tasks.options["expert_template"] == "{answer}"),
        ("name=on", lambda c: c.name == "on"),
        ("name=a=b", lambda c: c.name == "a=b"),
    ],
)
def test_an_override_is_read_as_yaml_and_put_in_place(setting, read):
    assert read(load_run_config("chord_mu", [setting]))


def test_later_overrides_win_and_only_the_whole_has_to_be_valid():
    config = load_run_config("grpo", ["synchronous=true", "replay.max_age=3", "replay.max_age=0"])
    assert config.synchronous
    assert config.replay.max_age == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["num_steps"], r"--set num_steps: write it as section.key=value"),
        (["=3"], r"write it as section.key=value"),
        (["a..b=3"], r"write it as section.key=value"),
        (["rolout.group_size=3"], r"unknown key 'rolout' in RunConfig: did you mean 'rollout'"),
        (["rollout.grop_size=3"], r"--set rollout.grop_size=3: rollout: unknown key 'grop_size'.*'group_size'"),
        (["terms.0.loss.clip_hi=3"], r"terms.0.loss: unknown key 'clip_hi' in ClippedSurrogate"),
        (["terms.5.weight=3"], r"terms is a list of 1, so terms.5 is none of its places"),
        (["terms.first.weight=3"], r"terms.first is none of its places"),
        (["num_steps.x=3"], r"num_steps is 60, which has no parts; set num_steps itself"),
        (["num_steps=many"], r"num_steps: .*got 'many'"),
        (["tasks.options={a"], r"the value is not valid YAML .*quotes of its own"),
        (["rollout.sampling.top_p=0.9"], r"rollout.sampling: sampling with top_p=0.9"),
        (["replay.quotas.expert=2"], r"replay: quotas.expert=2: quotas are shares"),
        (["synchronous=true"], r"replay.max_age must be 0, got 1"),
    ],
)
def test_overrides_with_a_fault(settings, told):
    with pytest.raises(ConfigError, match=told) as raised:
        load_run_config("grpo", settings)
    assert "\n" not in str(raised.value)


def test_an_override_leaves_the_original_alone():
    config = load_run_config("grpo")
    before = config.model_dump_json()
    override(config, ["terms.0.loss.clip_high=0.9", "tasks.options.x=1"])
    assert config.model_dump_json() == before


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("on", "on"), ("no", "no"), ("12:30", "12:30"), ("017", 17), ("2024-01-01", "2024-01-01"),
     ("true", True), ("~", None), ("-3", -3), (".5", 0.5), ("1/3", "1/3"), ("[1, a]", [1, "a"]), ("'1'", "1")],
)  # fmt: skip
def test_yaml_scalars_are_those_of_version_1_2(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_folders_of_recipes_come_last_on_the_search_path(tmp_path):
    make_importable(tmp_path)
    make_importable(tmp_path)
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


def test_every_json_type_of_a_configuration_survives_an_override():
    config = load_run_config("chord_mu")
    same = override(config, ["seed=0"])
    assert json.loads(same.model_dump_json()) == json.loads(config.model_dump_json())
