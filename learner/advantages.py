"""From the scores of a group to the advantages of its members. Pure; no gradient exists here.

Every function takes the scores [G] of one group and the members that are compared [G] (scored, and of the source
being trained). The others take no part in any statistic and get 0; what their scores hold is never read, so NaN is
fine. A group whose compared scores are all equal, and so also a group of one, teaches nothing: exactly 0 for every
function that subtracts a baseline. (Some implementations set mean 0 and deviation 1 for a group of one, which pushes
up any single answer with a positive reward.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
AdvantageFunction = Callable[[Float64Array, BoolArray], Float64Array]


def group_relative(scores: Float64Array, compared: BoolArray, *, eps: float = 1e-6) -> Float64Array:
    """(score - mean) / (std + eps), std with n - 1.

    Args:
        scores: [G] reward units; read only where compared.
        compared: [G] bool.

    Returns:
        [G] float64, in standard deviations of the group.

    Raises:
        ValueError: shapes differ, or a compared score is not finite.

    Source: GRPO, arXiv:2402.03300, section 4.1.2.
    """
    advantages = centered(scores, compared)
    if not advantages.any():
        return advantages
    return advantages / (scores[compared].std(ddof=1) + eps)


def centered(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """score - mean: no division, so hard and easy groups keep their own scale.

    Args, Returns, Raises: as `group_relative`; reward units.

    Source: Dr. GRPO, arXiv:2503.20783.
    """
    _check(scores, compared)
    advantages = np.zeros(len(scores))
    values = scores[compared]
    if len(values) and values.min() != values.max():  # equal scores: rounding of their mean must not teach
        advantages[compared] = values - values.mean()
    return advantages


def leave_one_out(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """score - mean of the other members' scores, an unbiased baseline.

    Args, Returns, Raises: as `group_relative`; reward units.

    Source: RLOO, arXiv:2402.14740.
    """
    advantages = centered(scores, compared)
    n = int(np.count_nonzero(compared))
    return advantages * (n / (n - 1)) if n > 1 else advantages


def score(scores: Float64Array, compared: BoolArray) -> Float64Array:
    """The score itself: no baseline, also for a group of one.

    Args, Returns, Raises: as `group_relative`; reward units.
    """
    _check(scores, compared)
    return np.where(compared, scores, 0.0)


ADVANTAGES: Mapping[str, AdvantageFunction] = {
    "group_relative": group_relative,
    "centered": centered,
    "leave_one_out": leave_one_out,
    "score": score,
}
"""Values of `Term.advantage`."""


def _check(scores: Float64Array, compared: BoolArray) -> None:
    if scores.ndim != 1 or scores.shape != compared.shape or compared.dtype != np.bool_:
        raise ValueError(
            f"scores and compared must be [G] float and [G] bool, got {scores.shape} and "
            f"{compared.shape} {compared.dtype}"
        )
    if not np.isfinite(scores[compared]).all():
        raise ValueError(f"compared scores must be finite, got {scores[compared].tolist()}; leave unscored members out")
