"""CHORD in one file: what Braid does, without Ray, vLLM or any of its packages.

A language model learns two-term arithmetic from two strands at once: its own answers, scored by whether the number is
right, and an expert's answers, imitated. The expert knows half of the problems (operands up to 59); the held-out
problems are half from there, half from where only the policy's own tries can teach.

    loss = (1 - mu) * clipped surrogate over own tokens + mu * weighted imitation over expert tokens,   mu: 0.9 -> 0.05

Each strand is divided by its own number of tokens, so the mix does not depend on how many of each a batch holds.

    python docs/one_file.py --model PATH_OR_NAME --steps 60

Everything is synchronous: sample, score, step, again. The large system does these at the same time, on many machines,
and has to keep track of who sampled what under which weights; the numbers it must arrive at are the ones here. Read
from `train` downwards. Tasks come from `rewards.arithmetic`; everything else is torch and transformers.
Source of the method: CHORD, arXiv:2508.11408.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A question, the number it asks for, and what the expert would say, if the expert knows."""

    question: str
    answer: str
    expert: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Sample:
    """One answer to a prompt, in tokens.

    `behavior_logprobs` are the log-probs under the weights and the temperature that sampled it: unknown for an expert.
    `reward` None means that nobody could judge the answer; such a sample is left out, which is not the same as 0.
    """

    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    behavior_logprobs: Sequence[float] = ()
    reward: float | None = None


@dataclass(frozen=True)
class Row:
    """What the loss needs of one sample. The advantage of an expert's row is None."""

    sample: Sample
    advantage: float | None


@dataclass(frozen=True)
class Settings:
    """The numbers of one run; every field is a command-line option of the same name."""

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    steps: int = field(default=60, metadata={"help": "optimizer steps"})
    prompts: int = field(default=8, metadata={"help": "problems sampled per step"})
    group_size: int = field(default=8, metadata={"help": "answers per problem"})
    experts: int = field(default=16, metadata={"help": "expert answers per step; 0 is pure reinforcement learning"})
    max_new_tokens: int = 12
    temperature: float = 1.0
    learning_rate: float = 5e-5
    warmup_steps: int = field(default=5, metadata={"help": "steps over which the learning rate climbs to its value"})
    max_grad_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    imitation: str = field(
        default="none", metadata={"choices": ("none", "phi", "probability"), "help": "weight of an expert's token"}
    )
    mu_start: float = 0.9
    mu_end: float = 0.05
    mu_steps: int = field(default=40, metadata={"help": "steps over which mu falls from start to end (cosine)"})
    rows_per_pass: int = field(default=16, metadata={"help": "sequences in one forward and backward"})
    eval_every: int = field(default=20, metadata={"help": "0 evaluates before and after only"})
    eval_problems: int = 200
    train_problems: int = 4096
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves torch's choice"})
    device: str = "cpu"
    seed: int = 0
    out: str = field(default="", metadata={"help": "JSONL file that gets one line per step"})


# ------------------------------------------------------------------------------------------------------ the whole run


def train(
    model: Any, tokenizer: Any, training: Sequence[Problem], heldout: Sequence[Problem], settings: Settings
) -> list[dict[str, float]]:
    """Evaluates, takes `settings.steps` steps, evaluates again; returns what was printed."""
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    live_problems = endless(training, settings.seed)
    expert_problems = endless([p for p in training if p.expert is not None], settings.seed + 1)
    log = []
    for step in range(settings.steps + 1):
        last = step == settings.steps
        record: dict[str, float] = {"step": step}
        if step == 0 or last or (settings.eval_every and step % settings.eval_every == 0):
            record |= evaluate(model, tokenizer, heldout, settings)
        if not last:
            began = time.monotonic()
            groups = roll_out(model, tokenizer, [next(live_problems) for _ in range(settings.prompts)], settings)
            experts = [demonstration(tokenizer, next(expert_problems)) for _ in range(settings.experts)]
            sampled = time.monotonic()
            record |= train_step(model, optimizer, groups, experts, step, settings)
            record |= {"sample_s": sampled - began, "train_s": time.monotonic() - sampled}
        log.append(record)
        print("  ".join(f"{key} {value:.4g}" for key, value in record.items()), flush=True)
        if settings.out:
            with Path(settings.out).open("a") as file:
                file.write(json.dumps(record) + "\n")
    return log


def endless(problems: Sequence[Problem], seed: int) -> Iterator[Problem]:
    """Every problem once in random order, then again in another order, for ever."""
    rng = random.Random(seed)
    while problems:
        yield from rng.sample(list(problems), len(problems))
    raise ValueError("there is no problem to draw; with --experts 0 no expert problem is needed")


def train_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Sample]],
    experts: Sequence[Sample],
    step: int,
    settings: Settings,
) -> dict[str, float]:
    """One optimizer step on the policy's groups and the expert's answers, in passes of a few rows each.

    The passes add up to the loss of the whole batch, because every pass divides by the batch's token counts.
    """
    mu = mixture(step, settings)
    rows = make_rows(groups, experts)
    counts = count_tokens(rows)
    model.train()
    optimizer.zero_grad(set_to_none=True)
    live_loss = expert_loss = 0.0
    for start in range(0, len(rows), settings.rows_per_pass):
        live, expert = losses_of_rows(model, rows[start : start + settings.rows_per_pass], counts, settings)
        ((1.0 - mu) * live + mu * expert).backward()
        live_loss, expert_loss = live_loss + live.item(), expert_loss + expert.item()
    grad_norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm))
    loss = (1.0 - mu) * live_loss + mu * expert_loss
    for parameters in optimizer.param_groups:
        parameters["lr"] = settings.learning_rate * min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    if math.isfinite(loss) and math.isfinite(grad_norm):
        optimizer.step()
    else:
        print(f"step {step} skipped: loss {loss}, gradient norm {grad_norm}")
    rewards = [s.reward for group in groups for s in group if s.reward is not None]
    return {
        "loss": loss,
        "live_loss": live_loss,
        "expert_loss": expert_loss,
        "mu": mu,
        "grad_norm": grad_norm,
        "reward_mean": sum(rewards) / len(rewards) if rewards else math.nan,
    }


# ---------------------------------------------------------------------------------------------------------- the loss


def chord_loss(
    model: Any,
    groups: Sequence[Sequence[Sample]],
    experts: Sequence[Sample],
    mu: float,
    settings: Settings | None = None,
) -> Tensor:
    """The loss of a whole batch in one padded forward: (1 - mu) * own + mu * expert."""
    rows = make_rows(groups, experts)
    live, expert = losses_of_rows(model, rows, count_tokens(rows), settings or Settings())
    return (1.0 - mu) * live + mu * expert


def losses_of_rows(
    model: Any, rows: Sequence[Row], counts: tuple[int, int], settings: Settings
) -> tuple[Tensor, Tensor]:
    """What these rows add to the two losses of the batch.

    own:     -min(r A, clip(r, 1 - low, 1 + high) A) per token, r = p_now / p_when_sampled
    expert:  -w log p per token, w = p (1 - p), p or 1, without gradient

    Args:
        counts: trained tokens of the policy and of the expert in the whole batch, not only in these rows.
    """
    logprobs, is_answer = answer_logprobs(model, [row.sample for row in rows], settings.temperature)
    shape, device = logprobs.shape, logprobs.device
    is_expert = torch.tensor([row.advantage is None for row in rows], device=device)[:, None].expand(shape)
    advantage = torch.tensor([row.advantage or 0.0 for row in rows], device=device)[:, None].expand(shape)
    behavior = torch.zeros(shape, device=device)
    for i, row in enumerate(rows):
        if row.advantage is not None:
            behavior[i, is_answer[i]] = torch.tensor(row.sample.behavior_logprobs, device=device)

    live_mask = is_answer & ~is_expert
    ratio = torch.where(live_mask, logprobs - behavior, 0.0).clamp(-20.0, 20.0).exp()
    bounded = ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    live = -(gain * live_mask).sum() / max(counts[0], 1)

    expert_mask = is_answer & is_expert
    chosen = torch.where(expert_mask, logprobs, 0.0)
    p = chosen.detach().exp()
    weight = {"none": torch.ones_like(p), "probability": p, "phi": p * (1.0 - p)}[settings.imitation]
    expert = -(weight * chosen * expert_mask).sum() / max(counts[1], 1)
    return live, expert


def answer_logprobs(model: Any, samples: Sequence[Sample], temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob of every token given those before it [B, T], and where the answer's tokens are [B, T] bool.

    Padding stands on the right, where no token of a sequence sees it. Column 0, which nothing predicts, is 0.
    """
    width = max(len(s.prompt_ids) + len(s.answer_ids) for s in samples)
    device = next(model.parameters()).device
    tokens = torch.zeros(len(samples), width, dtype=torch.long)
    is_token, is_answer = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    for i, s in enumerate(samples):
        start, end = len(s.prompt_ids), len(s.prompt_ids) + len(s.answer_ids)
        tokens[i, :end] = torch.tensor([*s.prompt_ids, *s.answer_ids])
        is_token[i, :end] = True
        is_answer[i, start:end] = True
    tokens, is_token, is_answer = tokens.to(device), is_token.to(device), is_answer.to(device)
    logits = model(input_ids=tokens, attention_mask=is_token.long(), use_cache=False).logits[:, :-1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    taken = logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(taken, (1, 0)), is_answer


def make_rows(groups: Sequence[Sequence[Sample]], experts: Sequence[Sample]) -> list[Row]:
    """The scored answers of the policy with their advantages, then the expert's."""
    rows = []
    for group in groups:
        scored = [s for s in group if s.reward is not None]
        rows += [Row(s, a) for s, a in zip(scored, advantages([s.reward or 0.0 for s in scored]), strict=True)]
    return rows + [Row(s, None) for s in experts]


def advantages(rewards: Sequence[float]) -> list[float]:
    """(reward - mean) / (std + 1e-6) within a group; 0 where all are equal or there is only one."""
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + 1e-6) for r in rewards]


def count_tokens(rows: Sequence[Row]) -> tuple[int, int]:
    """Answer tokens of the policy and of the expert."""
    live = sum(len(row.sample.answer_ids) for row in rows if row.advantage is not None)
    return live, sum(len(row.sample.answer_ids) for row in rows if row.advantage is None)


def mixture(step: int, settings: Settings) -> float:
    """mu at a 0-based step: half a cosine from start to end, then end."""
    progress = min(1.0, step / settings.mu_steps)
    return settings.mu_end + (settings.mu_start - settings.mu_end) * 0.5 * (1.0 + math.cos(math.pi * progress))


# ---------------------------------------------------------------------------------------------- sampling and judging


def roll_out(model: Any, tokenizer: Any, problems: Sequence[Problem], settings: Settings) -> list[list[Sample]]:
    """A group of scored answers to each problem."""
    prompts = [prompt_ids(tokenizer, p.question) for p in problems for _ in range(settings.group_size)]
    answers = sample(model, prompts, stop_id(tokenizer), settings.max_new_tokens, settings.temperature)
    size, groups = settings.group_size, []
    for i, problem in enumerate(problems):
        members = list(zip(prompts, answers, strict=True))[i * size : (i + 1) * size]
        groups.append(
            [
                Sample(prompt, ids, logprobs, reward(tokenizer.decode(ids, skip_special_tokens=True), problem))
                for prompt, (ids, logprobs) in members
            ]
        )
    return groups


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], stop: int, max_new_tokens: int, temperature: float
) -> list[tuple[list[int], list[float]]]:
    """An answer to each prompt and the log-probs it was drawn with; temperature 0 takes the likeliest token.

    Prompts are padded on the left, so that every sequence grows at the same column; the keys and values of earlier
    columns are kept. An answer ends with the stop token, which is part of it, or at the limit.
    """
    model.eval()
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    is_token = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    running = [True] * len(prompts)
    cache = None
    for _ in range(max_new_tokens):
        positions = (is_token.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens,
            attention_mask=is_token,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logprobs = torch.log_softmax(output.logits[:, -1].float() / (temperature or 1.0), dim=-1)
        tokens = torch.multinomial(logprobs.exp(), 1) if temperature else logprobs.argmax(-1, keepdim=True)
        taken = logprobs.gather(-1, tokens)
        for i, (token, logprob) in enumerate(zip(tokens[:, 0].tolist(), taken[:, 0].tolist(), strict=True)):
            if running[i]:
                answers[i][0].append(token)
                answers[i][1].append(logprob)
                running[i] = token != stop
        if not any(running):
            break
        is_token = torch.cat([is_token, torch.ones_like(tokens)], dim=-1)
    return answers


NUMBER = re.compile(r"(?<![\w)\]])-?\d+|\d+")
"""An integer; a minus sign after a digit or a bracket is an operator."""


def reward(answer: str, problem: Problem) -> float:
    """1 when the last number of the answer is the right one, else 0."""
    numbers = NUMBER.findall(answer)
    return float(bool(numbers) and int(numbers[-1]) == int(problem.answer))


def evaluate(model: Any, tokenizer: Any, problems: Sequence[Problem], settings: Settings) -> dict[str, float]:
    """Share of right greedy answers with its 95% interval, over all problems and over each kind of them."""
    right: dict[str, list[bool]] = {"": []}
    for start in range(0, len(problems), settings.rows_per_pass):
        batch = problems[start : start + settings.rows_per_pass]
        prompts = [prompt_ids(tokenizer, p.question) for p in batch]
        answers = sample(model, prompts, stop_id(tokenizer), settings.max_new_tokens, temperature=0.0)
        for problem, (ids, _) in zip(batch, answers, strict=True):
            is_right = reward(tokenizer.decode(ids, skip_special_tokens=True), problem) > 0
            for kind in {"", problem.kind}:
                right.setdefault(kind, []).append(is_right)
    result = {}
    for kind, values in sorted(right.items()):
        if values:
            low, high = wilson_interval(sum(values), len(values))
            name = f"accuracy_{kind}" if kind else "accuracy"
            result |= {name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high}
    return result


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95% score interval of a share."""
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (centre - half if right else 0.0), (centre + half if right < n else 1.0)


# ------------------------------------------------------------------------------------------------ text, tasks, options


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """The chat up to where the model answers; the template writes all special tokens itself."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def demonstration(tokenizer: Any, problem: Problem) -> Sample:
    """The expert's answer as the policy would have sampled it, with the token that ends it."""
    answer = list(tokenizer(problem.expert, add_special_tokens=False)["input_ids"])
    return Sample(prompt_ids(tokenizer, problem.question), [*answer, stop_id(tokenizer)])


def stop_id(tokenizer: Any) -> int:
    """The token that ends an answer: for chat models whose template ends turns with it."""
    return int(tokenizer.eos_token_id)


def load_problems(settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems, the same as those of the large system for the same seed."""
    from rewards.arithmetic import arithmetic_tasks

    def problem(task: Any) -> Problem:
        expert = task.expert[0].text if task.expert else None
        return Problem(task.prompt, task.reference, expert, task.tags["coverage"])

    tasks = arithmetic_tasks(num_train=settings.train_problems, num_heldout=settings.eval_problems, seed=settings.seed)
    return [problem(t) for t in tasks.train], [problem(t) for t in tasks.heldout]


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, spec in Settings.__dataclass_fields__.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(spec.default), default=spec.default, **spec.metadata)
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = parse_settings(arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    training, heldout = load_problems(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    model.to(settings.device)
    train(model, tokenizer, training, heldout, settings)


if __name__ == "__main__":
    main()
