import math

import pytest
from pydantic import Field, ValidationError

from rewards.config import RewardComponent, RewardConfig, Section, SourceName, TaskConfig
from rewards.trajectory import Source


class Inner(Section):
    """An inner section."""

    depth: int = Field(default=1, ge=1)
    """How deep."""


class Outer(Section):
    """An outer section."""

    inner: Inner = Inner()
    """The inner one."""
    rate: float = 0.5
    """A rate."""


class TestSection:
    def test_an_unknown_key_is_refused_with_the_nearest_known_one(self):
        with pytest.raises(ValidationError, match="unknown key 'num_trian' in TaskConfig: did you mean 'num_train'"):
            TaskConfig.model_validate({"num_trian": 5})

    def test_without_a_near_one_the_known_keys_are_listed(self):
        with pytest.raises(ValidationError, match="unknown key 'zzz' in Outer: known keys: inner, rate"):
            Outer.model_validate({"zzz": 1})

    def test_an_unknown_key_deep_inside_is_found_with_its_place(self):
        with pytest.raises(ValidationError, match="unknown key 'dept' in Inner: did you mean 'depth'") as raised:
            Outer.model_validate({"inner": {"dept": 2}})
        assert raised.value.errors()[0]["loc"] == ("inner",)

    def test_a_key_that_is_no_text_is_refused_as_well(self):
        with pytest.raises(ValidationError, match="unknown key 3 in Outer"):
            Outer.model_validate({3: 1})

    def test_values_are_checked_and_frozen(self):
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            Outer.model_validate({"inner": {"depth": 0}})
        with pytest.raises(ValidationError, match="frozen"):
            Outer().rate = 1.0

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan"])
    def test_numbers_that_json_cannot_hold_are_refused(self, value):
        with pytest.raises(ValidationError, match="finite number"):
            Outer.model_validate({"rate": value})

    def test_attribute_docstrings_are_descriptions(self):
        assert Outer.model_fields["rate"].description == "A rate."

    def test_json_round_trip(self):
        outer = Outer(inner=Inner(depth=3), rate=0.1)
        assert Outer.model_validate_json(outer.model_dump_json()) == outer


def test_source_names_are_those_of_the_record():
    assert set(SourceName.__args__) == {source.value for source in Source}


class TestTaskConfig:
    @pytest.mark.parametrize("fields", [{"num_train": 0}, {"num_heldout": -1}, {"seed": -1}])
    def test_counts_and_seeds_have_bounds(self, fields):
        with pytest.raises(ValidationError, match=next(iter(fields))):
            TaskConfig.model_validate(fields)

    @pytest.mark.parametrize("source", ["arithmetic", "reasoning_gym", "my_pkg.tasks:load"])
    def test_a_heldout_file_is_for_files_only(self, source):
        with pytest.raises(
            ValidationError, match=f"heldout_path='x.jsonl' is read by source 'file' only, not by '{source}'"
        ):
            TaskConfig(source=source, heldout_path="x.jsonl")

    @pytest.mark.parametrize("source", ["arithmetic", "my_pkg.tasks:load"])
    def test_a_name_that_nobody_reads_is_refused(self, source):
        with pytest.raises(ValidationError, match=f"tasks.name='gcd' is not read by source '{source}'"):
            TaskConfig(source=source, name="gcd")

    def test_what_each_source_reads_is_accepted(self):
        TaskConfig(source="file", name="a.jsonl", heldout_path="b.jsonl")
        TaskConfig(source="reasoning_gym", name="gcd")
        TaskConfig(source="my_pkg.tasks:load", options={"name": "gcd"})


class TestRewardConfig:
    @pytest.mark.parametrize("clip", [(1.0, 0.0), (0.5, 0.5)])
    def test_a_clip_that_leaves_one_score_is_refused(self, clip):
        with pytest.raises(ValidationError, match="would give every answer the same score"):
            RewardConfig(clip=clip)

    def test_components_by_name(self):
        config = RewardConfig.model_validate({"components": {"right": {"verifier": "final_number"}}, "clip": [0, 1]})
        assert config.components == {"right": RewardComponent(verifier="final_number")}
        assert config.clip == (0.0, 1.0)
        assert RewardConfig.model_validate_json(config.model_dump_json()) == config

    @pytest.mark.parametrize(
        "fields",
        [{"timeout_s": 0}, {"memory_mb": 1}, {"num_retries": -1}, {"max_unscored_fraction": 0}, {"num_workers": 0}],
    )
    def test_limits_have_bounds(self, fields):
        with pytest.raises(ValidationError, match=next(iter(fields))):
            RewardConfig.model_validate(fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"components": {"a": {"verifier": "math", "pool": "cod"}}, "pools": {"code": {}}},
                "pool='cod' is no pool",
            ),
            ({"components": {"a": {"verifier": "math"}}, "pools": {"code": {}}}, "pools.code judges nothing"),
            ({"pools": {"default": {}}}, "reward.pools.default is the reward section itself"),
        ],
    )
    def test_pools_and_components_must_fit(self, fields, message):
        with pytest.raises(ValidationError, match=message):
            RewardConfig.model_validate(fields)

    def test_a_pool_has_its_own_components_and_limits(self):
        components = {"a": {"verifier": "math"}, "b": {"verifier": "code", "pool": "code", "gate": "a"}}
        pools = {"code": {"timeout_s": 30, "processes_per_worker": 4}}
        config = RewardConfig.model_validate({"components": components, "pools": pools, "num_workers": 2})
        assert (config.pool_names, config.num_processes) == (("default", "code"), 10)
        assert config.pool("code").timeout_s == 30
        assert config.pool("code").components["b"].gate is None
        assert (list(config.pool("default").components), config.pool("default").timeout_s) == (["a"], 5.0)
