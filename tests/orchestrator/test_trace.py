"""`braid trace` over the folder of a real run in this process."""

import asyncio
import json

import pytest

from actors.config import EngineConfig, ReplayConfig, RolloutConfig, SamplingConfig
from actors.replay.log import read_journal
from learner.config import ClippedSurrogate, Term
from orchestrator.cli import main
from orchestrator.config import EvaluationConfig, RunConfig, TrackingConfig
from orchestrator.local_run import run_local
from orchestrator.trace import UnknownSampleError, trace_run
from rewards.config import RewardComponent, RewardConfig, TaskConfig
from rewards.task import Task, TaskSet

HERE = "tests.orchestrator.test_trace"


def by_length(answer: str, task: Task) -> float:
    return float(len(answer) % 2)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_model_path):
    root = tmp_path_factory.mktemp("trace") / "run"
    config = RunConfig(
        model=str(tiny_model_path),
        tasks=TaskConfig(num_train=16, num_heldout=0),
        reward=RewardConfig(components={"odd": RewardComponent(verifier=f"{HERE}:by_length")}),
        terms=(Term(loss=ClippedSurrogate()),),
        rollout=RolloutConfig(
            group_size=4,
            engine=EngineConfig(kind="transformers", max_model_len=64),
            sampling=SamplingConfig(max_new_tokens=6),
            rules=("drop_constant", {"rule": "retire_solved", "rate": 0.5}),
        ),
        replay=ReplayConfig(groups_per_update=2),
        evaluation=EvaluationConfig(at_start=False, at_end=False),
        tracking=TrackingConfig(sinks=()),
        num_steps=2,
    )
    tasks = TaskSet(train=tuple(Task(task_id=f"task-{i}", prompt=f"Calculate {i} + 1.") for i in range(16)))
    asyncio.run(run_local(config, root, tasks=tasks))
    return root


def events(run_dir, box, kind):
    journal = run_dir / "state" / box / "journal.jsonl"
    return [event for event, _ in read_journal(journal) if event["kind"] == kind]


def test_a_trained_group_is_told_from_its_ticket_to_its_step(run_dir):
    group_id = events(run_dir, "replay", "leased")[0]["groups"][0]
    text = "\n".join(trace_run(run_dir, group_id))
    for word in (
        "ticket ",
        "task ",
        "stored ",
        "leased   for step 0",
        "commit   step 0, trained on",
        "outcome  stored",
    ):
        assert word in text, text


def test_ratio_and_clipped_share_are_of_the_one_sample(run_dir):
    """Recomputed from what was committed: the first step's ratios are 1 up to the engine's rounding."""
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    (first, second) = [event for line in lines if (event := json.loads(line))["kind"] == "trained"]
    assert list(first["groups"]) == events(run_dir, "replay", "leased")[0]["groups"]
    for group_id, records in second["groups"].items():
        assert len(records) == 4
        told = trace_run(run_dir, f"{group_id}/2")
        tokens, ratio, clipped = records[2]
        assert [line for line in told if line.startswith("step 1")] == [
            f"step 1   {group_id}/2: {tokens} tokens trained, ratio {ratio:.4g}, {clipped:.1%} clipped"
        ]
    assert all(
        abs(ratio - 1) < 0.01 and clipped == 0 for members in first["groups"].values() for _, ratio, clipped in members
    )


def test_a_member_is_told_with_versions_context_and_verdict_while_its_block_lies_there(run_dir):
    stored = [event["group"] for event in events(run_dir, "replay", "put")]
    told = {group_id: trace_run(run_dir, f"{group_id}/1") for group_id in stored}
    full = [lines for lines in told.values() if any(line.startswith("member") for line in lines)]
    assert full
    for lines in full:
        assert sum(line.startswith("member") for line in lines) == 1
        text = "\n".join(lines)
        assert "sampled in the plain prompt" in text
        assert "components odd" in text
        assert "mean behaviour log-prob -" in text


def test_prompt_and_ticket_lead_to_their_groups(run_dir):
    put = events(run_dir, "replay", "put")[0]
    finished = next(e for e in events(run_dir, "tasks", "finished") if e["group"] == put["group"])
    for name in (finished["prompt"], put["ticket"]):
        assert f"group    {put['group']}" in trace_run(run_dir, name)


def test_a_name_nobody_knows_is_refused_by_the_command(run_dir, capsys):
    with pytest.raises(UnknownSampleError, match="no group, member, ticket or prompt"):
        trace_run(run_dir, "nobody")
    assert main(["trace", str(run_dir), "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


def test_the_ledger_shows_help_and_retirement(run_dir, capsys):
    assert main(["ledger", str(run_dir)]) == 0
    assert "helped" in capsys.readouterr().out
