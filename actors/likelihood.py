"""How probable an answer makes what is known to be right, and how probable an answer is now; asked of the engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.config import LikelihoodConfig
from actors.engines.protocol import Engine
from actors.renderer import Renderer
from rewards.task import Task
from rewards.trajectory import Group, Trajectory
from rewards.verifiers.final_number import last_number
from rewards.verifiers.math_text import BOX

GAIN = "likelihood_gain"
"""Component of a verdict: nats the answer adds to the log-likelihood of the reference."""


class Likelihoods:
    """Measures under the policy that samples now; what does not fit into the engine's length is not measured.

    Args:
        max_tokens: longest sequence the engine scores.
    """

    def __init__(self, engine: Engine, renderer: Renderer, max_tokens: int) -> None:
        self._engine, self._renderer, self._max_tokens = engine, renderer, max_tokens

    async def understood(self, task: Task, donor: Trajectory) -> Trajectory:
        """The donor with `extras["understood"]`: mean probability of the reference's tokens behind prompt and donor.

        The donor's own answer (its last box or number) is cut off first, with what follows it, so that the reference
        stands in its place. Source: AMPO, SII-Enigma/AMPO; an arithmetic mean of probabilities.
        """
        if task.reference is None or donor.verdict is None:
            return donor
        start = donor.num_context_tokens
        text = self._renderer.decode(donor.token_ids[start:])
        reasoning = without_answer(text)
        logprobs = await self._of_reference(donor.token_ids[:start].tolist(), reasoning, task.reference)
        return donor if logprobs is None else _with_extra(donor, "understood", float(np.exp(logprobs).mean()))

    async def surest(self, donor: Trajectory) -> Trajectory:
        """The donor with `extras["logprob_now"]`: mean log-prob of its sampled tokens, nats per token."""
        if donor.verdict is None or len(donor.token_ids) > self._max_tokens:
            return donor
        logprobs = await self._engine.score(donor.token_ids.tolist())
        return _with_extra(donor, "logprob_now", float(logprobs[donor.sampled_mask].mean()))

    async def paid(self, task: Task, group: Group, config: LikelihoodConfig) -> Group:
        """The group whose scored members also earn the gain in log-likelihood of the reference behind their answer.

        score += weight * (log p(reference | prompt, answer) - log p(reference | prompt)) - cost, in nats, per token of
        the reference with `per_token`; an empty answer gains and costs nothing. `extras["overlap"]` is the share of
        the reference's words that the answer says already: it is how the gain is won without thinking.

        Source: RA3 (abstract; methods reconstructed), rationale rewarded by likelihood gain.
        """
        if task.reference is None:
            return group
        prompt = list(self._renderer.prompt_ids(task.messages))
        plain = await self._of_reference(prompt, "", task.reference)
        if plain is None:
            return group
        members = await asyncio.gather(*(self._paid(task.reference, t, plain, config) for t in group.trajectories))
        return replace(group, trajectories=tuple(members))

    async def _paid(
        self, reference: str, member: Trajectory, plain: np.ndarray, config: LikelihoodConfig
    ) -> Trajectory:
        verdict = member.verdict
        if verdict is None or verdict.score is None:
            return member
        start = member.num_context_tokens
        text = self._renderer.decode(member.token_ids[start:])
        gain, cost = 0.0, 0.0
        if text.strip():
            prefix = f"{text.rstrip()}{config.separator}"
            logprobs = await self._of_reference(member.token_ids[:start].tolist(), prefix, reference)
            if logprobs is None:
                return member
            size = len(plain) if config.per_token else 1
            gain, cost = float(logprobs.sum() - plain.sum()) / size, config.cost
        said, wanted = set(text.lower().split()), set(reference.lower().split())
        return member.with_verdict(
            replace(
                verdict,
                score=verdict.score + config.weight * gain - cost,
                components={**verdict.components, GAIN: gain},
                extras={**verdict.extras, "overlap": len(said & wanted) / max(len(wanted), 1)},
            )
        )

    async def _of_reference(self, prompt: Sequence[int], before: str, reference: str) -> np.ndarray | None:
        """[tokens of the reference] nats behind prompt and text; None where that is too long, or not all are finite."""
        head = self._renderer.answer_ids(before)[:-1] if before else []
        whole = self._renderer.answer_ids(before + reference)[:-1]
        start = next(
            (i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole))
        )
        if start == len(whole) or len(prompt) + len(whole) > self._max_tokens:
            return None
        logprobs = (await self._engine.score([*prompt, *whole]))[len(prompt) + start :]
        return logprobs if np.isfinite(logprobs).all() else None


def without_answer(text: str) -> str:
    """The text up to its last box, else up to its last number, else all of it."""
    boxes = list(BOX.finditer(text))
    last = boxes[-1] if boxes else last_number(text)
    return text if last is None else text[: last.start()]


def _with_extra(member: Trajectory, name: str, value: float) -> Trajectory:
    assert member.verdict is not None  # callers look
    extras: Mapping[str, Any] = {**member.verdict.extras, name: value if math.isfinite(value) else None}
    return member.with_verdict(replace(member.verdict, extras=dict(extras)))
