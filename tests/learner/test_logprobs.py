import math

import pytest
import torch

from learner import logprobs
from learner.logprobs import token_logprobs

M, H, V, N = 11, 16, 203, 30


def inputs(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, H, generator=generator).to(dtype).requires_grad_()
    weight = (0.5 * torch.randn(V, H, generator=generator)).requires_grad_()
    rows = torch.randint(0, M, (N,), generator=generator)
    targets = torch.randint(0, V, (N,), generator=generator)
    return hidden, weight, rows, targets


def full_logits(hidden, weight, rows, targets, temperature):
    table = (hidden.double() @ weight.double().T / temperature).log_softmax(-1)
    entropy = -(table.exp() * table).sum(-1)
    return table[rows, targets], entropy[rows]


def test_worked_numbers():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    rows, targets = torch.tensor([0, 0]), torch.tensor([0, 1])
    values, entropy = token_logprobs(hidden, weight, rows, targets, with_entropy=True)
    assert values.tolist() == pytest.approx([math.log(0.25), math.log(0.75)])
    assert entropy.tolist() == pytest.approx([0.25 * math.log(4) + 0.75 * math.log(4 / 3)] * 2)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 10_000])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_values_and_gradients_equal_full_logits(monkeypatch, temperature, chunk_tokens, with_entropy):
    monkeypatch.setattr(logprobs, "MAX_CPU_TILE_ELEMENTS", M * 40)  # several tiles, the last one ragged
    arguments = inputs()
    hidden, weight = arguments[:2]
    weights = torch.linspace(-1, 1, N)

    values, entropy = token_logprobs(
        *arguments, temperature=temperature, chunk_tokens=chunk_tokens, with_entropy=with_entropy
    )
    loss = (values * weights).sum() + ((entropy * weights.flip(0)).sum() if with_entropy else 0.0)
    got = torch.autograd.grad(loss, (hidden, weight))

    expected_values, expected_entropy = full_logits(*arguments, temperature)
    expected_loss = (expected_values * weights).sum()
    if with_entropy:
        expected_loss = expected_loss + (expected_entropy * weights.flip(0)).sum()
        torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=0)
    expected = torch.autograd.grad(expected_loss, (hidden, weight))

    torch.testing.assert_close(values.double(), expected_values, atol=1e-5, rtol=0)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_gradient_of_entropy_alone():
    hidden, weight, rows, targets = inputs()
    _, entropy = token_logprobs(hidden, weight, rows, targets, with_entropy=True)
    got = torch.autograd.grad(entropy.sum(), (hidden, weight))
    expected = torch.autograd.grad(full_logits(hidden, weight, rows, targets, 1.0)[1].sum(), (hidden, weight))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_large_logits_do_not_overflow():
    hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[400.0, 0.0], [-400.0, 0.0], [399.0, 0.0]])
    values, entropy = token_logprobs(
        hidden, weight, torch.zeros(3, dtype=torch.int64), torch.arange(3), with_entropy=True
    )
    log_normalizer = 400.0 + math.log1p(math.exp(-1.0))
    assert values.tolist() == pytest.approx([400 - log_normalizer, -400 - log_normalizer, 399 - log_normalizer])
    assert torch.isfinite(entropy).all()


def test_frozen_weight_gets_no_gradient():
    hidden, weight, rows, targets = inputs()
    weight = weight.detach()
    token_logprobs(hidden, weight, rows, targets)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_a_second_backward_computes_the_kept_logits_again():
    hidden, weight, rows, targets = inputs()
    values, _ = token_logprobs(hidden, weight, rows, targets, chunk_tokens=10_000)
    first = torch.autograd.grad(values.sum(), (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(values.sum(), (hidden, weight))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_bfloat16_hidden_states_give_fp32_log_probs():
    hidden, weight, rows, targets = inputs(torch.bfloat16)
    values, _ = token_logprobs(hidden, weight, rows, targets)
    values.sum().backward()
    expected, _ = full_logits(hidden, weight.bfloat16(), rows, targets, 1.0)
    assert values.dtype == torch.float32
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(values.double(), expected, atol=0.05, rtol=0)


def test_no_targets_stay_connected_to_the_graph():
    hidden, weight, rows, targets = inputs()
    values, entropy = token_logprobs(hidden, weight, rows[:0], targets[:0], with_entropy=True)
    assert values.shape == entropy.shape == (0,)
    (values.sum() + entropy.sum()).backward()
    assert torch.count_nonzero(hidden.grad) == 0
    assert torch.count_nonzero(weight.grad) == 0


def test_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(*inputs(), temperature=0.0)
