"""docs/one_file.py against worked numbers, itself in other batch shapes, and the large system's loss."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from learner.config import (
    ClippedSurrogate,
    LearnerConfig,
    NegativeLogLikelihood,
    OptimizerConfig,
    Schedule,
    Term,
)
from learner.objective import Objective
from learner.trainer import Trainer
from rewards.trajectory import Group, Source
from tests.builders import make_trajectory
from tests.learner import fixture_f as F

PATH = Path(__file__).parents[2] / "docs" / "one_file.py"
STOP = 0


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_file", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_file"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


one_file = _load()


def tiny_model(vocab_size: int = 256, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=STOP,
            pad_token_id=STOP,
        )
    )
    for parameter in model.parameters():  # random weights are nearly uniform; make tokens differ
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    return model.eval()


def settings(**changes):
    return dataclasses.replace(one_file.Settings(), **changes)


def prompts(*texts: str) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def sampled_groups(model, *, shift: float = 0.0, scores=((1.0, 0.0, 0.0), (1.0, 1.0, 0.0))):
    """Groups with answers of different lengths; `shift` makes the recorded log-probs stale."""
    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    groups = []
    for prompt, rewards in zip(prompts("1 + 2 =", "17 - 5 ="), scores, strict=True):
        answers = one_file.sample(model, [prompt] * len(rewards), STOP, 8, 1.0)
        members = []
        for (ids, logprobs), reward in zip(answers, rewards, strict=True):
            length = int(rng.integers(2, 9))
            stale = [lp + shift * float(rng.normal()) for lp in logprobs[:length]]
            members.append(one_file.Sample(prompt, ids[:length], stale, reward))
        groups.append(members)
    return groups


EXPERTS = [
    one_file.Sample(prompt, [*answer, STOP])
    for prompt, answer in zip(prompts("4 + 4 =", "20 - 1 ="), prompts("8", "19"), strict=True)
]


class FixtureModel(torch.nn.Module):
    """Gives the fixture's log-probs to token 1 and the rest of the mass to token 2."""

    def __init__(self) -> None:
        super().__init__()
        self.pi = torch.nn.Parameter(F.PI.clone())

    def forward(self, input_ids, **_):
        chosen = torch.zeros(2, 4, dtype=torch.float64) - 1.0
        chosen = chosen.index_put((torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])), self.pi)
        rest = torch.log1p(-chosen.exp())
        logits = torch.stack([torch.full_like(chosen, -1e30), chosen, rest], dim=-1)
        return type("Output", (), {"logits": _Float64(logits)})


class _Float64:
    """Keeps the fixture in float64 where the program asks for float32."""

    def __init__(self, tensor):
        self._tensor = tensor

    def __getitem__(self, index):
        return _Float64(self._tensor[index])

    def float(self):
        return self._tensor


def test_worked_example_of_chord():
    model = FixtureModel()
    rows = [
        one_file.Row(one_file.Sample([5], [1, 1, 1]), None),
        one_file.Row(one_file.Sample([5], [1, 1], F.PROX[3:].tolist()), -1.0),
    ]
    counts = one_file.count_tokens(rows)
    assert counts == (2, 3)
    live, expert = one_file.losses_of_rows(model, rows, counts, settings(imitation="phi"))
    assert live.item() == pytest.approx(1.105283, abs=6e-7)
    assert expert.item() == pytest.approx(0.200328, abs=6e-7)
    loss = 0.7 * live + 0.3 * expert
    assert loss.item() == pytest.approx(0.833797, abs=6e-7)
    loss.backward()
    expected = F.flat(-0.022099, -0.021048, -0.017334, 0.301248, 0.472451)
    torch.testing.assert_close(model.pi.grad, expected, atol=6e-7, rtol=0)


def test_sampled_logprobs_are_those_of_a_plain_forward():
    """Left-padded steps over a key-value cache against one right-padded forward."""
    model = tiny_model()
    torch.manual_seed(0)
    asked = prompts("1 + 2 =", "a longer prompt: 12 + 30 =", "x", "9 - 9 =")
    answers = one_file.sample(model, asked, STOP, 6, 0.7)
    samples = [one_file.Sample(p, ids, lp) for p, (ids, lp) in zip(asked, answers, strict=True)]
    with torch.no_grad():
        logprobs, is_answer = one_file.answer_logprobs(model, samples, 0.7)
    for i, s in enumerate(samples):
        assert 1 <= len(s.answer_ids) <= 6
        np.testing.assert_allclose(logprobs[i, is_answer[i]].numpy(), s.behavior_logprobs, atol=2e-5)


def test_greedy_sampling_is_that_of_transformers():
    model = tiny_model()
    asked = prompts("7 + 7 =")
    ours, _ = one_file.sample(model, asked, STOP, 10, 0.0)[0]
    theirs = model.generate(torch.tensor(asked), max_new_tokens=10, do_sample=False)[0, len(asked[0]) :].tolist()
    assert ours == theirs


def test_an_answer_ends_with_the_stop_token():
    model = tiny_model()
    torch.manual_seed(0)
    answers = one_file.sample(model, prompts("5") * 200, STOP, 40, 1.5)
    stopped = [ids for ids, _ in answers if len(ids) < 40]
    assert stopped, "no sample of 200 stopped; raise the number"
    assert all(ids[-1] == STOP and STOP not in ids[:-1] for ids in stopped)


def chord_terms(mu: Schedule, token_weight: str) -> list[Term]:
    return [
        Term(loss=ClippedSurrogate(), source="live", weight=mu.complement()),
        Term(loss=NegativeLogLikelihood(token_weight=token_weight), source="expert", weight=mu),
    ]


def as_record(groups, experts) -> list[Group]:
    """The samples as the large system stores them."""
    record = []
    for g, members in enumerate(groups):
        trajectories = tuple(
            make_trajectory(
                group_id=f"g{g}",
                index=i,
                prompt=s.prompt_ids,
                answer=s.answer_ids,
                logprobs=s.behavior_logprobs,
                score=s.reward,
            )
            for i, s in enumerate(members)
        )
        record.append(Group(group_id=f"g{g}", prompt_id=f"p{g}", source=Source.LIVE, trajectories=trajectories))
    for e, s in enumerate(experts):
        expert = make_trajectory(
            group_id=f"e{e}", prompt=s.prompt_ids, answer=s.answer_ids, source=Source.EXPERT, score=None
        )
        record.append(Group(group_id=f"e{e}", prompt_id=f"pe{e}", source=Source.EXPERT, trajectories=(expert,)))
    return record


def objective_loss(model, groups, experts, mu: float, token_weight: str) -> torch.Tensor:
    """The same loss through `learner.objective`, from the log-probs of the same forward."""
    objective = Objective(chord_terms(Schedule(start=mu), token_weight))
    record = as_record(groups, experts)
    plan = objective.plan(record)
    members = [t for g in record for t in g.trajectories]
    columns = {name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in plan.columns.items()}
    columns["behavior_logprobs"] = torch.from_numpy(np.concatenate([t.behavior_logprobs for t in members]))
    logprobs, _ = one_file.answer_logprobs(model, [*(s for g in groups for s in g), *experts], 1.0)
    columns["logprobs"] = torch.cat([logprobs[i, : len(t.token_ids)] for i, t in enumerate(members)])
    return objective.loss(columns, step=0)[0]


@pytest.mark.parametrize("imitation", ["none", "phi", "probability"])
@pytest.mark.parametrize("scores", [((1.0, 0.0, 0.0), (1.0, 1.0, 0.0)), ((1.0, None, 0.0), (1.0, 1.0, 1.0))])
def test_agrees_with_the_large_systems_objective(imitation, scores):
    model = tiny_model()
    groups = sampled_groups(model, shift=0.4, scores=scores)
    gradients, losses = [], []
    for compute in (
        lambda: one_file.chord_loss(model, groups, EXPERTS, 0.3, settings(imitation=imitation)),
        lambda: objective_loss(model, groups, EXPERTS, 0.3, imitation),
    ):
        model.zero_grad()
        loss = compute()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    scale = gradients[0].abs().max().item()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize("imitation", ["none", "phi"])
def test_agrees_with_the_large_systems_trainer(imitation, tmp_path):
    """Three optimizer steps on the same data; the loss of a later step shows what the earlier ones did."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    chosen = settings(imitation=imitation, learning_rate=1e-3, warmup_steps=0, mu_steps=4, max_grad_norm=0.5)
    mu = Schedule(kind="cosine", start=chosen.mu_start, end=chosen.mu_end, steps=chosen.mu_steps)
    config = LearnerConfig(
        max_tokens_per_micro_batch=48, optimizer=OptimizerConfig(learning_rate=1e-3, max_grad_norm=0.5)
    )
    trainer = Trainer(config, chord_terms(mu, imitation), tmp_path, temperature=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    groups = sampled_groups(model, shift=0.3, scores=((1.0, 0.0, None), (1.0, 1.0, 0.0)))
    losses = []
    for step in range(3):
        ours = one_file.train_step(model, optimizer, groups, EXPERTS, step, chosen)
        theirs = trainer.step(as_record(groups, EXPERTS), step)
        assert theirs.loss == pytest.approx(ours["loss"], abs=2e-5), step
        assert theirs.grad_norm == pytest.approx(ours["grad_norm"], rel=1e-4), step
        live, expert = theirs.terms.values()
        assert live["loss"] == pytest.approx(ours["live_loss"], abs=2e-5)
        assert expert["loss"] == pytest.approx(ours["expert_loss"], abs=2e-5)
        assert theirs.num_micro_batches > 1
        losses.append(ours["loss"])
    assert abs(losses[2] - losses[0]) > 0.1, "the steps must move the loss by far more than the tolerance"


def test_a_step_does_not_depend_on_the_rows_per_pass():
    results = []
    for rows_per_pass in (1, 3, 100):
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        chosen = settings(rows_per_pass=rows_per_pass, learning_rate=0.1, warmup_steps=0, max_grad_norm=1e9)
        record = one_file.train_step(model, optimizer, sampled_groups(model, shift=0.3), EXPERTS, 7, chosen)
        results.append((record["loss"], torch.cat([p.detach().flatten() for p in model.parameters()])))
    for loss, parameters in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-6)
        torch.testing.assert_close(parameters, results[0][1], atol=1e-6, rtol=1e-5)
    assert not torch.equal(results[0][1], torch.cat([p.detach().flatten() for p in tiny_model().parameters()]))


def test_unjudged_answers_are_left_out():
    groups = [[one_file.Sample([1], [2], [-1.0], reward) for reward in (1.0, None, 0.0)]]
    rows = one_file.make_rows(groups, EXPERTS)
    assert [row.advantage for row in rows] == [
        pytest.approx(0.707106, abs=1e-6),
        pytest.approx(-0.707106, abs=1e-6),
        None,
        None,
    ]
    assert one_file.count_tokens(rows) == (2, 5)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [([1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024]), ([0.1] * 3, [0.0] * 3), ([1.0], [0.0]), ([], [])],
)
def test_advantages(rewards, expected):
    assert one_file.advantages(rewards) == pytest.approx(expected, abs=6e-7)


def test_mixture_is_the_schedule_of_the_config():
    schedule = Schedule(kind="cosine", start=0.9, end=0.05, steps=40)
    for step in (0, 1, 17, 40, 99):
        assert one_file.mixture(step, settings()) == pytest.approx(schedule.at(step), abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("12", 1), ("The answer is 12.", 1), ("7 + 5 = 12", 1), ("12 or 13", 0), ("-12", 0), ("", 0), ("8-12", 1)],
)
def test_reward(answer, right):
    assert one_file.reward(answer, one_file.Problem("q", "12")) == right
    assert one_file.reward("3 - 8 = -5", one_file.Problem("q", "-5")) == 1


def test_wilson_interval():
    low, high = one_file.wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert one_file.wilson_interval(0, 10)[0] == 0.0
    assert one_file.wilson_interval(10, 10)[1] == 1.0


def byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": STOP} | {symbol: i + 1 for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)


def test_a_short_run_learns_what_the_expert_shows(tmp_path):
    problems = [one_file.Problem(f"{a}+1", str(a + 1), str(a + 1), "covered") for a in range(4)]
    chosen = settings(
        steps=25,
        prompts=2,
        group_size=3,
        experts=4,
        max_new_tokens=3,
        learning_rate=3e-3,
        mu_steps=25,
        eval_every=0,
        out=str(tmp_path / "log.jsonl"),
    )
    log = one_file.train(tiny_model(vocab_size=257), byte_tokenizer(), problems, problems, chosen)
    assert log[24]["expert_loss"] < 0.2 * log[0]["expert_loss"]
    assert log[0]["accuracy"] <= 0.25  # random weights may repeat a digit of the question
    assert log[-1]["accuracy"] >= 0.75
    assert log[-1]["accuracy_covered_low"] < log[-1]["accuracy_covered"] <= log[-1]["accuracy_covered_high"]
    assert all(math.isfinite(record["loss"]) for record in log[:-1])
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log


def test_a_run_without_expert_needs_no_demonstrations():
    problems = [one_file.Problem("1+1", "2")]
    chosen = settings(steps=1, prompts=1, group_size=2, experts=0, max_new_tokens=2, mu_start=0.0, mu_end=0.0)
    log = one_file.train(tiny_model(vocab_size=257), byte_tokenizer(), problems, problems, chosen)
    assert log[0]["expert_loss"] == 0.0


def test_options_are_the_settings():
    parsed = one_file.parse_settings(["--steps", "3", "--learning-rate", "1e-4", "--imitation", "phi"])
    assert parsed == settings(steps=3, learning_rate=1e-4, imitation="phi")


def test_imports_nothing_of_the_system_but_tasks():
    names = set()
    for node in ast.walk(ast.parse(PATH.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    ours = {n for n in names if n.split(".")[0] in {"rewards", "learner", "actors", "orchestrator", "recipes"}}
    assert ours == {"rewards.arithmetic"}
    assert not names & {"ray", "vllm"}
