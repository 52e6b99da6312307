import json
import math
import re
import socket
import struct
import threading
import time
import urllib.request
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from orchestrator import tracking
from orchestrator.config import TrackingConfig
from orchestrator.run_log import read
from orchestrator.tracking import RaySink, SinkWriter, Tracker, WandbSink, prometheus_name, series_name
from rewards.telemetry import METRICS, Report


def report(step=0, role="learner", **values) -> Report:
    return Report(time=100.0 + step, step=step, role=role, values=values)


class ListSink:
    """Keeps what it is given; waits for `gate` and fails where told."""

    def __init__(self, gate: threading.Event | None = None, fail_at: int | None = None):
        self.reports: list[Report] = []
        self.closed = False
        self._gate, self._fail_at = gate, fail_at

    def write(self, report):
        if self._gate is not None:
            self._gate.wait(10)
        if self._fail_at is not None and report.step == self._fail_at:
            raise OSError("disk full")
        self.reports.append(report)

    def close(self):
        self.closed = True


def tracker(run_dir, *sinks) -> Tracker:
    return Tracker(TrackingConfig(sinks=sinks), run_dir)


def test_every_report_becomes_a_line_with_its_own_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.time, "time", iter([11.0, 12.0]).__next__)
    tracked = tracker(tmp_path)
    tracked.write("learner", {"loss": 0.5, "grad_norm": math.nan}, step=3)
    tracked.write("rollout-0", {"busy_s": 2.0}, step=3)
    tracked.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text  # other JSON readers refuse it
    assert [json.loads(line) for line in text.splitlines()] == [
        {"time": 11.0, "step": 3, "role": "learner", "loss": 0.5, "grad_norm": None},
        {"time": 12.0, "step": 3, "role": "rollout-0", "busy_s": 2.0},
    ]
    assert tracked.warnings == []


def test_a_line_cut_off_by_a_crash_is_removed_and_the_file_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "role": "learner"}\n{"step": 2, "ro')
    tracked = tracker(tmp_path)
    tracked.write("learner", {"loss": 1.0}, step=2)
    tracked.close()
    assert [(line["step"], line.get("loss")) for line in read(tmp_path / "metrics.jsonl")] == [(1, None), (2, 1.0)]


def test_a_failing_sink_is_switched_off_once_and_the_others_go_on(tmp_path):
    warnings = []
    failing, healthy = ListSink(fail_at=2), ListSink()
    writers = [
        SinkWriter("bad", lambda: failing, warnings.append),
        SinkWriter("good", lambda: healthy, warnings.append),
    ]
    for step in range(5):
        for writer in writers:
            writer.put(report(step, loss=1.0))
    for writer in writers:
        writer.finish()
        writer.join(10)
    assert [r.step for r in failing.reports] == [0, 1]
    assert failing.closed
    assert [r.step for r in healthy.reports] == [0, 1, 2, 3, 4]
    assert warnings == ["tracking sink 'bad' is off: OSError: disk full"]


def test_a_sink_that_cannot_be_opened_is_switched_off(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    tracked = tracker(tmp_path, "tensorboard")
    tracked.write("learner", {"loss": 1.0}, step=1)
    tracked.close()
    assert len(tracked.warnings) == 1
    assert "'tensorboard' is off" in tracked.warnings[0]
    assert len(read(tmp_path / "metrics.jsonl")) == 1


def test_a_blocked_sink_delays_nobody_and_its_losses_are_counted():
    gate, warnings = threading.Event(), []
    slow = ListSink(gate)
    writer = SinkWriter("slow", lambda: slow, warnings.append, max_queued=4)
    began = time.monotonic()
    for step in range(100):
        writer.put(report(step, loss=1.0))
    assert time.monotonic() - began < 1.0
    gate.set()
    writer.finish()
    writer.join(10)
    written = [r for r in slow.reports if r.role == "learner"]
    dropped = sum(r.values["dropped_reports"] for r in slow.reports if r.role == "run")
    assert len(written) + dropped == 100
    assert 4 <= len(written) <= 5  # the queue, and the one that was being written
    assert [r.step for r in written] == list(range(len(written)))
    assert warnings == [f"tracking sink 'slow' was too slow: {int(dropped)} reports were dropped"]


def test_a_sink_that_never_returns_is_left_behind_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_TIMEOUT_S", 0.2)
    gate = threading.Event()
    monkeypatch.setattr(tracking, "TensorBoardSink", lambda folder: ListSink(gate))
    tracked = tracker(tmp_path, "tensorboard")
    tracked.write("learner", {"loss": 1.0}, step=1)
    tracked.close()
    gate.set()
    assert len(read(tmp_path / "metrics.jsonl")) == 1
    assert [w.partition(":")[0] for w in tracked.warnings] == ["tracking sink 'tensorboard' is off"]


def tensorboard_scalars(folder) -> dict[str, list[tuple[int, float, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written_and_a_resumed_run_hides_what_was_lost(tmp_path):
    first = tracker(tmp_path, "tensorboard")
    for step in (1, 2, 3, 4):
        first.write("learner", {"loss": float(step)}, step=step)
    first.close()
    second = tracker(tmp_path, "tensorboard")
    second.write("run", {"resumed_step": 2.0}, step=2)
    second.write("learner", {"loss": 30.0}, step=3)
    second.close()
    assert first.warnings == second.warnings == []
    scalars = tensorboard_scalars(tmp_path / "tensorboard")
    assert [(step, value) for step, _, value in scalars["learner/loss"]] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def wandb_records(path) -> list:
    """Records of an offline wandb file: after a header, blocks of 32 KiB with framed protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def test_wandb_works_offline_and_a_resumed_run_keeps_its_identity(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "demo"}')
    config = TrackingConfig(sinks=("wandb",), wandb_project="braid-test")
    for first_step in (1, 3):
        sink = WandbSink(config, tmp_path)
        for step in (first_step, first_step + 1):
            sink.write(report(step, loss=step / 2))
        sink.write(report(first_step, role="evaluation", accuracy=0.25))  # older than the newest step
        sink.close()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    ids, losses, accuracies = set(), [], []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert record.run.project == "braid-test"
            named = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if "learner/loss" in named:
                losses.append((int(named["step"]), float(named["learner/loss"])))
            if "evaluation/accuracy" in named:
                accuracies.append(int(named["step"]))
    assert ids == {(tmp_path / "wandb_id.txt").read_text()}
    assert losses == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert accuracies == [1, 3]


class FakeMetric:
    """Records calls as Ray's own classes would take them."""

    made: ClassVar[list[Any]] = []

    def __init__(self, name, description, tag_keys):
        self.name, self.calls, self.tag_keys, self.members = name, [], tag_keys, []
        FakeMetric.made.append(self)

    def set(self, value, tags):
        self.calls.append(("set", value, tags["role"]))
        self.members.append(tags["name"])

    def inc(self, value, tags):
        assert value > 0  # Ray refuses others
        self.calls.append(("inc", value, tags["role"]))
        self.members.append(tags["name"])


def test_ray_gets_gauges_for_states_and_counters_for_what_grows(monkeypatch):
    monkeypatch.setattr(FakeMetric, "made", [])
    sink = RaySink("run-1", SimpleNamespace(Counter=FakeMetric, Gauge=FakeMetric))
    sink.write(report(1, loss=0.5, grad_norm=math.nan, trained_tokens=10.0, skipped_steps=0.0, not_in_the_table=1.0))
    sink.write(report(2, loss=0.4, trained_tokens=12.0))
    sink.write(report(2, role="rollout-0", generated_tokens=100.0))
    sink.write(report(2, role="rollout-1", generated_tokens=7.0))
    sink.write(report(3, role="rollout-0", generated_tokens=130.0))
    sink.write(report(4, role="rollout-0", generated_tokens=20.0))  # replaced: began again at 0
    calls = {metric.name: metric.calls for metric in FakeMetric.made}
    assert calls == {
        "braid_loss": [("set", 0.5, "learner"), ("set", 0.4, "learner")],
        "braid_trained_tokens": [("inc", 10.0, "learner"), ("inc", 12.0, "learner")],
        "braid_generated_tokens": [
            ("inc", 100.0, "rollout-0"),
            ("inc", 7.0, "rollout-1"),
            ("inc", 30.0, "rollout-0"),
            ("inc", 20.0, "rollout-0"),
        ],
    }
    assert {metric.tag_keys for metric in FakeMetric.made} == {("role", "run", "name")}


def test_ray_gets_one_series_per_family_with_its_members_as_tags(monkeypatch):
    monkeypatch.setattr(FakeMetric, "made", [])
    sink = RaySink("run-1", SimpleNamespace(Counter=FakeMetric, Gauge=FakeMetric))
    values = {
        "term/live/clipped_surrogate#2/loss": 0.5,
        "dropped/live/too_old/<=64 tokens": 3.0,
        "accuracy": 0.5,
        "accuracy/covered": 0.25,
        "status/timeout": 4.0,
        "groups_dropped_third": 1.0,
    }
    sink.write(Report(time=1.0, step=1, role="learner", values=values))
    assert {metric.name: metric.members for metric in FakeMetric.made} == {
        "braid_term_loss": ["live/clipped_surrogate#2"],
        "braid_dropped": ["live/too_old/<=64 tokens"],
        "braid_accuracy": ["", "covered"],
        "braid_status": ["timeout"],
        "braid_groups_dropped_by": ["third"],
    }


def test_gauges_of_steps_are_renewed_between_steps_and_those_of_silent_workers_are_not(monkeypatch):
    monkeypatch.setattr(FakeMetric, "made", [])
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: clock.now))
    sink = RaySink("run-1", SimpleNamespace(Counter=FakeMetric, Gauge=FakeMetric))
    sink.write(report(1, loss=0.5, trained_tokens=10.0))
    sink.write(report(1, role="rollout-0", policy_version=3.0))
    for _ in range(4):
        clock.now += tracking.RENEW_S / 2
        sink.write(report(1, role="replay", held_bytes=1.0))
    calls = {metric.name: len(metric.calls) for metric in FakeMetric.made}
    assert calls == {"braid_loss": 3, "braid_trained_tokens": 1, "braid_policy_version": 1, "braid_held_bytes": 4}


def test_rows_that_share_a_series_are_of_one_kind():
    by_series: dict[str, set[tuple[str, str]]] = {}
    for row, metric in METRICS.items():
        assert re.fullmatch(r"ray_braid_[a-zA-Z0-9_]+", series_name(row))
        by_series.setdefault(prometheus_name(row), set()).add((metric.unit, metric.reduction))
    assert all(len(kinds) == 1 for kinds in by_series.values())


def test_without_a_cluster_the_ray_sink_is_silent(tmp_path):
    tracked = tracker(tmp_path, "ray")
    tracked.write("learner", {"loss": 1.0}, step=1)
    tracked.close()
    assert tracked.warnings == []


@pytest.mark.cluster
@pytest.mark.slow
def test_prometheus_scrapes_the_numbers_of_a_run_from_ray(tmp_path):
    import ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, log_to_driver=False)
    try:
        run_dir = tmp_path / "run-1"
        run_dir.mkdir()
        tracked = tracker(run_dir, "ray")
        tracked.write("learner", {"loss": 0.125, "trained_tokens": 40.0, "term/live/x/loss": 2.0}, step=1)
        tracked.write("learner", {"trained_tokens": 2.0}, step=2)
        deadline = time.monotonic() + 90
        found: dict[str, float] = {}
        wanted = {series_name(row) for row in ("loss", "trained_tokens", "term/*/loss")}
        while time.monotonic() < deadline and found.keys() != wanted:
            time.sleep(1)
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
            for line in text.splitlines():
                name = line.partition("{")[0]
                if name in wanted and 'role="learner"' in line:
                    assert 'run="run-1"' in line
                    assert ('name="live/x"' in line) == (name == series_name("term/*/loss"))
                    found[name] = float(line.rpartition(" ")[2])
        tracked.close()
        assert tracked.warnings == []
        assert sorted(found.values()) == [0.125, 2.0, 42.0]
    finally:
        ray.shutdown()
