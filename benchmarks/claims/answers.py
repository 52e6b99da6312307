"""A softmax table as the policy and the real objective as its teacher: what a loss does when nothing is in the way.

A prompt is a number, an answer a string of tokens; the logits of a position are those of the prompt plus a row all
prompts share, through which they disturb each other. Sampling and the gradient step on the table are of this file;
advantages, masks, denominators, ratios and losses are the system's own. Success is computed where answers are one
token, and else from the probability of the one right string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from learner.config import Term
from learner.objective import Objective
from rewards.trajectory import Group, PolicyVersion, Role, Source, Trajectory, VersionSpan
from rewards.verdict import Verdict

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """[prompts, length, vocabulary] which tokens are right at each position; an answer is right if all of its are."""

    right: Bools

    def scores(self, prompt: int, tokens: Ints) -> Floats:
        """[n] 1 or 0 of [n, length] answers."""
        return np.asarray(self.right[prompt, np.arange(tokens.shape[1]), tokens].all(axis=1), np.float64)


class Table:
    """The policy: logits of its own for each prompt and a row all prompts share."""

    def __init__(self, first: Floats, *, shares: bool) -> None:
        """`first`: [prompts, length, vocabulary] logits at the start."""
        torch.set_num_threads(1)
        self.own = torch.tensor(first, requires_grad=True)
        self.shared = torch.zeros(first.shape[1:], dtype=torch.float64, requires_grad=shares)

    def log_table(self) -> torch.Tensor:
        """[prompts, length, vocabulary] log-probs, with gradient."""
        return torch.log_softmax(self.own + self.shared, dim=-1)

    def probabilities(self) -> Floats:
        return self.log_table().detach().exp().numpy()

    def success(self, answers: Answers) -> Floats:
        """[prompts] probability of a right answer."""
        return np.asarray((self.probabilities() * answers.right).sum(axis=2).prod(axis=1))

    def step(self, objective: Objective, groups: Sequence[Group], step: int, rate: float) -> None:
        """One step down the objective's gradient."""
        plan = objective.plan(groups)
        members = [t for group in groups for t in group.trajectories]
        mask = np.concatenate(plan.trained)
        if not mask.any():
            return
        prompts = np.concatenate([np.full(len(t.token_ids), t.token_ids[0]) for t in members])[mask]
        places = np.concatenate([np.arange(-1, len(t.token_ids) - 1) for t in members])[mask]
        tokens = np.concatenate([t.token_ids for t in members])[mask]
        columns = {
            name: torch.tensor(np.concatenate(arrays)[mask], dtype=torch.float64)
            for name, arrays in plan.columns.items()
        }
        behavior = np.concatenate([t.behavior_logprobs for t in members])[mask]
        columns["behavior_logprobs"] = torch.tensor(behavior, dtype=torch.float64)
        index = tuple(torch.tensor(array, dtype=torch.int64) for array in (prompts, places, tokens))
        if "reference_logprobs" in objective.needs:
            columns["reference_logprobs"] = self.reference[index]
        columns["logprobs"] = self.log_table()[index]
        loss, metrics = objective.loss(columns, step)
        objective.controls.observe(objective.report(plan, metrics, step))
        parameters = [p for p in (self.own, self.shared) if p.requires_grad]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= rate * gradient

    def freeze_reference(self) -> None:
        """The policy as it is now becomes the reference."""
        self.reference = self.log_table().detach().clone()


def sampled_group(
    group_id: str,
    prompt: int,
    log_table: Floats,
    answers: Answers,
    rng: np.random.Generator,
    *,
    size: int,
    source: Source = Source.LIVE,
) -> Group:
    """Answers drawn from a table of log-probs, with their log-probs and scores."""
    logs = log_table[prompt]
    length, vocabulary = logs.shape
    edges = np.exp(logs).cumsum(axis=1)
    tokens = (rng.random((size, length, 1)) > edges[None] / edges[None, :, -1:]).sum(axis=2).clip(max=vocabulary - 1)
    recorded = logs[np.arange(length), tokens]
    return group_of(group_id, prompt, tokens, answers.scores(prompt, tokens), recorded, source)


def group_of(
    group_id: str, prompt: int, tokens: Ints, scores: Floats, logprobs: Floats | None, source: Source
) -> Group:
    """[n, length] answers as a group; log-probs of None are unknown."""
    members = []
    for index, (answer, score) in enumerate(zip(tokens, scores, strict=True)):
        behavior = np.full(len(answer) + 1, np.nan, np.float32)
        if logprobs is not None:
            behavior[1:] = logprobs[index]
        members.append(
            Trajectory(
                trajectory_id=f"{group_id}/{index}",
                group_id=group_id,
                source=source,
                token_ids=np.array([prompt, *answer], np.int32),
                roles=np.array([Role.CONTEXT, *[Role.SAMPLED] * len(answer)], np.int8),
                behavior_logprobs=behavior,
                versions=(VersionSpan(1, len(answer) + 1, PolicyVersion(0)),) if source is Source.LIVE else None,
                verdict=Verdict.scored(float(score)),
            )
        )
    return Group(
        group_id=group_id,
        prompt_id=str(prompt),
        source=source,
        trajectories=tuple(members),
        num_asked=len(members),
    )


def pass_at(success: Floats, k: int) -> float:
    """Mean over prompts of the chance that one of k answers is right."""
    return float((1.0 - (1.0 - success) ** k).mean())


def train(
    table: Table,
    terms: Sequence[Term],
    answers: Answers,
    seed: int,
    *,
    steps: int,
    groups: int,
    size: int,
    rate: float,
    lag: int = 0,
    frozen: Sequence[Group] = (),
    frozen_per_step: int = 0,
    until: Callable[[], bool] = lambda: False,
) -> int:
    """Plain training: `groups` random prompts a step, sampled by the policy of `lag` steps ago.

    Args:
        frozen: groups of other sources, of which `frozen_per_step` random ones go into each batch.
        until: looked at after each step; ends the training.

    Returns:
        Steps taken.
    """
    rng = np.random.default_rng([seed, 7])
    objective = Objective(terms)
    table.freeze_reference()
    past: list[Floats] = []
    live = any(term.source == "live" for term in terms)
    for step in range(steps):
        past = [*past, table.log_table().detach().numpy().copy()][-(lag + 1) :]
        prompts = rng.integers(0, len(answers.right), groups) if live else ()
        batch = [sampled_group(f"{step}.{i}", int(p), past[0], answers, rng, size=size) for i, p in enumerate(prompts)]
        if frozen_per_step:
            batch += [frozen[i] for i in rng.integers(0, len(frozen), frozen_per_step)]
        table.step(objective, batch, step, rate)
        if until():
            return step + 1
    return steps
