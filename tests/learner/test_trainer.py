import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from learner.config import (
    ClippedSurrogate,
    KLToReference,
    LoRAConfig,
    NegativeLogLikelihood,
    OptimizerConfig,
    Schedule,
    Term,
)
from rewards.trajectory import Source
from tests.learner.rank_process import CONFIG, TERMS, batch, make_trainer, poisoned_batch, weights
from tests.learner.tiny_policy import random_groups, reference_logprobs, tiny_model

IMITATE = (Term(loss=NegativeLogLikelihood(), source="expert"),)


def expert_groups(seed=0):
    return random_groups([(6, (5,)), (9, (12,)), (2, (3,))], seed=seed, source=Source.EXPERT)


def largest_difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)


def test_a_step_is_adamw_on_the_clipped_gradient_of_the_plain_model(tiny_folder):
    trainer = make_trainer(tiny_folder, CONFIG, IMITATE)
    report = trainer.step(expert_groups(), 0)

    model = tiny_model()
    loss = -reference_logprobs(model, expert_groups()).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.optimizer.max_grad_norm)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=CONFIG.optimizer.learning_rate, weight_decay=0.01, eps=1e-4).step()

    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert float(norm) > CONFIG.optimizer.max_grad_norm  # or clipping was not tested
    assert largest_difference(weights(trainer), dict(model.named_parameters())) < 1e-5


@pytest.mark.parametrize("attention", ["shared_prompt", "packed"])
@pytest.mark.parametrize("max_tokens", [16, 10_000])
def test_result_is_independent_of_layout_and_micro_batch_size(tiny_folder, attention, max_tokens):
    results = []
    for config in (
        CONFIG,
        CONFIG.model_copy(update={"attention": attention, "max_tokens_per_micro_batch": max_tokens}),
    ):
        trainer = make_trainer(tiny_folder, config)
        reports = [trainer.step(batch(step), step) for step in range(3)]
        results.append((reports, weights(trainer)))
    (expected, expected_weights), (got, got_weights) = results
    for one, other in zip(got, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
        for label, metrics in other.terms.items():
            assert one.terms[label] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
    assert largest_difference(got_weights, expected_weights) < 1e-4


def test_report_counts_tokens(tiny_folder):
    groups = random_groups([(10, (4, 6)), (10, (5, 5))])
    trainer = make_trainer(
        tiny_folder, CONFIG.model_copy(update={"attention": "packed"}), (Term(loss=ClippedSurrogate()),)
    )
    report = trainer.step(groups, 0)
    assert report.num_trained_tokens == 20
    assert report.num_logical_tokens == sum(g.num_tokens for g in groups) == 76
    assert report.num_tokens == 72
    assert report.num_flop == 72 * 6 * sum(weight.numel() for weight in trainer.policy.parameters())
    assert not report.shared_prefixes
    assert set(report.seconds) == {"plan", "collate", "forward", "backward", "optimizer"}
    assert make_trainer(tiny_folder).step(groups, 0).num_tokens < 60


def test_groups_without_gradient_are_measured_but_cost_no_backward_pass(tiny_folder):
    live = batch(0)[:3]  # the last one has equal scores
    trainer = make_trainer(tiny_folder, CONFIG, (Term(loss=ClippedSurrogate()),))
    report = trainer.step(live, 0)
    metrics = report.terms["live/clipped_surrogate"]
    assert metrics["num_tokens"] == sum(g.num_sampled_tokens for g in live)
    tokens_with_gradient = trainer.step(live[:2], 0).num_tokens
    assert report.num_tokens > tokens_with_gradient

    level = make_trainer(tiny_folder, CONFIG, (Term(loss=ClippedSurrogate()),)).step(live[2:], 0)
    assert not level.skipped
    assert level.grad_norm == 0.0


def test_a_term_whose_weight_is_zero_now_moves_nothing(tiny_folder):
    later = Schedule(kind="step", start=0.0, end=1.0, steps=5)
    terms = (TERMS[0], TERMS[3].model_copy(update={"weight": later}))
    with_expert, without = make_trainer(tiny_folder, CONFIG, terms), make_trainer(tiny_folder, CONFIG, TERMS[:1])
    report = with_expert.step(batch(0), 0)
    without.step(batch(0), 0)
    assert largest_difference(weights(with_expert), weights(without)) < 1e-6
    assert report.terms["expert/negative_log_likelihood"]["loss"] > 0
    with_expert.step(batch(1), 5)
    without.step(batch(1), 5)
    assert largest_difference(weights(with_expert), weights(without)) > 1e-4


def test_a_poisoned_step_is_skipped_and_changes_no_bit(tiny_folder):
    trainer, undisturbed = make_trainer(tiny_folder), make_trainer(tiny_folder)
    trainer.step(batch(0), 0)
    undisturbed.step(batch(0), 0)
    before = weights(trainer)
    report = trainer.step(poisoned_batch(), 1)
    assert report.skipped
    assert "nan" in report.skip_reason or "inf" in report.skip_reason
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(trainer).items())
    trainer.step(batch(2), 2)
    undisturbed.step(batch(2), 2)
    after = weights(undisturbed)
    assert all(torch.equal(after[name], tensor) for name, tensor in weights(trainer).items())


def test_a_batch_with_nothing_to_train_is_skipped_with_its_reason(tiny_folder):
    groups = expert_groups()
    report = make_trainer(tiny_folder, CONFIG, (Term(loss=ClippedSurrogate()),)).step(groups, 0)
    assert report.skipped
    assert "no token" in report.skip_reason


def test_learning_rate_follows_its_schedule(tiny_folder):
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule=Schedule(kind="linear", start=1.0, end=0.0, steps=10))
    trainer = make_trainer(tiny_folder, CONFIG.model_copy(update={"optimizer": optimizer}), IMITATE)
    assert [trainer.step(expert_groups(), step).learning_rate for step in (0, 5, 10)] == pytest.approx([1e-2, 5e-3, 0])


def test_imitation_learns_the_expert(tiny_folder):
    trainer = make_trainer(tiny_folder, CONFIG, IMITATE)
    losses = [trainer.step(expert_groups(), step).loss for step in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_reference_is_the_initial_policy(tiny_folder):
    trainer = make_trainer(tiny_folder, CONFIG, (Term(loss=ClippedSurrogate()), Term(loss=KLToReference())))
    first = trainer.step(batch(0), 0)
    assert first.terms["live/kl_to_reference"]["kl_mean"] == pytest.approx(0.0, abs=1e-6)
    second = trainer.step(batch(0), 1)
    assert second.terms["live/kl_to_reference"]["kl_mean"] > 1e-5


def test_probe_is_the_plain_models_log_probs(tiny_folder):
    trainer = make_trainer(tiny_folder)
    trainer.step(batch(0), 0)
    ids = torch.tensor([5, 9, 200, 3, 77])
    model = tiny_model()
    model.load_state_dict(weights(trainer), strict=False)
    expected = model(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    probe = trainer.probe_logprobs(ids.tolist())
    assert math.isnan(probe[0])
    np.testing.assert_allclose(probe[1:], expected.detach().numpy(), atol=1e-5)


def test_exported_folder_is_the_trained_model(tiny_folder, tmp_path):
    trainer = make_trainer(tiny_folder)
    trainer.step(batch(0), 0)
    trainer.export(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trained = weights(trainer)
    assert "lm_head.weight" not in trained
    assert largest_difference(dict(loaded.named_parameters()), trained) == 0.0
    assert (tmp_path / "model" / "tokenizer.json").read_text() == (tiny_folder / "tokenizer.json").read_text()
    assert (tmp_path / "model" / "generation_config.json").exists()


def test_lora_publishes_adapters_and_exports_both_layouts(tiny_folder, tmp_path):
    config = CONFIG.model_copy(update={"lora": LoRAConfig(rank=4, alpha=8.0)})
    trainer = make_trainer(tiny_folder, config)
    for step in range(2):
        report = trainer.step(batch(step), step)
    assert report.terms["live/kl_to_reference"]["kl_mean"] > 0  # the reference is the model below the adapters
    assert trainer.weights_kind == "adapter"
    published = weights(trainer)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in published
    assert trainer.adapter_config()["r"] == 4

    trainer.export(tmp_path / "model")
    probe = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = trainer.probe_logprobs(probe)[1:]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "model" / "adapter"
    )
    ids = torch.tensor(probe)
    for model in (merged, adapted):
        table = model(ids[None]).logits[0].log_softmax(-1)
        np.testing.assert_allclose(table[torch.arange(7), ids[1:]].detach().numpy(), expected, atol=1e-5)
    assert json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_answers_unscored_by_a_fault_are_not_trained(tiny_folder):
    (group,) = random_groups([(4, (3, 4, 5))])
    unscored = replace(group.trajectories[0], verdict=None)
    full = replace(group, trajectories=(unscored, *group.trajectories[1:]))
    trainer = make_trainer(tiny_folder, CONFIG, (Term(loss=ClippedSurrogate()),))
    assert trainer.step([full], 0).num_trained_tokens == 9


def test_needs_nobody_supplies_are_refused(tiny_folder, monkeypatch):
    monkeypatch.setattr(ClippedSurrogate, "needs", frozenset({"values"}))
    with pytest.raises(ValueError, match="values"):
        make_trainer(tiny_folder, CONFIG, (Term(loss=ClippedSurrogate()),))
