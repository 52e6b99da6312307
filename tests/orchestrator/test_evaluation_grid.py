import asyncio

import pytest

from actors.engines.protocol import Completion
from actors.renderer import Renderer
from orchestrator import contamination
from orchestrator.contamination import Probe, complete, fresh_twins
from orchestrator.evaluate_model import SplitResult
from orchestrator.evaluation_grid import Cell, CellStore, cell_key, compare
from orchestrator.evaluation_report import write_evaluation
from orchestrator.load_config import load_run_config
from rewards.config import TaskConfig
from rewards.statistics import Estimate
from rewards.task import Task
from rewards.tasks import load_tasks, problem_id
from rewards.trajectory import FinishReason
from tests.orchestrator.test_report import Page


def cell(setting, target, value, task_set="sums"):
    at = {k: Estimate(v, v - 0.1, v + 0.1, 8) for k, v in ((1, value), (4, min(1.0, value + 0.2)))}
    results = {"all": SplitResult(8, at, 1, majority_at={4: at[1]})}
    return Cell(setting, target, task_set, f"{target}/{task_set}", results)


CELLS = [
    cell("grpo", "grpo-1", 0.4), cell("grpo", "grpo-2", 0.5), cell("dapo", "dapo-1", 0.6), cell("dapo", "dapo-2", 0.4),
    *(cell(n[:4], n, v, "products") for n, v in
      {"grpo-1": 0.2, "grpo-2": 0.2, "dapo-1": 0.3, "dapo-2": 0.4}.items()),
]  # fmt: skip


def test_runs_of_one_setting_are_its_seeds():
    comparison = compare(CELLS)
    assert comparison.columns == ("sums", "products")
    assert comparison.scores["dapo"].tolist() == [[0.6, 0.3], [0.4, 0.4]]
    assert comparison.aggregates["grpo"]["mean"].value == pytest.approx(0.325)
    # sums: dapo wins 2 of 4 pairs and ties one; products: all four
    assert comparison.improvements["dapo", "grpo"].value == pytest.approx((2.5 / 4 + 1) / 2)
    assert comparison.improvements["dapo", "grpo"].value + comparison.improvements["grpo", "dapo"].value == 1.0


def test_a_missing_cell_is_named():
    with pytest.raises(ValueError, match=r"dapo-2 has no pass@1 in products"):
        compare(CELLS[:-1])


def test_finished_cells_survive_a_cut_line_and_other_weights_are_another_cell(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "w").write_bytes(b"1")
    first = cell_key(model, {"a": 1}, 4)
    store = CellStore(tmp_path / "cells.jsonl")
    store.add(CELLS[0])
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write('{"setting": "gr')
    assert CellStore(tmp_path / "cells.jsonl").get("grpo-1/sums") == CELLS[0]
    assert cell_key(model, {"a": 1}, 4) == first != cell_key(model, {"a": 2}, 4)
    (model / "w").write_bytes(b"22")
    assert cell_key(model, {"a": 1}, 4) != first


def test_the_page_shows_every_model_and_draws_every_setting(tmp_path):
    probes = {"grpo-1, sums": [Probe("right answers", Estimate(0.5, 0.4, 0.6, 8), None, "no fresh twins")]}
    page = Page(write_evaluation(tmp_path / "out" / "report.html", CELLS, "4 samples", probes).read_text())
    assert [
        "grpo-1 · all",
        "0.400 [0.300, 0.500]",
        "0.600 [0.500, 0.700]",
        "0.400 [0.300, 0.500]",
        "8",
        "1",
    ] in page.rows
    assert any(row[0] == "dapo > grpo" for row in page.rows)
    assert any(row[-1] == "no fresh twins" for row in page.rows)
    for series in ("sums:dapo:mean", "products:grpo:0", "profile:dapo"):
        assert page.series[series], series
    assert any("series:IQM:grpo" in name for name in page.ids)  # a marker without a path of its own
    assert all(address.startswith("#") for address in page.addresses)


def test_twins_are_new_problems_of_the_same_kind():
    config = TaskConfig(source="arithmetic", num_train=50, num_heldout=20)
    tasks = load_tasks(config).heldout
    twins = fresh_twins(config, tasks)
    assert 0 < len(twins) <= len(tasks)
    assert not {problem_id(t) for t in twins} & {problem_id(t) for t in tasks}
    assert fresh_twins(TaskConfig(source="file", name="x.jsonl"), tasks) == []


def test_a_model_that_knows_a_problem_by_heart_completes_it(tiny_model_path, monkeypatch):
    """The engine is one we own no more of than its words: it remembers one text and makes nothing of others."""
    known, other = "Calculate 1 + 2 and then add 30 to it", "Calculate 4 + 5 and then take 60 from it"
    renderer = Renderer(str(tiny_model_path))

    class Memory:
        async def start(self, *_): ...

        async def close(self): ...

        async def generate(self, ids, request):
            text = renderer.decode(ids)
            rest = known[len(text) :] if known.startswith(text) else "nothing of the kind"
            new = renderer.answer_ids(rest)[: request.max_new_tokens]
            return [Completion(token_ids=new, logprobs=[0.0] * len(new), versions=(), finish_reason=FinishReason.STOP)]

    monkeypatch.setattr(contamination, "make_engine", lambda _: Memory())
    config = load_run_config("grpo")
    tasks = [Task(task_id=str(i), prompt=text) for i, text in enumerate((known, other, "short one"))]
    first, second, third = asyncio.run(complete(config, tiny_model_path, tasks, share=0.5))
    assert (first.is_exact, first.overlap) == (True, 1.0)
    assert (second.is_exact, second.overlap) == (False, 0.0)
    assert third is None
