import importlib
import json
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import actors.config
import learner.config
import learner.losses.config
import orchestrator.config
import rewards.config
from actors.config import ReplayConfig, RolloutConfig, WeightsConfig
from learner.config import ClippedSurrogate, EntropyBonus, KLToReference, NegativeLogLikelihood, Schedule, Term
from orchestrator.config import CheckpointConfig, EvaluationConfig, RunConfig
from rewards.config import Section, TaskConfig

MODULES = (rewards.config, learner.config, learner.losses.config, actors.config, orchestrator.config)
RECIPES = ("arithmetic_demo", "chord_mu", "chord_phi", "dapo", "grpo", "sft", "sft_then_rl")

LIVE = Term(loss=ClippedSurrogate())
EXPERT = Term(loss=NegativeLogLikelihood(), source="expert")


def make_run(*terms, **fields):
    return RunConfig(terms=terms or (LIVE,), **fields)


def sections():
    """Every config section there is, base classes left out."""
    found = {c for m in MODULES for c in vars(m).values() if isinstance(c, type) and issubclass(c, Section)}
    return sorted(found - {Section, learner.config.LossParams}, key=lambda section: section.__name__)


@pytest.mark.parametrize("section", sections())
def test_every_setting_is_documented(section):
    undocumented = [name for name, field in section.model_fields.items() if name != "name" and not field.description]
    assert not undocumented
    assert section.__doc__


@pytest.mark.parametrize("section", sections())
def test_defaults_are_valid_and_survive_json(section):
    required = {name for name, field in section.model_fields.items() if field.is_required()}
    values = {
        "terms": (LIVE,),
        "loss": ClippedSurrogate(),
        "verifier": "final_number",
        "draws": 2,
        "miss_reward": 0.0,
        "model": "m",
        "path": "run",
    }
    config = section(**{name: values[name] for name in required})
    assert section.model_validate_json(config.model_dump_json()) == config


class TestRoundTrip:
    @pytest.mark.parametrize("name", RECIPES)
    def test_every_recipe_comes_back_from_json_as_it_was(self, name):
        config = getattr(importlib.import_module(f"recipes.{name}"), name)()
        text = config.model_dump_json(indent=2)
        assert RunConfig.model_validate_json(text) == config
        assert RunConfig.model_validate_json(text).model_dump_json(indent=2) == text

    def test_quotas_stay_exact(self):
        config = make_run(LIVE, EXPERT, replay=ReplayConfig(quotas={"expert": "1/3"}))
        assert json.loads(config.model_dump_json())["replay"]["quotas"] == {"expert": "1/3"}
        assert RunConfig.model_validate_json(config.model_dump_json()).replay.quotas == {"expert": Fraction(1, 3)}

    @settings(deadline=None)
    @given(
        st.integers(1, 64),
        st.integers(0, 9),
        st.fractions(min_value="1/100", max_value="99/100", max_denominator=1000),
        st.builds(Schedule, start=st.floats(0, 1)),
        st.one_of(
            st.builds(ClippedSurrogate, clip_low=st.floats(0.01, 0.99), clip_high=st.floats(0.01, 9)),
            st.builds(KLToReference, estimator=st.sampled_from(["k1", "k2", "k3", "k3+"])),
            st.builds(EntropyBonus),
        ),
    )
    def test_any_run_survives_json(self, num_groups, max_age, share, weight, loss):
        config = make_run(
            Term(loss=loss, weight=weight.complement()),
            Term(loss=NegativeLogLikelihood(token_weight="phi"), source="expert", weight=weight),
            replay=ReplayConfig(groups_per_update=num_groups, max_age=max_age, quotas={"expert": share}),
        )
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
        assert RunConfig.model_validate(config.model_dump()) == config

    def test_the_schema_can_be_written(self):
        schema = RunConfig.model_json_schema()
        assert schema["properties"]["num_steps"]["description"] == "Optimizer steps."
        json.dumps(schema)


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"modle": "x"}, "unknown key 'modle' in RunConfig: did you mean 'model'"),
            ({"replay": {"maxage": 3}}, "unknown key 'maxage' in ReplayConfig: did you mean 'max_age'"),
            ({"rollout": {"engine": {"thread": 1}}}, "unknown key 'thread' in EngineConfig: did you mean 'threads'"),
            ({"terms": [{"loss": "clipped_surrogate", "wieght": 1}]}, "unknown key 'wieght' in Term: did you mean"),
            (
                {"terms": [{"loss": {"name": "clipped_surrogate", "clip_hi": 1}}]},
                "unknown key 'clip_hi' in ClippedSurrogate: did you mean 'clip_high'",
            ),
            ({"terms": [{"loss": "clipped_surogate"}]}, "'clipped_surogate'.* does not match any of the expected tags"),
        ],
    )
    def test_are_refused_wherever_they_stand(self, values, message):
        with pytest.raises(ValidationError, match=message):
            RunConfig.model_validate({"terms": [{"loss": "clipped_surrogate"}]} | values)


class TestChecksThatSpanSections:
    def test_a_term_needs_a_share_of_the_batch(self):
        with pytest.raises(
            ValidationError, match=r"terms\[1\] trains on source 'expert' but replay.quotas has no share"
        ):
            make_run(LIVE, EXPERT)
        with pytest.raises(ValidationError, match=r"terms\[0\] trains on live rollouts but the quotas leave none"):
            make_run(LIVE, EXPERT, replay=ReplayConfig(quotas={"expert": 1}))

    def test_a_share_of_the_batch_needs_a_term(self):
        with pytest.raises(ValidationError, match=r"replay\.quotas\.expert=1/4 of each batch, but no term trains on"):
            make_run(LIVE, replay=ReplayConfig(quotas={"expert": "1/4"}))
        with pytest.raises(
            ValidationError, match="leave 3/4 of each batch to live rollouts, but no term trains on them"
        ):
            make_run(EXPERT, replay=ReplayConfig(quotas={"expert": "1/4"}))

    def test_a_term_that_rests_counts_as_one(self):
        resting = Term(loss=NegativeLogLikelihood(), source="expert", weight=0.0)
        make_run(LIVE, resting, replay=ReplayConfig(quotas={"expert": "1/4"}))

    def test_sources_that_fit_are_accepted(self):
        make_run(LIVE, EXPERT, replay=ReplayConfig(quotas={"expert": "1/4"}))
        make_run(EXPERT, replay=ReplayConfig(quotas={"expert": 1}, max_age=0), weights=WeightsConfig(publish_every=5))

    @pytest.mark.parametrize(("max_age", "publish_every", "fits"), [(0, 1, True), (3, 4, True), (2, 4, False)])
    def test_groups_must_not_be_too_old_before_new_weights_arrive(self, max_age, publish_every, fits):
        fields = {"replay": ReplayConfig(max_age=max_age), "weights": WeightsConfig(publish_every=publish_every)}
        if fits:
            make_run(**fields)
            return
        with pytest.raises(ValidationError, match=r"max_age=2 but weights are published every 4.* at least 3"):
            make_run(**fields)

    def test_a_synchronous_run_is_strictly_on_policy(self):
        make_run(synchronous=True, replay=ReplayConfig(max_age=0))
        with pytest.raises(ValidationError, match=r"synchronous=true .*max_age must be 0, got 1"):
            make_run(synchronous=True)

    def test_one_answer_has_nothing_to_be_compared_with(self):
        with pytest.raises(ValidationError, match=r"terms\[0\].advantage='group_relative' .* rollout.group_size=1"):
            make_run(rollout=RolloutConfig(group_size=1))
        make_run(Term(loss=ClippedSurrogate(), advantage="score"), rollout=RolloutConfig(group_size=1))
        make_run(Term(loss=EntropyBonus()), rollout=RolloutConfig(group_size=1))

    def test_greedy_answers_and_what_compares_with_them_go_together(self):
        over_greedy, sampled = (
            Term(loss=ClippedSurrogate(), advantage="over_greedy"),
            RolloutConfig(greedy_baseline=True),
        )
        assert make_run(over_greedy, rollout=sampled).rollout.greedy_baseline
        with pytest.raises(ValidationError, match=r"terms\[0\].advantage='over_greedy'.* set rollout.greedy_baseline"):
            make_run(over_greedy)
        with pytest.raises(ValidationError, match="no term has advantage='over_greedy'"):
            make_run(rollout=sampled)

    def test_a_run_needs_a_term(self):
        with pytest.raises(ValidationError, match="terms"):
            RunConfig(terms=())

    @pytest.mark.parametrize("fields", [{"num_steps": 0}, {"max_minutes": 0}, {"seed": -1}, {"placement": "tpu"}])
    def test_plain_bounds(self, fields):
        with pytest.raises(ValidationError, match=next(iter(fields))):
            make_run(**fields)


class TestEvaluation:
    def test_equal_answers_are_not_counted_as_many(self):
        with pytest.raises(ValidationError, match="samples_per_task=4 at temperature 0 gives the same answer each"):
            EvaluationConfig(samples_per_task=4)
        EvaluationConfig(samples_per_task=4, temperature=0.7)

    def test_bounds(self):
        with pytest.raises(ValidationError, match="keep"):
            CheckpointConfig(keep=0)
        with pytest.raises(ValidationError, match="num_tasks"):
            EvaluationConfig(num_tasks=0)


def test_configs_and_recipes_load_without_the_heavy_packages():
    heavy = {"torch", "ray", "vllm", "transformers", "datasets", "reasoning_gym", "wandb"}
    names = [*(f"recipes.{name}" for name in RECIPES), *(module.__name__ for module in MODULES)]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_config_modules_import_only_other_config_modules():
    for module in MODULES:
        ours = {"rewards", "learner", "actors", "orchestrator", "recipes"}
        taken = {value.__module__ for value in vars(module).values() if hasattr(value, "__module__")}
        strangers = {name for name in taken if name.partition(".")[0] in ours and not name.endswith(".config")}
        assert not strangers


def test_the_default_task_source_says_what_it_lacks():
    assert make_run().tasks == TaskConfig(source="reasoning_gym", name=None)
