import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config import TrackingConfig
from orchestrator.evaluation import Accuracy, Evaluation
from orchestrator.recorder import SAVE_PERIOD_S, WORKER_PERIOD_S, RunRecorder
from orchestrator.run_history import RunHistory
from orchestrator.run_log import read, surviving
from orchestrator.run_totals import RunTotals
from orchestrator.tracking import Tracker
from rewards.telemetry import UnknownMetricError
from tests.orchestrator.run_driver import NUM_STEPS, STEP_S, RunDriver, drive_run


def make_recorder(run_dir, **options) -> RunRecorder:
    return RunRecorder(run_dir, Tracker(TrackingConfig(sinks=()), run_dir), num_steps=10, **options)


async def crash(driver: RunDriver) -> None:
    """kill -9 a second after the last step: nothing is closed, only the sinks' threads write what they were given."""
    driver.clock.now += SAVE_PERIOD_S
    await driver.recorder.report("replay", {})
    driver.recorder._tracker.close()


# -- the table of metrics -----------------------------------------------------------------------------------------


async def test_strict_refuses_a_metric_without_a_row(tmp_path):
    with pytest.raises(UnknownMetricError, match="made_up"):
        await make_recorder(tmp_path, strict=True).report("learner", {"made_up": 1.0}, step=1)


async def test_in_production_a_metric_without_a_row_is_counted_and_warned_of_once(tmp_path):
    recorder = make_recorder(tmp_path)
    for step in (1, 2, 3):
        await recorder.report("learner", {"made_up": 1.0, "loss": 0.5}, step=step)
    summary = recorder.write_summary()
    recorder.close()
    assert summary["unknown_metrics"] == {"made_up": 3}
    warnings = [e for e in read(tmp_path / "events.jsonl") if e["kind"] == "warning"]
    assert [w["text"] for w in warnings] == ["metric 'made_up' has no row in rewards.telemetry.METRICS"]
    assert recorder.status()["warnings"] == [warnings[0]["text"]]
    assert [row["made_up"] for row in read(tmp_path / "metrics.jsonl")] == [1.0, 1.0, 1.0]


async def test_a_sink_that_fails_becomes_one_event_and_the_run_goes_on(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    recorder = RunRecorder(tmp_path, Tracker(TrackingConfig(sinks=("tensorboard",)), tmp_path), num_steps=10)
    await recorder.report("learner", {"loss": 0.5}, step=1)
    recorder.close()
    warnings = [e["text"] for e in read(tmp_path / "events.jsonl") if e["kind"] == "warning"]
    assert len(warnings) == 1
    assert "'tensorboard' is off" in warnings[0]


# -- amounts ------------------------------------------------------------------------------------------------------


async def test_a_whole_run_adds_up(tmp_path, monkeypatch):
    summary = await drive_run(tmp_path, monkeypatch)
    rows = [r for r in read(tmp_path / "metrics.jsonl") if r["role"] == "learner"]
    assert summary["wall_s"] == pytest.approx(NUM_STEPS * STEP_S)
    assert summary["phase"] == "done"
    assert summary["starts"] == 1
    trained = sum(r.get("trained_tokens", 0) for r in rows)
    assert summary["counts"]["trained_tokens"] == trained
    assert summary["tokens_per_s"]["end_to_end_trained"] == pytest.approx(trained / summary["wall_s"])
    assert summary["age_histogram"] == {"0": 6 * NUM_STEPS, "1": 4 * NUM_STEPS}
    assert summary["age_violations"] == 0
    assert summary["counts"]["skipped_steps"] == 1
    assert summary["drops"] == {
        "rule: constant_score": 2 * NUM_STEPS,
        "replay: live, too_old, <=64 tokens": NUM_STEPS // 4,
        "replay: live, wrong_length, <=64 tokens": 1,
    }
    assert summary["verdicts"] == {"scored": 70 * NUM_STEPS, "no_answer": 9 * NUM_STEPS, "infra_error": 1}
    assert summary["before"]["covered"]["n"] == 150
    assert summary["after"] == {name: vars_of(a) for name, a in last_evaluation(tmp_path).items()}
    assert summary["activations"]["load_s"] == {"count": NUM_STEPS + 1, "mean": pytest.approx(0.15), "max": 0.15}
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))


def last_evaluation(run_dir):
    return read(run_dir / "evaluations.jsonl")[-1]["splits"]


def vars_of(accuracy):
    return {name: accuracy[name] for name in ("n", "correct", "accuracy", "low", "high", "unscored")}


async def test_what_workers_did_before_training_is_in_no_rate_and_no_time(tmp_path, monkeypatch):
    summary = await drive_run(tmp_path, monkeypatch)  # rollout-0 sampled 1000 tokens in 5 s for the first evaluation
    assert summary["counts"]["generated_tokens"] == 1000 + 2 * 700 * NUM_STEPS
    assert summary["tokens_per_s"]["rollout"] == pytest.approx(700 / 2.1)
    rollout, learner = summary["time_s"]["rollout"], summary["time_s"]["learner"]
    assert rollout["engine busy"] == pytest.approx(2 * 2.1 * NUM_STEPS)
    assert rollout["engine busy"] + rollout["engine idle"] == pytest.approx(2 * summary["wall_s"])
    assert sum(learner.values()) == pytest.approx(summary["wall_s"])
    assert learner["publish"] == pytest.approx(0.1 * NUM_STEPS)  # not the 0.7 s before the first ticket


async def test_a_replaced_worker_goes_on_counting_where_the_lost_one_stopped(tmp_path):
    recorder = make_recorder(tmp_path)
    recorder.training_began()
    await recorder.report("rollout-0", {"generated_tokens": 100.0})
    recorder.worker_state("rollout-0", "lost")
    await recorder.report("rollout-0", {"generated_tokens": 130.0})  # more than the lost one: no sign of a restart
    assert recorder.write_summary()["counts"]["generated_tokens"] == 230
    recorder.close()


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), min_size=1, max_size=5), st.booleans())
def test_running_counts_are_the_sum_of_their_growth_over_restarts(lives, announced):
    totals, expected, before = RunTotals(), 0, 0
    for life in lives:
        count = 0
        if announced:
            totals.replaced("w")
            before = 0
        for growth in life:
            count += growth
            totals.add("w", {"generated_tokens": float(count)}, is_training=True)
            # without an announcement a restart is seen only when the count went down
            expected += count - before if count >= before else count
            before = count
    assert totals.workers("generated_tokens") == expected
    if announced:
        assert expected == sum(map(sum, lives))
    again = RunTotals.from_json(json.loads(json.dumps(totals.to_json())))
    again.add("w", {"generated_tokens": 5.0}, is_training=False)
    assert again.overall["w"]["generated_tokens"] == expected + 5
    assert again.workers("generated_tokens") == expected


# -- what is written when -----------------------------------------------------------------------------------------


async def test_workers_are_written_seldom_but_their_last_numbers_always(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    recorder = driver.recorder
    for second in range(12):
        driver.clock.now += 1.0
        await recorder.report("rollout-0", {"generated_tokens": float(second)})
    assert recorder.status()["workers"]["rollout-0"] == {"generated_tokens": 11.0}
    recorder.close()
    rows = [r for r in read(tmp_path / "metrics.jsonl") if r["role"] == "rollout-0"]
    assert [r["generated_tokens"] for r in rows] == [0.0, 5.0, 10.0, 11.0]
    assert rows[1]["time"] - rows[0]["time"] == WORKER_PERIOD_S


async def test_an_interrupted_run_leaves_a_summary_that_says_so(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    await driver.begin()
    await driver.train(1, 10)
    await crash(driver)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["phase"] == "training"
    assert 0 < summary["step"] <= 10


async def test_the_status_is_json_and_knows_the_pace(tmp_path, monkeypatch):
    driver = RunDriver(tmp_path, monkeypatch)
    await driver.begin()
    assert driver.recorder.status()["eta_s"] is None
    await driver.train(1, 10)
    status = json.loads(json.dumps(driver.recorder.status()))
    assert status["eta_s"] == pytest.approx((NUM_STEPS - 10) * STEP_S)
    assert status["step"] == 10
    assert len(status["rewards"]) == 10
    assert status["waits"] == {"rollout-1": "9 live groups accepted + 3 running reach the bound of 12"}
    assert status["states"] == {"rollout-0": "ready", "rollout-1": "ready"}
    driver.recorder.close()


async def test_before_is_only_what_was_measured_before_the_first_step(tmp_path):
    recorder = make_recorder(tmp_path)
    splits = {"all": Accuracy(4, 1, 0.25, 0.05, 0.7)}
    recorder.evaluated(Evaluation(3, 3, 1.0, splits))
    summary = recorder.write_summary()
    assert summary["before"] == {}
    assert summary["after"]["all"]["accuracy"] == 0.25
    recorder.close()


async def test_the_best_model_is_the_one_that_was_kept(tmp_path):
    recorder = make_recorder(tmp_path)
    assert recorder.write_summary()["best"] == {}
    await recorder.event("best_kept", {"step": 4, "splits": {}})
    assert recorder.write_summary()["best"]["step"] == 4
    recorder.close()


async def test_accuracy_without_a_scored_sample_survives_the_files(tmp_path):
    recorder = make_recorder(tmp_path)
    recorder.evaluated(Evaluation(0, 0, 1.0, {"all": Accuracy(0, 0, float("nan"), 0.0, 1.0, unscored=4)}))
    await recorder.report("learner", {"step": 1.0}, step=1)
    recorder.close()
    restored = make_recorder(tmp_path)
    (evaluation,) = restored.evaluations
    assert evaluation.splits["all"].unscored == 4
    assert evaluation.splits["all"].accuracy != evaluation.splits["all"].accuracy  # NaN
    restored.close()


# -- resumed runs -------------------------------------------------------------------------------------------------


async def test_a_run_resumed_after_a_crash_continues_its_files(tmp_path, monkeypatch):
    first = RunDriver(tmp_path, monkeypatch)
    await first.begin()
    await first.train(1, 13)
    await crash(first)
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"time": 3, "step": 12, "spl')

    second = RunDriver(tmp_path, monkeypatch, seed=1)
    assert second.recorder.step == 13
    assert [e.step for e in second.recorder.evaluations] == [0, 8]
    await second.begin(resumed_step=6)  # the checkpoint: 7 steps and the evaluation at 8 are void
    assert second.recorder.step == 6
    assert [e.step for e in second.recorder.evaluations] == [0]
    await second.train(7, NUM_STEPS)
    summary = await second.end()

    assert summary["starts"] == 2
    assert summary["redone_steps"] == 7
    assert summary["wall_s"] == pytest.approx((13 + NUM_STEPS - 6) * STEP_S + SAVE_PERIOD_S)
    assert summary["before"] == read(tmp_path / "evaluations.jsonl")[0]["splits"]
    assert [e["step"] for e in surviving(read(tmp_path / "evaluations.jsonl"))] == [0, 8, 16, 24]
    assert summary["counts"]["generated_tokens"] == 1000 + 2 * 700 * 13 + 1000 + 2 * 700 * 18
    assert sum(summary["age_histogram"].values()) == 10 * (13 + 18)
    resumed = [e for e in read(tmp_path / "events.jsonl") if e["kind"] in ("started", "resumed")]
    assert [(e["kind"], e["step"]) for e in resumed] == [("started", 0), ("started", 13), ("resumed", 6)]

    history = RunHistory.load(tmp_path)
    steps, rewards = history.learner("reward_mean")
    assert steps == [float(s) for s in range(1, NUM_STEPS + 1)]
    lines = [r for r in read(tmp_path / "metrics.jsonl") if "reward_mean" in r]
    assert len(lines) == 13 + 18
    assert rewards == [r["reward_mean"] for r in (*lines[:6], *lines[13:])]
    assert [p.step for p in history.accuracy("all")] == [0, 8, 16, 24]


async def test_a_run_resumed_where_it_stopped_voids_nothing(tmp_path, monkeypatch):
    first = RunDriver(tmp_path, monkeypatch)
    await first.begin()
    await first.train(1, 5)
    first.recorder.close()
    second = RunDriver(tmp_path, monkeypatch)
    await second.begin(resumed_step=5)
    await second.train(6, NUM_STEPS)
    summary = await second.end()
    assert summary["redone_steps"] == 0
    assert all("resumed_step" not in row for row in read(tmp_path / "metrics.jsonl"))
    assert RunHistory.load(tmp_path).learner("loss")[0] == [float(s) for s in range(1, NUM_STEPS + 1)]
