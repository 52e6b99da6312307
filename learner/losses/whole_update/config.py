"""Parameters of losses that read a statistic of all tokens of the update."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from learner.losses.base.config import LossParams, Need


class CovarianceClippedSurrogate(LossParams):
    """Clipped surrogate without a few tokens whose log-prob and advantage go together (Clip-Cov)."""

    name: Literal["covariance_clipped_surrogate"] = "covariance_clipped_surrogate"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Ratios below 1 - clip_low earn nothing more by falling."""
    clip_high: float = Field(default=0.2, gt=0)
    """Ratios above 1 + clip_high earn nothing more by growing."""
    share: float = Field(default=2e-4, gt=0, le=1)
    """Of all tokens of the update, left out; at least one."""
    low: float = 1.0
    """Covariance above which a token may be left out."""
    high: float = 5.0
    """Covariance below which a token may be left out."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})
    statistic: ClassVar[str | None] = "covariance_band"
    statistic_fields: ClassVar[frozenset[str]] = frozenset({"share", "low", "high"})


class CovariancePenaltySurrogate(LossParams):
    """Surrogate without bounds; tokens of the largest covariance pay for their distance (KL-Cov)."""

    name: Literal["covariance_penalty_surrogate"] = "covariance_penalty_surrogate"
    penalty: float = Field(default=1.0, ge=0)
    """Per nat of distance."""
    share: float = Field(default=2e-4, gt=0, le=1)
    """Of all tokens of the update, that pay; at least one."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})
    statistic: ClassVar[str | None] = "covariance_top"
    statistic_fields: ClassVar[frozenset[str]] = frozenset({"share"})


class QuotientClippedSurrogate(LossParams):
    """Clipped surrogate whose bounds move with the weight of good beside bad tokens (BAPO)."""

    name: Literal["quotient_clipped_surrogate"] = "quotient_clipped_surrogate"
    target: float = Field(default=0.5, gt=0)
    """Wanted sum over good tokens by that over bad ones."""
    low: float = Field(default=0.6, gt=0)
    """Lower bound of the ratio to begin with."""
    low_max: float = Field(default=0.8, gt=0)
    """Largest lower bound."""
    high: float = Field(default=1.2, gt=1)
    """Upper bound of the ratio to begin with."""
    high_max: float = Field(default=2.0, gt=1)
    """Largest upper bound."""
    increment: float = Field(default=0.05, gt=0)
    """Step of either bound."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Bounds the loss of negative-advantage tokens whose ratio explodes."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})
    statistic: ClassVar[str | None] = "quotient_bounds"
    statistic_fields: ClassVar[frozenset[str]] = frozenset(
        {"target", "low", "low_max", "high", "high_max", "increment"}
    )


class MomentClippedSurrogate(LossParams):
    """Clipped surrogate whose bounds keep the squared log-ratios of harmful tokens within a budget (M2PO)."""

    name: Literal["moment_clipped_surrogate"] = "moment_clipped_surrogate"
    budget: float = Field(default=0.04, gt=0)
    """Squared nats, mean over the harmful tokens of the update."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})
    statistic: ClassVar[str | None] = "moment_bounds"
    statistic_fields: ClassVar[frozenset[str]] = frozenset({"budget"})


class OptimalBaselineGradient(LossParams):
    """REINFORCE with the baseline of least variance at each position of a group (OTB); advantage "score"."""

    name: Literal["optimal_baseline_gradient"] = "optimal_baseline_gradient"
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})
    silent_without_advantage: ClassVar[bool] = False
    statistic: ClassVar[str | None] = "optimal_token_baseline"
    reads_vocabulary: ClassVar[bool] = True


class ProtectedSurrogate(LossParams):
    """Keeps unlikely tokens that stand out from the noise from being pushed down (Lp-Reg)."""

    name: Literal["protected_surrogate"] = "protected_surrogate"
    clip_low: float = Field(default=1.0, gt=0, le=1)
    """Ratios below 1 - clip_low earn nothing more by falling."""
    clip_high: float = Field(default=9.0, gt=0)
    """Ratios above 1 + clip_high earn nothing more by growing."""
    penalty: float = Field(default=1.0, ge=0)
    """Factor of the distance to the denoised policy."""
    share: float = Field(default=0.01, gt=0, le=1)
    """Of all tokens of the update, counted as unlikely."""
    min_ratio: float = Field(default=0.02, gt=0, lt=1)
    """A token belongs to the denoised policy from this share of the largest probability on."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})
    statistic: ClassVar[str | None] = "low_probability"
    statistic_fields: ClassVar[frozenset[str]] = frozenset({"share", "min_ratio"})
    reads_vocabulary: ClassVar[bool] = True


class EntropyWeightedLikelihood(LossParams):
    """Imitation that counts less while the policy is uncertain (SRFT)."""

    name: Literal["entropy_weighted_likelihood"] = "entropy_weighted_likelihood"
    factor: float = Field(default=0.5, gt=0)
    """Weight of imitation at entropy 0."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    statistic: ClassVar[str | None] = "mean_entropy"
    reads_vocabulary: ClassVar[bool] = True


class EntropyWeightedPolicyGradient(LossParams):
    """REINFORCE in which successes count more while the policy is uncertain (SRFT)."""

    name: Literal["entropy_weighted_policy_gradient"] = "entropy_weighted_policy_gradient"
    factor: float = Field(default=0.1, gt=0)
    """Weight of a success at entropy 0; a failure weighs 1."""
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})
    statistic: ClassVar[str | None] = "mean_entropy"
    reads_vocabulary: ClassVar[bool] = True


class OneTokenRollout(LossParams):
    """Imitation as one-step reinforcement learning on tokens the policy draws itself (OTR)."""

    name: Literal["one_token_rollout"] = "one_token_rollout"
    draws: int = Field(ge=1)
    """Tokens drawn at each position; without default, because the paper's number is not confirmed."""
    miss_reward: float
    """Reward of a drawn token that is not the expert's, beside 1 for one that is."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    statistic: ClassVar[str | None] = "token_hits"
    statistic_fields: ClassVar[frozenset[str]] = frozenset({"draws"})
