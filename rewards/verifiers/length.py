"""Shapes the reward by the length of the answer in tokens."""

from __future__ import annotations

from rewards.task import Task
from rewards.verdict import Verdict

SAMPLE_FACTS = "sample"
"""Key of `task.metadata` under which the reward worker puts facts of the sample that its text does not tell:
`num_tokens` (tokens the policy sampled), `truncated` (a limit cut the answer) and `finish_reason`. A verifier of scope
`group` finds a list there, one entry per answer."""


def soft_overlong(answer: str, task: Task, *, max_tokens: int, buffer_tokens: int) -> Verdict:
    """Penalty in [-1, 0] that grows linearly over the last `buffer_tokens` before `max_tokens`.

    p(L) = 0 up to max - buffer, ((max - buffer) - L) / buffer up to max, -1 beyond. Scale it with the component's
    weight. A penalty on length teaches early stopping too: watch the share of truncated answers beside it.

    Raises:
        ValueError: the buffer is not in [1, max_tokens], or the sample's token count is not known.

    Source: DAPO, arXiv:2503.14476, soft overlong punishment.
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(f"soft_overlong: buffer_tokens={buffer_tokens} must lie in [1, max_tokens={max_tokens}]")
    num_tokens = _num_tokens(task, "soft_overlong")
    overlong = num_tokens - (max_tokens - buffer_tokens)
    return Verdict.scored(-min(max(overlong / buffer_tokens, 0.0), 1.0), extras={"num_tokens": num_tokens})


def target_length(answer: str, task: Task, *, target_tokens: int, max_tokens: int) -> Verdict:
    """1 - |L - target| / max, never below 0: highest at the target.

    Raises:
        ValueError: the target is not in [0, max_tokens], or the sample's token count is not known.
    """
    if not 0 <= target_tokens <= max_tokens or max_tokens < 1:
        raise ValueError(f"target_length: target_tokens={target_tokens} must lie in [0, max_tokens={max_tokens}]")
    num_tokens = _num_tokens(task, "target_length")
    score = max(1 - abs(num_tokens - target_tokens) / max_tokens, 0.0)
    return Verdict.scored(score, extras={"num_tokens": num_tokens})


def _num_tokens(task: Task, verifier: str) -> int:
    num_tokens = task.metadata.get(SAMPLE_FACTS, {}).get("num_tokens")
    if num_tokens is None:
        raise ValueError(
            f"{verifier}: task {task.task_id!r} carries no metadata[{SAMPLE_FACTS!r}]['num_tokens']; text alone "
            "does not tell the length in tokens. Score through RewardWorker, which adds it."
        )
    return num_tokens
