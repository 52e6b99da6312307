import io
import json
from fractions import Fraction

import numpy as np
import pytest
from rich.console import Console

from actors.model_store import KNOWN_MODELS
from actors.renderer import Renderer
from actors.replay.quotas import QuotaPlan
from orchestrator.load_config import load_run_config
from orchestrator.memory_plan import memory_items
from orchestrator.plan import make_plan, max_live_groups
from orchestrator.resources import Available
from orchestrator.shapes import ModelShape, TaskShape, local_model_folder, model_shape, task_shape
from rewards.task import ExpertResponse, Task, TaskSet
from tests.orchestrator import small_model
from tests.orchestrator.small_model import save_small_model

HERE = Available(where="this machine", cpus=2, gpus=0, memory_bytes=8 << 30, shm_bytes=4 << 30, starts_with_run=True)

MODEL = ModelShape(
    params=1_000_000,
    params_per_layer=100_000,
    layers=10,
    hidden=100,
    vocabulary=1000,
    kv_heads=2,
    head_dim=50,
    adapter_size={"q_proj": 2000, "v_proj": 1500},
)

TASKS = TaskShape(
    num_train=100,
    num_heldout=20,
    num_with_expert=50,
    prompts=tuple([0, 1, *range(10 + i, 10 + i + 28)] for i in range(10)),
    expert_answers=tuple(([7, 8, 9, 10],) if i % 2 else () for i in range(10)),
)


SIZES = (
    "num_steps=60",
    "replay.groups_per_update=32",
    "replay.max_age=1",
    "rollout.group_size=8",
    "rollout.num_workers=1",
    "rollout.concurrent_groups=16",
    "rollout.sampling.max_new_tokens=16",
    "rollout.engine={max_model_len: 128, max_num_seqs: 128}",
)
"""What the numbers below are computed from, whatever the recipes are tuned to."""


def config(*settings, recipe="chord_mu"):
    quota = ("replay.quotas.expert=1/2",) if recipe == "chord_mu" else ()
    return load_run_config(recipe, (*SIZES, *quota, *settings))


def plan_of(run_config, **changes):
    return make_plan(run_config, TASKS, MODEL, HERE, **changes)


def part(plan, key):
    return next(p for p in plan.parts if p.key == key)


def quota_plan(run_config):
    return QuotaPlan(run_config.replay.groups_per_update, dict(run_config.replay.quotas))


# -- one update ---------------------------------------------------------------------------------------------------


def test_the_batch_by_source():
    """32 groups, half of them expert: 16 x 8 live answers of 30 + 16 tokens, 16 x 1 expert answers of 30 + 4."""
    data = part(plan_of(config()), "batch").data
    assert data["live"] == {
        "share": "1/2",
        "groups_per_update": "16",
        "answers_per_group": 8.0,
        "tokens_per_update": 16 * 8 * 46,
        "groups_in_run": 60 * 16,
    }
    assert data["expert"]["tokens_per_update"] == 16 * 34


def test_shares_that_do_not_divide_the_batch_stay_exact():
    run_config = config("replay.groups_per_update=32", "replay.quotas.expert=1/3", "num_steps=3")
    batch = part(plan_of(run_config), "batch")
    assert batch.data["expert"]["groups_per_update"] == "32/3"
    assert batch.data["expert"]["groups_in_run"] == 32
    assert batch.data["live"]["groups_in_run"] == 64
    assert "32/3 (10, 11, 11, 10, 11, 11" in batch.rows[1][2]


@pytest.mark.parametrize("max_age", [0, 1, 3])
def test_live_groups_that_may_exist_are_what_the_next_updates_take(max_age):
    run_config = config(f"replay.max_age={max_age}", "replay.quotas.expert=1/3")
    quotas = quota_plan(run_config)
    windows = [quotas.live_total(s + max_age + 1) - quotas.live_total(s) for s in range(60)]
    assert max_live_groups(run_config, quotas) == max(windows)
    assert part(plan_of(run_config), "flow").data["live_groups_that_may_exist_untrained"] == max(windows)


def test_what_follows_from_the_batch():
    run_config = config("num_steps=30", "evaluation.every=10", "weights.publish_every=2")
    data = part(plan_of(run_config), "flow").data
    assert data["passes_over_the_training_tasks"] == 30 * 16 / 100
    assert data["passes_over_the_expert_responses"] == 30 * 16 / 50
    assert data["weight_versions_published"] == 16
    assert data["evaluations"] == 4  # before, after 10 and 20, at the end


def test_a_run_without_live_rollouts_has_nothing_to_overlap():
    plan = plan_of(config(recipe="sft"))
    assert [p.key for p in plan.parts] == ["batch", "flow", "memory", "resources", "sharing"]
    assert "live" not in part(plan, "batch").data


# -- memory -------------------------------------------------------------------------------------------------------


def items_of(run_config, tokens=5000):
    items = memory_items(run_config, MODEL, TASKS, num_live_groups=32, tokens_per_update=tokens)
    return {f"{i.role}: {i.item}": i for i in items}


def test_memory_of_a_learner_by_the_formulas():
    items = items_of(config("learner.max_tokens_per_micro_batch=2000", "learner.logprob_chunk_tokens=100"))
    assert items["learner rank: master weights and Adam moments, fp32"].bytes == 12e6
    assert items["learner rank: gradients, fp32"].bytes == 4e6
    assert items["learner rank: activations"].bytes == 34 / 2 * 4 * 2000 * 100 * 10
    assert items["learner rank: log-prob head"].bytes == 10 * 100 * 1000 + 4 * 1000 * 100
    assert "learner rank: unsharded layers" not in items
    assert "learner rank: reference weights" not in items


def test_a_small_batch_needs_no_whole_micro_batch():
    run_config = config("learner.max_tokens_per_micro_batch=2000")
    assert items_of(run_config, tokens=500)["learner rank: activations"].bytes == 34 / 2 * 4 * 500 * 100 * 10


def test_ranks_share_weights_and_tokens():
    items = items_of(config("learner.num_ranks=2", "learner.compute_dtype=bfloat16"), tokens=1000)
    assert items["learner rank: gradients, fp32"].bytes == 2e6
    assert items["learner rank: gradients, fp32"].count == 2
    assert items["learner rank: unsharded layers"].bytes == 2 * 2 * 100_000
    assert items["learner rank: activations"].bytes == 34 / 2 * 2 * 500 * 100 * 10


def test_recomputed_activations_keep_one_number_per_layer_and_one_layer_at_work():
    items = items_of(config("learner.gradient_checkpointing=true", "learner.compute_dtype=bfloat16"), tokens=1000)
    assert items["learner rank: activations"].bytes == 1000 * 100 * (2 * 10 + 34)


def test_adapters_are_all_that_is_trained_and_published():
    run_config = config("learner.lora.rank=4", "learner.lora.target_modules=[q_proj, v_proj]")
    items = items_of(run_config)
    assert items["learner rank: frozen weights, fp32"].bytes == 4e6
    assert items["learner rank: gradients, fp32"].bytes == 4 * 4 * 3500
    assert items["weight store: 3 versions"].bytes == 3 * 4 * 3500 * 4


def test_a_term_against_a_reference_costs_its_weights():
    run_config = config("terms.2.loss=kl_to_reference", "terms.2.weight=0.01")
    assert items_of(run_config)["learner rank: reference weights"].bytes == 4e6


def test_memory_of_an_engine():
    items = items_of(
        config("rollout.num_workers=3", "rollout.engine.dtype=bfloat16", "rollout.engine.kv_cache_bytes=2000000")
    )
    assert items["engine: weights"].bytes == 2e6
    assert items["engine: KV cache"].bytes == 2e6
    assert items["engine: KV cache"].count == 3
    assert "500 tokens" in items["engine: KV cache"].formula  # 2 x 10 layers x 2 heads x 50 x 2 bytes = 4000 a token


def test_gpus_hold_engine_and_learner_when_they_are_used():
    items = items_of(config("placement=split", "rollout.num_gpus_per_worker=1"))
    places = {i.role: i.place for i in items.values()}
    assert (places["learner rank"], places["engine"], places["replay cache"]) == ("gpu", "gpu", "memory")


def test_what_does_not_fit_is_said():
    small = Available(where="this machine", cpus=1, gpus=0, memory_bytes=1 << 20, shm_bytes=1 << 20)
    run_config = config("placement=split", "rollout.num_gpus_per_worker=1", "learner.num_ranks=2")
    plan = make_plan(run_config, TASKS, MODEL, small)
    assert any("DOES NOT FIT: shm" in note for note in part(plan, "memory").notes)
    assert any("DOES NOT FIT: 3 GPUs asked for, 0 there" in note for note in part(plan, "resources").notes)


# -- gains --------------------------------------------------------------------------------------------------------


def test_sharing_prompts_by_the_formula_and_on_a_batch():
    sharing = part(plan_of(config()), "sharing")
    assert sharing.data["factor_longest"] == pytest.approx(8 * (30 + 16) / (30 + 8 * 16))
    assert sharing.data["layout"] == "shared_prompt"
    assert sharing.data["shared_tokens"] < 0.5 * sharing.data["packed_tokens"]


def test_long_answers_leave_nothing_to_share():
    settings = ("rollout.sampling.max_new_tokens=4000", "rollout.engine.max_model_len=5000")
    run_config = config(*settings, recipe="grpo")
    sharing = part(plan_of(run_config), "sharing")
    assert sharing.data["factor_longest"] < 1.01
    assert sharing.data["layout"] == "packed"


def test_overlap_says_slots_and_assumptions():
    overlap = part(plan_of(config("replay.max_age=2"), train_ratio=0.5), "overlap")
    assert overlap.data["cut_3"]["slots_per_batch"] == 128 / (16 * 8)
    assert 1 < overlap.data["cut_3"]["this_run"] <= overlap.data["cut_3"]["fully_asynchronous"] * 1.05
    assert "0.5 x the time" in overlap.notes[1]
    assert "max_age 2" in overlap.columns[3]


# -- printing -----------------------------------------------------------------------------------------------------


def test_plain_text_where_there_is_no_terminal():
    out = io.StringIO()
    plan_of(config()).print(Console(file=out))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "master weights and Adam moments, fp32" in text
    for line in text.splitlines():
        assert line == line.rstrip()


def test_frames_on_a_terminal():
    out = io.StringIO()
    plan_of(config()).print(Console(file=out, force_terminal=True, width=160))
    assert "━" in out.getvalue()


def test_json_holds_every_part():
    data = json.loads(plan_of(config()).as_json())
    assert set(data) == {"batch", "flow", "memory", "resources", "sharing", "overlap"}
    assert data["memory"]["totals"]["memory"] > 16e6
    assert data["resources"]["requested"] == {"cpus": 2, "gpus": 0}


# -- shapes -------------------------------------------------------------------------------------------------------


def test_parameters_are_counted_without_weights(tmp_path):
    shape = model_shape(save_small_model(tmp_path))
    head_dim = small_model.HIDDEN // small_model.HEADS
    kv = small_model.KV_HEADS * head_dim
    attention = 2 * small_model.HIDDEN * small_model.HIDDEN + 2 * small_model.HIDDEN * kv
    layer = attention + 3 * small_model.HIDDEN * small_model.INTERMEDIATE + 2 * small_model.HIDDEN
    assert shape.params_per_layer == layer
    assert shape.params == small_model.VOCABULARY * small_model.HIDDEN + small_model.LAYERS * layer + small_model.HIDDEN
    assert (shape.kv_heads, shape.head_dim, shape.layers) == (small_model.KV_HEADS, head_dim, small_model.LAYERS)
    assert shape.adapter_params(2, ["q_proj"]) == 2 * small_model.LAYERS * 2 * small_model.HIDDEN


def test_tasks_are_counted_in_tokens(tmp_path):
    renderer = Renderer(str(save_small_model(tmp_path)))
    tasks = TaskSet(
        train=tuple(
            Task(task_id=str(i), prompt="x" * 10, expert=(ExpertResponse(text="12"),) if i % 2 else ())
            for i in range(1000)
        ),
        heldout=(Task(task_id="h", prompt="y"),),
    )
    shape = task_shape(tasks, renderer)
    assert (shape.num_train, shape.num_heldout, shape.num_with_expert) == (1000, 1, 500)
    assert shape.prompt_tokens == shape.longest_prompt == 13  # <user>, ten letters, <end>, <assistant>
    assert len(shape.prompts) <= 400


def test_models_that_are_not_here_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    monkeypatch.setitem(KNOWN_MODELS, "tiny", lambda *_: pytest.fail("built a model"))
    assert local_model_folder("tiny") is None
    assert local_model_folder("nobody/no-such-model") is None
    assert local_model_folder("not a model!") is None
    assert local_model_folder(str(save_small_model(tmp_path))) == tmp_path


def test_fractions_are_not_rounded_anywhere():
    quotas = quota_plan(config("replay.quotas.expert=3/7", "replay.groups_per_update=10"))
    taken = np.array([quotas.counts(step)["expert"] for step in range(70)])
    assert taken.sum() == Fraction(3, 7) * 10 * 70
