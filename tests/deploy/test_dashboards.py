"""Dashboards and alerts ask only for what a run reports: every expression is parsed, every series has its row."""

import json
import re
from pathlib import Path

import pytest
import yaml

from orchestrator.tracking import series_name
from rewards.telemetry import METRICS
from rewards.verdict import Status
from tests.deploy.promql import RANGE_OF_COUNTER, Parser, PromqlError

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
ROWS = {series_name(row): [each for each in METRICS if series_name(each) == series_name(row)] for row in METRICS}
LABELS = {"run", "role", "name"}


def grafana_targets(path: Path) -> list[tuple[str, str]]:
    """Expression and legend of each line, with Grafana's variables filled in."""
    board = json.loads(path.read_text())
    values = {"$run": ".*", "$__rate_interval": "1m"}
    values |= {f"${v['name']}": v["query"] for v in board["templating"]["list"] if v["type"] == "textbox"}
    targets = []
    for panel in board["panels"]:
        for each in panel["targets"]:
            expression = each["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']}: a variable nobody fills in: {expression}"
            targets.append((expression, each["legendFormat"]))
    return targets


def alerts() -> list[dict]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return group["rules"]


EXPRESSIONS = [
    *(
        (f"{path.stem}: {expression}", expression, legend)
        for path in DASHBOARDS
        for expression, legend in grafana_targets(path)
    ),
    *((f"alert {rule['alert']}", rule["expr"], "{{run}}") for rule in alerts()),
]


def test_every_expression_asks_for_series_that_a_run_reports():
    """Which rows a run really reports is tests/rewards/test_telemetry.py's to say."""
    for where, expression, legend in EXPRESSIONS:
        parsed = Parser(expression)
        for use in parsed.uses:
            assert use.series in ROWS, f"{where}: nobody reports {use.series}"
            metric = METRICS[ROWS[use.series][0]]
            is_rate = use.function in RANGE_OF_COUNTER
            assert is_rate == metric.is_count, f"{where}: {use.series} is {'a' if metric.is_count else 'no'} counter"
            assert use.labels.keys() <= LABELS, where
            if any(label == "name" for label in (*use.labels, *parsed.grouped)):
                assert any("*" in row for use in parsed.uses for row in ROWS[use.series]), f"{where}: no family here"
        assert parsed.grouped <= LABELS, where
        shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend))
        assert shown <= (parsed.grouped or LABELS), f"{where}: the legend names labels that are summed away"


def test_members_of_families_that_expressions_pick_exist():
    known = {
        "ray_braid_groups": ("ready/live", "ready/expert"),
        "ray_braid_dropped": ("live/too_old/<=64 tokens",),
        "ray_braid_status_total": tuple(status.value for status in Status),
    }
    picked = [use for _, expression, _ in EXPRESSIONS for use in Parser(expression).uses if "name" in use.labels]
    assert picked
    for use in picked:
        how, pattern = use.labels["name"]
        assert how == "=~"
        assert any(re.fullmatch(pattern, name) for name in known[use.series]), f"{use.series} never has {pattern}"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("rate(ray_braid_loss)", "a range belongs into a function"),
        ("ray_braid_loss[5m]", "a range belongs into a function"),
        ("sum by (run) ray_braid_loss", "expected"),
        ("sum(ray_braid_loss", "expected"),
        ("ray_braid_loss ray_braid_step", "left over"),
        ("ray_braid_loss{run=$run}", "cannot read"),
        ("median(ray_braid_loss)", "left over"),
    ],
)
def test_the_parser_refuses_what_prometheus_would(wrong, told):
    with pytest.raises(PromqlError, match=told):
        Parser(wrong)


def test_the_boards_cover_throughput_freshness_rewards_waits_and_health():
    boards = {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}
    assert set(boards) == {"throughput", "freshness", "rewards", "waits", "health"}
    assert all(board["uid"] == f"braid-{name}" for name, board in boards.items())
    asked = {use.series for _, expression, _ in EXPRESSIONS for use in Parser(expression).uses}
    for wanted in (
        *("policy_version", "policy_age_mean", "term/*/mismatch_mean", "term/*/effective_sample_fraction", "status/*"),
        *("term/*/num_tokens", "groups_dropped_*", "generated_tokens", "model_flop", "lease_wait_s", "ticket_wait_s"),
        *("weights_wait_s", "pool/*/queued", "groups/*", "dropped/*", "waiting"),
    ):
        assert series_name(wanted) in asked, wanted


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_are_named_explained_and_side_by_side(path):
    board = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"], panel["id"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    (runs,) = (each["query"] for each in board["templating"]["list"] if each["name"] == "run")
    match = re.fullmatch(r"label_values\((\w+), run\)", runs)
    assert match is not None
    assert match[1] in ROWS


def test_an_alert_says_what_it_is_about():
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        summary = rule["annotations"]["summary"]
        assert summary.startswith("{{ $labels.run }}: ")
        parsed = Parser(rule["expr"])
        assert set(re.findall(r"\$labels\.(\w+)", summary)) <= (parsed.grouped or LABELS), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "runbook"}


def test_every_alert_has_its_section_in_the_run_book_and_every_section_its_alert():
    book = (ROOT / "docs" / "operations.md").read_text()
    sections = re.findall(r"^### (\w+)$", book, re.MULTILINE)
    assert sections == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_prometheus_reads_the_alerts_and_the_addresses_ray_writes():
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert [(DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"]] == [True]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (files,) = jobs["ray"]["file_sd_configs"]
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    (keep, _) = jobs["ray-kubernetes"]["relabel_configs"]
    assert keep["source_labels"] == ["__meta_kubernetes_pod_label_ray_io_cluster"]
