from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learner import attention
from learner.batch import collate, training_sequences
from learner.config import LoRAConfig
from learner.policy import Policy
from tests.learner.tiny_policy import (
    gradients,
    micro_batch,
    random_groups,
    reference_logprobs,
    sampled_masks,
    tiny_model,
)

SHAPE = [(5, (3, 4, 1)), (40, (30, 60, 2, 17)), (0, (9,)), (90, (70, 5))]
"""Groups with short and long prompts and answers: below and above one attention block."""


def relative_difference(got: dict, expected: dict) -> float:
    assert got.keys() == expected.keys()
    return max(float((got[k] - expected[k]).abs().max() / expected[k].abs().max().clamp(min=1e-6)) for k in expected)


@pytest.mark.parametrize("max_rows", [8, 128, 10_000])
@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_and_gradients_equal_separate_forward_passes(monkeypatch, max_rows, share_prefixes, tied):
    monkeypatch.setattr(attention, "MAX_BLOCK_ROWS", max_rows)
    model, groups = tiny_model(tied=tied), random_groups(SHAPE)
    weights = torch.linspace(-1, 1, sum(g.num_sampled_tokens for g in groups))
    expected = reference_logprobs(model, groups, temperature=0.8)
    (expected * weights).sum().backward()
    expected_gradients = gradients(model)

    policy = Policy(model, temperature=0.8, chunk_tokens=16)
    batch = micro_batch(groups, share_prefixes=share_prefixes)
    got, entropy = policy(batch)[:2]
    (got * weights).sum().backward()

    assert entropy is None
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-6)
    assert relative_difference(gradients(model), expected_gradients) < 1e-5


def test_shared_prefixes_compute_fewer_tokens():
    groups = random_groups(SHAPE)
    shared, packed = micro_batch(groups), micro_batch(groups, share_prefixes=False)
    assert packed.num_tokens == sum(len(t.token_ids) - 1 for g in groups for t in g.trajectories)
    assert shared.num_tokens < 0.75 * packed.num_tokens


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_flex_attention_agrees(share_prefixes):
    groups = random_groups(SHAPE)
    policy = Policy(tiny_model())
    batch = collate(
        training_sequences(groups, sampled_masks(groups)),
        {},
        share_prefixes=share_prefixes,
        backend="flex",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    with torch.no_grad():
        torch.testing.assert_close(policy(batch)[0], policy(micro_batch(groups))[0], atol=1e-5, rtol=1e-6)


def test_varlen_refuses_shared_prefixes():
    with pytest.raises(ValueError, match="share prefixes"):
        collate(
            training_sequences(groups := random_groups([(3, (2, 2))]), sampled_masks(groups)),
            {},
            share_prefixes=True,
            backend="varlen",
            device=torch.device("cpu"),
            dtype=torch.float32,
        )


def test_entropy_of_each_trained_token():
    model, groups = tiny_model(), random_groups([(4, (3, 2))])
    policy = Policy(model)
    entropy = policy(micro_batch(groups), with_entropy=True).entropy
    expected = []
    for trajectory in groups[0].trajectories:
        ids = torch.tensor(trajectory.token_ids, dtype=torch.int64)
        policy.model.set_attn_implementation("eager")
        table = model(ids[None]).logits[0].log_softmax(-1)
        expected.append(-(table.exp() * table).sum(-1)[np.flatnonzero(trajectory.sampled_mask) - 1])
    torch.testing.assert_close(entropy, torch.cat(expected), atol=1e-5, rtol=0)


def test_padding_rows_of_the_embedding_get_the_gradient_transformers_gives_them():
    model = tiny_model()
    model.get_input_embeddings().padding_idx = 3  # a token of every prompt
    groups = random_groups([(4, (3, 2))])
    reference_logprobs(model, groups).sum().backward()
    expected = gradients(model)
    Policy(model)(micro_batch(groups))[0].sum().backward()
    assert relative_difference(gradients(model), expected) < 1e-5


def test_sequence_log_probs_are_those_of_the_plain_model():
    model = tiny_model()
    (group,) = random_groups([(20, (15,))])
    ids = torch.tensor(group.trajectories[0].token_ids, dtype=torch.int64)
    expected = (model(ids[None]).logits[0] / 0.7).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    got = Policy(model, temperature=2.0).sequence_logprobs(ids.tolist(), temperature=0.7)
    assert got.dtype == np.float32
    assert np.isnan(got[0])
    np.testing.assert_allclose(got[1:], expected.detach().numpy(), atol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    groups = random_groups(SHAPE)
    results = []
    for checkpointing in (False, True):
        policy = Policy(tiny_model())
        if checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            policy.model.train()
        policy(micro_batch(groups))[0].sum().backward()
        results.append(gradients(policy))
    assert relative_difference(results[1], results[0]) < 1e-6


def test_bfloat16_compute_keeps_fp32_master_weights():
    groups = random_groups(SHAPE)
    policy = Policy(tiny_model(), compute_dtype=torch.bfloat16)
    expected = reference_logprobs(tiny_model(), groups)
    got = policy(micro_batch(groups)).logprobs
    got.sum().backward()
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in policy.parameters()} == {torch.float32}
    assert float((got - expected).abs().mean()) < 0.1


def test_lora_trains_adapters_only_and_starts_at_the_base_model():
    groups = random_groups(SHAPE)
    expected = Policy(tiny_model())(micro_batch(groups))[0].detach()
    policy = Policy(tiny_model(), lora=LoRAConfig(rank=4))
    got = policy(micro_batch(groups)).logprobs
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-6)
    got.sum().backward()
    trained = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert trained
    assert all(".lora_" in name for name in trained)


def test_without_adapter_is_the_base_model():
    groups = random_groups([(4, (3, 2))])
    policy = Policy(tiny_model(), lora=LoRAConfig(rank=4))
    base = policy(micro_batch(groups))[0].detach()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = policy(micro_batch(groups))[0]
    assert float((changed - base).detach().abs().max()) > 0.01
    with policy.without_adapter():
        torch.testing.assert_close(policy(micro_batch(groups))[0], base)
    with pytest.raises(ValueError, match="no adapter"), Policy(tiny_model()).without_adapter():
        pass


def test_a_model_that_changes_its_logits_is_refused():
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=2))  # fmt: skip
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        Policy(model)


def test_a_short_sliding_window_is_refused():
    layout = attention.make_layout(
        np.full(9, 9), np.arange(9), backend="blocks", device=torch.device("cpu"), dtype=torch.float32
    )
    query = torch.zeros(1, 2, 9, 4)
    with pytest.raises(ValueError, match="sliding_window=4"):
        attention.forest_attention(torch.nn.Identity(), query, query, query, None, layout=layout, sliding_window=4)
    assert attention.forest_attention(torch.nn.Identity(), query, query, query, None, layout=layout, sliding_window=9)[
        0
    ].shape == (1, 9, 2, 4)


def test_result_does_not_depend_on_how_sequences_are_split():
    groups, policy = random_groups(SHAPE), Policy(tiny_model())
    sequences = training_sequences(groups, sampled_masks(groups))
    whole = policy(micro_batch(groups))[0]
    cuts = [0, 1, 3, 6, len(sequences)]
    parts = [policy(micro_batch(groups, sequences=sequences[a:b]))[0] for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-6)
