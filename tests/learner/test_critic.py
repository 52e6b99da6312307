"""The critic in the real learner: what it learns, that packing and ranks do not matter, and that it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from learner.companions.critic_learner import measure_gaps
from learner.config import (
    ClippedSurrogate,
    CriticConfig,
    KLToReference,
    LoRAConfig,
    OnPolicyDistillation,
    PolicyGradient,
    TeacherConfig,
    TeacherDivergence,
    Term,
)
from learner.policy import Policy
from tests.learner.rank_process import CONFIG, batch, make_trainer, poisoned_batch, weights
from tests.learner.tiny_policy import micro_batch, random_groups, save_tiny_model, tiny_model

TERMS = (Term(loss=ClippedSurrogate(), advantage="gae"), Term(loss=PolicyGradient(), advantage="v_trace"))
CRITICS = {
    "squared": CriticConfig(learning_rate=3e-3, kl_in_reward=0.1, feature_penalty=1e-3),
    "hl_gauss": CriticConfig(learning_rate=3e-3, loss="hl_gauss", bins=11, target="v_trace"),
    "conservative": CriticConfig(learning_rate=3e-3, target="conservative", gap_scale=0.1),
    "two_hot": CriticConfig(learning_rate=3e-3, loss="two_hot", bins=11, trace=1.0),
}


def config(critic="squared", **changes):
    return CONFIG.model_copy(update={"critic": CRITICS[critic], **changes})


def critic_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.critic.model.named_parameters()}


def largest_difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("critic", ["squared", "hl_gauss", "two_hot"])
def test_the_critic_foresees_what_answers_earn(tiny_folder, critic):
    learns = CRITICS[critic].model_copy(update={"target": "gae", "kl_in_reward": 0.0, "feature_penalty": 0.0})
    optimizer = CONFIG.optimizer.model_copy(update={"eps": 1e-8})
    settings = CONFIG.model_copy(update={"critic": learns, "optimizer": optimizer})
    trainer = make_trainer(tiny_folder, settings, (Term(loss=PolicyGradient(), advantage="gae", weight=1e-9),))
    groups = random_groups([(6, (5, 3, 9, 2)), (12, (4, 8))], seed=1)
    reports = [trainer.step(groups, step).terms["critic"] for step in range(25)]
    assert reports[0]["value_mean"] == pytest.approx(0.0 if critic == "squared" else 0.5)
    assert reports[-1]["value_loss"] < 0.7 * reports[0]["value_loss"]
    assert reports[-1]["explained_variance"] > 0.3


def test_gaps_are_those_of_whole_tables(tiny_folder):
    policy = Policy(tiny_model(0), temperature=0.7)
    reference = Policy(tiny_model(1))
    groups = random_groups([(6, (5, 3)), (4, (2,))], seed=2)
    with torch.no_grad():
        largest, gaps = measure_gaps(policy, reference, micro_batch(groups))
    expected_largest, expected_gaps = [], []
    for trajectory in (t for group in groups for t in group.trajectories):
        ids = torch.tensor(trajectory.token_ids, dtype=torch.int64)[None]
        positions = torch.tensor(trajectory.sampled_mask.nonzero()[0]) - 1
        own = (tiny_model(0)(ids).logits[0, positions] / 0.7).log_softmax(-1).detach()
        chosen = tiny_model(1)(ids).logits[0, positions].argmax(-1)
        expected_largest.append(own.amax(-1))
        expected_gaps.append(own.gather(1, chosen[:, None])[:, 0] - own.amax(-1))
    torch.testing.assert_close(largest, torch.cat(expected_largest), atol=1e-4, rtol=0)
    torch.testing.assert_close(gaps, torch.cat(expected_gaps), atol=1e-4, rtol=0)
    assert (gaps < -1.0).any()


@pytest.mark.parametrize(("critic", "max_tokens"), [("squared", 16), ("conservative", 10_000)])
def test_result_is_independent_of_packing(tiny_folder, critic, max_tokens):
    results = []
    for settings in (config(critic), config(critic, max_tokens_per_micro_batch=max_tokens, attention="packed")):
        trainer = make_trainer(tiny_folder, settings, TERMS)
        reports = [trainer.step(batch(step), step) for step in range(2)]
        results.append((reports[-1], weights(trainer), critic_weights(trainer)))
    (expected, *expected_weights), (got, *got_weights) = results
    assert expected.terms["critic"]["grad_norm"] > 0
    assert critic != "squared" or expected.terms["critic"]["feature_penalty"] > 0
    for label, metrics in expected.terms.items():
        assert got.terms[label] == pytest.approx(metrics, rel=2e-3, abs=1e-4)
    for one, other in zip(got_weights, expected_weights, strict=True):
        assert largest_difference(one, other) < 1e-4


def test_a_step_the_critic_cannot_take_is_taken_by_nobody(tiny_folder):
    trainer = make_trainer(tiny_folder, config(), TERMS[:1])  # whitened: the policy could take it
    trainer.step(batch(0), 0)
    before = {**weights(trainer), **critic_weights(trainer)}
    report = trainer.step(poisoned_batch(), 1)
    assert report.skipped
    assert report.skip_reason.startswith("critic: loss is")
    after = {**weights(trainer), **critic_weights(trainer)}
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_a_resumed_critic_goes_on_bit_for_bit(tiny_folder, tmp_path, lora):
    uninterrupted, first = (make_trainer(tiny_folder, config(lora=lora), TERMS) for _ in range(2))
    for trainer in (uninterrupted, first):
        trainer.step(batch(0), 0)
    first.begin_save(tmp_path / "state").result()
    resumed = make_trainer(tiny_folder, config(lora=lora), TERMS)
    resumed.load(tmp_path / "state")
    assert resumed.step(batch(1), 1).terms == uninterrupted.step(batch(1), 1).terms
    before, after = critic_weights(uninterrupted), critic_weights(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(float(s["step"]) == 2.0 for s in resumed.critic.optimizer.state.values())


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="count it twice"):
        Term(loss=ClippedSurrogate(), advantage="v_trace")
    with pytest.raises(ValueError, match="feature_penalty"):
        CriticConfig(loss="two_hot", kl_in_reward=0.1, feature_penalty=1e-3)
    with pytest.raises(ValueError, match="would do nothing"):
        CriticConfig(feature_penalty=1e-3)
    with pytest.raises(ValueError, match="not below"):
        CriticConfig(low=1.0, high=0.0)


def test_a_term_that_reads_values_needs_a_critic(tiny_folder):
    with pytest.raises(ValueError, match=r"values.*learner\.critic"):
        make_trainer(tiny_folder, CONFIG, TERMS)
    with pytest.raises(ValueError, match="no options"):
        make_trainer(tiny_folder, config(), (Term(loss=PolicyGradient(), advantage="gae", advantage_options={"x": 1}),))


ALL_COMPANIONS = (
    *TERMS,
    Term(loss=KLToReference(), weight=0.1),
    Term(loss=OnPolicyDistillation(), weight=0.1),
    Term(loss=TeacherDivergence(mixture=0.3), source="expert"),
)


def run_all_companions(rank: int, world_size: int, model: Path, teacher: Path, out: Path) -> None:
    """Two steps with every kind of model beside the policy, and a checkpoint; rank 0 writes what it saw to `out`."""
    torch.set_num_threads(1)
    trainer = make_trainer(
        model,
        config(teacher=TeacherConfig(model="another")),
        ALL_COMPANIONS,
        companions={"teacher": teacher},
        rank=rank,
        world_size=world_size,
        init_method=f"file://{out}.meeting",
    )
    reports = [trainer.step(batch(step), step) for step in range(2)]
    trainer.begin_save(out.parent / f"state-of-{world_size}").result()
    result = {"weights": weights(trainer), "terms": [dict(r.terms) for r in reports]}
    if rank == 0:
        torch.save(result, out)
    if world_size > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.multi_rank
def test_two_ranks_with_all_companions_train_like_one(tiny_folder, tmp_path):
    teacher = save_tiny_model(tmp_path / "teacher", seed=1)
    run_all_companions(0, 1, tiny_folder, teacher, tmp_path / "one.pt")
    torch.multiprocessing.spawn(run_all_companions, (2, tiny_folder, teacher, tmp_path / "two.pt"), nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=False) for name in ("one.pt", "two.pt"))
    for expected, got in zip(one["terms"], two["terms"], strict=True):
        for label, metrics in expected.items():
            assert got[label] == pytest.approx(metrics, rel=2e-3, abs=2e-4), label
    assert largest_difference(two["weights"], one["weights"]) < 1e-4

    def resumed(ranks):
        trainer = make_trainer(
            tiny_folder, config(teacher=TeacherConfig(model="another")), ALL_COMPANIONS, companions={"teacher": teacher}
        )
        trainer.load(tmp_path / f"state-of-{ranks}")
        return critic_weights(trainer)

    assert largest_difference(resumed(2), resumed(1)) < 1e-4
