"""A whole run whose batches mix fresh groups, the policy's own past and another run's answers, over two shards."""

import json
from collections import Counter

import pytest

from actors.replay.config import ImportConfig, TableConfig
from learner.config import Term
from learner.losses.config import NegativeLogLikelihood
from orchestrator.audit import audit_run
from orchestrator.load_config import load_run_config
from orchestrator.local_run import run_local
from orchestrator.trace import trace_run

SMALL = (
    "num_steps=4",
    "rollout.engine.kind=transformers",
    "rollout.group_size=4",
    "rollout.concurrent_groups=4",
    "tasks.num_train=24",
    "tasks.num_heldout=16",
    "evaluation.every=0",
    "layout=null",
    "tracking.sinks=[]",
    "checkpoint.every=2",
)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_mixed_run_over_shards_ends_with_balanced_books(tmp_path, tiny_model_path):
    traces = tmp_path / "traces.jsonl"
    rows = [{"prompt": f"Calculate {n} + 1.", "response": str(n + 1), "score": 1.0} for n in range(6)]
    traces.write_text("\n".join(map(json.dumps, rows)))
    config = load_run_config("grpo", [*SMALL, f"model={tiny_model_path}", "replay.groups_per_update=4"])
    replay = config.replay.model_copy(
        update={
            "quotas": {"teacher": "1/4", "own_past": "1/4"},
            "num_shards": 2,
            "tables": {"own_past": TableConfig(order="prioritised", priority="ratio", max_groups=8)},
            "imports": (ImportConfig(path=str(traces), source="teacher"),),
        }
    )
    terms = tuple(Term(loss=NegativeLogLikelihood(), source=source) for source in ("teacher", "own_past"))
    config = type(config).model_validate(
        {**config.model_dump(), "replay": replay.model_dump(), "terms": (*config.terms, *terms)}
    )
    summary = await run_local(config, tmp_path / "run")
    assert (summary["step"], summary["phase"], summary["age_violations"]) == (4, "done", 0)
    assert summary["unknown_metrics"] == {}
    report = audit_run(tmp_path / "run")
    assert report.ok, "\n".join(report.lines())
    (manifest,) = (tmp_path / "run" / "checkpoints").glob("step-00000004")
    batches = json.loads((manifest / "batches.json").read_text())
    kinds = Counter(name.partition(":")[0] for names in batches.values() for name in names if ":" in name)
    assert kinds["teacher"] == 4
    fresh = next(name for name in batches["0"] if ":" not in name)
    assert any("trained on" in line for line in trace_run(tmp_path / "run", fresh))
