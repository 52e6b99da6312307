"""Advantages and targets of single tokens, from rewards and the values a critic gives. Pure numpy.

An episode is the trained tokens of one trajectory in order: prompt, tool output and padding are passed over, so that
the value behind a token is that of the next token the policy chose. Behind the last one it is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learner.advantages import BoolArray, Float64Array
from rewards.trajectory import Float32Array


@dataclass(frozen=True, slots=True)
class Episode:
    """The n trained tokens of one trajectory.

    Attributes:
        rewards: [n] reward units, of each token.
        values: [n] reward units, the critic's expectation before each token.
        ratios: [n] probability of each token at the start of the update over that of the sampling policy.
        taken_gaps, greedy_gaps: [n] nats from the policy's likeliest token down to the one taken, and to the one the
            reference finds likeliest; None where no target reads them.
    """

    rewards: Float64Array
    values: Float64Array
    ratios: Float64Array
    taken_gaps: Float64Array | None = None
    greedy_gaps: Float64Array | None = None


Returns = tuple[Float64Array, Float64Array]
"""[n] advantages and [n] targets of the critic."""


def gae(episode: Episode, *, discount: float = 1.0, trace: float = 0.95) -> Returns:
    """Generalised advantages: exponentially weighted sums of the steps' surprises.

    delta_t = R_t + discount V_{t+1} - V_t;  A_t = delta_t + discount trace A_{t+1};  target = A + V

    Source: arXiv:1506.02438.
    """
    following = np.append(episode.values[1:], 0.0)
    surprises = episode.rewards + discount * following - episode.values
    advantages = np.zeros(len(surprises))
    carried = 0.0
    for t in reversed(range(len(surprises))):
        advantages[t] = carried = surprises[t] + discount * trace * carried
    return advantages, advantages + episode.values


def v_trace(
    episode: Episode, *, discount: float = 1.0, trace: float = 1.0, rho_max: float = 1.0, trace_max: float = 1.0
) -> Returns:
    """Values and advantages of the current policy from samples of an older one.

    rho = min(rho_max, ratio), c = trace min(trace_max, ratio);  delta_t = rho_t (R_t + discount V_{t+1} - V_t)
    target_t = V_t + delta_t + discount c_t (target_{t+1} - V_{t+1})
    A_t = rho_t (R_t + discount target_{t+1} - V_t)

    The ratio is in the advantage already, so a loss that forms none goes with it (`policy_gradient`).

    Source: IMPALA, arXiv:1802.01561, section 4.1.
    """
    rho, carry = np.minimum(rho_max, episode.ratios), trace * np.minimum(trace_max, episode.ratios)
    following = np.append(episode.values[1:], 0.0)
    surprises = rho * (episode.rewards + discount * following - episode.values)
    corrections = np.zeros(len(surprises))
    carried = 0.0
    for t in reversed(range(len(surprises))):
        corrections[t] = carried = surprises[t] + discount * carry[t] * carried
    targets = episode.values + corrections
    advantages = rho * (episode.rewards + discount * np.append(targets[1:], 0.0) - episode.values)
    return advantages, targets


def conservative(episode: Episode, *, discount: float = 1.0, scale: float = 1.0) -> Returns:
    """One-step targets that believe in the reference's next token, never in the best one the critic can imagine.

    Q(s, a) = V(s) + scale (ln p(a | s) - max ln p(. | s))
    target_t = R_t + discount Q(s_{t+1}, the reference's likeliest token) - (Q - V)(s_t, a_t);  A = target - V

    Raises:
        ValueError: the episode has no gaps.

    Source: B-Coder, arXiv:2310.03173, with the policy's log-probs as logits and without a frozen part of the value.
    """
    if episode.taken_gaps is None or episode.greedy_gaps is None:
        raise ValueError("conservative targets need the gaps of an episode, got None")
    believed = episode.values + scale * episode.greedy_gaps
    targets = episode.rewards + discount * np.append(believed[1:], 0.0) - scale * episode.taken_gaps
    return targets - episode.values, targets


RETURNS: Mapping[str, Callable[..., Returns]] = {"gae": gae, "v_trace": v_trace, "conservative": conservative}
"""Values of `CriticConfig.target`, and but for the last of `Term.advantage`."""


def episodes(
    masks: Sequence[BoolArray],
    scores: Sequence[float | None],
    values: Sequence[Float32Array],
    ratios: Sequence[Float32Array] | None = None,
    token_rewards: Sequence[Float32Array] | None = None,
    gaps: tuple[Sequence[Float32Array], Sequence[Float32Array]] | None = None,
) -> list[Episode | None]:
    """One per trajectory with a chosen token; its score is the reward of the last of them.

    Args:
        masks: [T] per trajectory, the tokens of the episode.
        values, ratios, token_rewards: [T] per trajectory, known where masked; ratios of None are 1. The last are added
            to the score.
        gaps: taken and greedy, likewise.
    """
    found: list[Episode | None] = []
    for index, (mask, score, column) in enumerate(zip(masks, scores, values, strict=True)):
        if not mask.any() or score is None:
            found.append(None)
            continue
        rewards = np.zeros(int(mask.sum()))
        if token_rewards is not None:
            rewards += token_rewards[index][mask]
        rewards[-1] += score
        ratio = np.ones(len(rewards)) if ratios is None else ratios[index][mask].astype(np.float64)
        own_gaps = () if gaps is None else (column[index][mask].astype(np.float64) for column in gaps)
        found.append(Episode(rewards, column[mask].astype(np.float64), ratio, *own_gaps))
    return found
