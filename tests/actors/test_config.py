from fractions import Fraction

import pytest
from pydantic import ValidationError

from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig, WeightsConfig


class TestQuotas:
    @pytest.mark.parametrize(
        ("written", "share"),
        [
            ("1/5", Fraction(1, 5)),
            (0.1, Fraction(1, 10)),
            ("0.25", Fraction(1, 4)),
            (1, Fraction(1)),
            (1e-3, Fraction(1, 1000)),
        ],
    )
    def test_shares_are_what_they_say_exactly(self, written, share):
        assert ReplayConfig(quotas={"expert": written}).quotas == {"expert": share}

    def test_the_rest_is_live(self):
        assert ReplayConfig(quotas={"expert": 0.1, "teacher": "1/5"}).live_share == Fraction(7, 10)
        assert ReplayConfig().live_share == 1

    @pytest.mark.parametrize(
        ("quotas", "message"),
        [
            ({"live": "1/2"}, "quotas are shares in .* of sources other than live"),
            ({"expert": 0}, r"quotas\.expert=0: quotas are shares in \(0, 1\]"),
            ({"expert": -0.5}, "quotas.expert=-1/2"),
            ({"expert": "3/2"}, "quotas.expert=3/2"),
            ({"expert": "2/3", "teacher": "1/2"}, "quotas sum to 7/6, more than the whole batch"),
            ({"experts": "1/2"}, "Input should be 'live', 'own_past', 'expert'"),
            ({"expert": "half"}, "not a valid fraction"),
            ({"expert": float("nan")}, "not a valid fraction"),
            ({"expert": "1/0"}, "not a valid fraction"),
            (["expert"], "valid dictionary"),
        ],
    )
    def test_what_is_no_share_is_refused(self, quotas, message):
        with pytest.raises(ValidationError, match=message):
            ReplayConfig(quotas=quotas)


class TestSampling:
    @pytest.mark.parametrize("fields", [{"top_p": 0.9}, {"top_k": 50}])
    def test_truncated_sampling_is_refused(self, fields):
        with pytest.raises(
            ValidationError, match=r"truncated vocabulary the learner cannot see.*Set top_p=1\.0 and top_k=0"
        ):
            SamplingConfig(**fields)

    def test_greedy_rollouts_are_refused(self):
        with pytest.raises(ValidationError, match="temperature"):
            SamplingConfig(temperature=0)

    def test_the_prompt_needs_room(self):
        with pytest.raises(
            ValidationError, match=r"max_new_tokens=64 leaves no token for the prompt in .*max_model_len=64"
        ):
            RolloutConfig(engine=EngineConfig(max_model_len=64), sampling=SamplingConfig(max_new_tokens=64))
        RolloutConfig(engine=EngineConfig(max_model_len=65), sampling=SamplingConfig(max_new_tokens=64))


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (ReplayConfig, {"max_uses": {"expert": 0}}),
        (ReplayConfig, {"max_age": -1}),
        (ReplayConfig, {"groups_per_update": 0}),
        (ReplayConfig, {"wait_timeout_s": 0}),
        (WeightsConfig, {"publish_every": 0}),
        (WeightsConfig, {"keep_versions": 0}),
        (WeightsConfig, {"probe_tolerance": 0}),
        (WeightsConfig, {"transport": "floppy"}),
        (EngineConfig, {"kind": "vlm"}),
        (EngineConfig, {"gpu_memory_utilization": 1.5}),
        (RolloutConfig, {"group_size": 0}),
    ],
)
def test_settings_have_bounds(section, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        section(**fields)
