import asyncio
import json
from fnmatch import fnmatchcase

import pytest

from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig, WeightsConfig
from actors.rules.actions import Drop
from actors.tiny_model import _build_tokenizer
from learner.config import (
    ClippedSurrogate,
    CriticConfig,
    EntropyBonus,
    ImportanceWeightedKL,
    KLToReference,
    LearnerConfig,
    NegativeLogLikelihood,
    ProtectedSurrogate,
    Term,
)
from orchestrator.config import CheckpointConfig, EvaluationConfig, RunConfig, TrackingConfig
from orchestrator.local_run import run_local
from rewards.config import RewardComponent, RewardConfig, TaskConfig
from rewards.telemetry import METRICS, Metric, UnknownMetricError, describe, unknown_metrics
from tests.learner.tiny_policy import tiny_model

MAY_BE_SILENT = {
    "groups_searched",  # only with `rollout.search`
    "resumed_step",  # only after a crash
    "contexts_too_long",  # only where help leaves no room for an answer
    "dropped_reports",  # only from a sink that is too slow
    "dropped/*",  # only when a group is refused or evicted
    "groups_refused_*",
    "term/critic/explained_variance",  # only where targets differ
    "replay_shards",  # only where there are several
    "term/critic/feature_penalty",  # only where it has a weight
    "term/*/target_kl_mean",  # only with a tilted reference as the target
    "watch/agreement",  # only with a held-out component
    "calls/*",  # only when a call is repeated or late
    *(f"pool/*/{name}" for name in ("requests", "unreadable", "service_faults", "timeouts", "tokens", "batches")),
    # only where a model judges
}


def drop_every_third(group, leased, row):
    """A rule of a recipe."""
    return Drop("third") if leased.index % 3 == 2 else None


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Names by role from metrics.jsonl of a real run in this process: every loss, an own rule, evaluations."""
    folder = tmp_path_factory.mktemp("telemetry")
    tiny_model().save_pretrained(folder / "model")
    _build_tokenizer().save_pretrained(folder / "model")
    config = RunConfig(
        model=str(folder / "model"),
        tasks=TaskConfig(source="arithmetic", num_train=32, num_heldout=4, options={"expert_max_operand": 59}),
        reward=RewardConfig(components={"correct": RewardComponent(verifier="final_number")}),
        terms=(
            Term(loss=ClippedSurrogate(), advantage="gae"),
            Term(loss=ClippedSurrogate()),
            Term(loss=ProtectedSurrogate()),
            Term(loss=ImportanceWeightedKL(), weight=0.1),
            Term(loss=KLToReference(), weight=0.1),
            Term(loss=EntropyBonus(), weight=0.01),
            Term(loss=NegativeLogLikelihood(), source="expert"),
            Term(loss=NegativeLogLikelihood(token_weight="phi"), source="expert"),
        ),
        rollout=RolloutConfig(
            group_size=2,
            concurrent_groups=2,
            engine=EngineConfig(kind="transformers", max_model_len=128),
            sampling=SamplingConfig(max_new_tokens=4),
            rules=("tests.rewards.test_telemetry:drop_every_third",),
        ),
        replay=ReplayConfig(groups_per_update=4, quotas={"expert": "1/2"}),
        weights=WeightsConfig(directory=str(folder)),  # tests of other processes share the default one
        evaluation=EvaluationConfig(split_by="coverage"),
        checkpoint=CheckpointConfig(every=1),
        tracking=TrackingConfig(sinks=()),
        learner=LearnerConfig(critic=CriticConfig()),
        num_steps=3,
    )

    summary = asyncio.run(run_local(config, folder / "run"))
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {(row["role"], name) for row in rows for name in row if name not in ("time", "role")}
    return names, summary


def test_every_metric_of_a_real_run_has_a_row(reported):
    names, summary = reported
    assert summary["unknown_metrics"] == {}
    assert unknown_metrics(name for _, name in names) == []
    roles = {role for role, _ in names}
    assert roles == {"learner", "rollout-0", "reward-0", "replay", "tasks", "evaluation"}


def test_every_row_is_reported_by_somebody(reported):
    names, _ = reported
    silent = [row for row in METRICS if not any(fnmatchcase(name, row) for _, name in names)]
    unexpected = sorted(set(silent) - MAY_BE_SILENT)
    assert not unexpected, f"nobody reports {', '.join(unexpected)}"


def test_units_and_reductions_fit_the_names(reported):
    names, summary = reported
    for _, name in names:
        metric = describe(name)
        assert metric.meaning.endswith(".")
        assert (metric.unit == "s") == name.endswith("_s"), name
        assert not (metric.is_count and name.endswith(("_mean", "_fraction"))), name
    assert summary["counts"]["groups_dropped_third"] > 0


def test_a_family_is_matched_by_its_pattern_and_a_literal_name_goes_first():
    assert describe("term/live/clipped_surrogate#2/clip_fraction") is METRICS["term/*/clip_fraction"]
    assert describe("policy_age_max") is METRICS["policy_age_max"]
    assert describe("policy_age/7") is METRICS["policy_age/*"]
    assert Metric("s", "sum", "").is_count
    assert Metric("s", "total", "").is_count
    assert not Metric("s", "max", "").is_count


def test_an_unknown_name_is_refused_with_the_nearest_row():
    with pytest.raises(UnknownMetricError, match=r"'trained_token' has no row.*nearest is 'trained_tokens'"):
        describe("trained_token")
    with pytest.raises(KeyError):
        describe("term/live/clipped_surrogate/not_there")
    assert unknown_metrics(["loss", "lost", "status/scored"]) == ["lost"]
