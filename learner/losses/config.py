"""Parameters of the loss functions and what each one needs; `learner.config` hands them on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from learner.losses.base.config import Level, LossParams, Need
from learner.losses.distillation.config import OnPolicyDistillation, TeacherDivergence
from learner.losses.whole_update.config import (
    CovarianceClippedSurrogate,
    CovariancePenaltySurrogate,
    EntropyWeightedLikelihood,
    EntropyWeightedPolicyGradient,
    MomentClippedSurrogate,
    OneTokenRollout,
    OptimalBaselineGradient,
    ProtectedSurrogate,
    QuotientClippedSurrogate,
)


class ClippedSurrogate(LossParams):
    """Policy-gradient surrogate with separate ratio bounds (PPO; DAPO's clip-higher)."""

    name: Literal["clipped_surrogate"] = "clipped_surrogate"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Ratios below 1 - clip_low earn nothing more by falling."""
    clip_high: float = Field(default=0.2, gt=0)
    """Ratios above 1 + clip_high earn nothing more by growing."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bounds the loss of negative-advantage tokens whose ratio explodes; None is plain PPO."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class RatioSurrogate(LossParams):
    """Importance ratio times advantage, without any bound."""

    name: Literal["ratio_surrogate"] = "ratio_surrogate"
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class RecentredSurrogate(LossParams):
    """Clip on the ratio to an old policy, with bounds around the policy the update starts from (ReMix)."""

    name: Literal["recentred_surrogate"] = "recentred_surrogate"
    clip: float = Field(default=0.2, gt=0)
    """Half the width between the bounds."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class SoftGateSurrogate(LossParams):
    """A sigmoid of the ratio in place of the clip (SAPO)."""

    name: Literal["soft_gate_surrogate"] = "soft_gate_surrogate"
    temperature_positive: float = Field(default=1.0, gt=0)
    """Steepness where the advantage is positive."""
    temperature_negative: float = Field(default=1.05, gt=0)
    """Steepness elsewhere."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class InverseRatioSurrogate(LossParams):
    """Tokens of positive advantage weigh the inverse of their ratio (ASPO)."""

    name: Literal["inverse_ratio_surrogate"] = "inverse_ratio_surrogate"
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """Tokens of negative advantage are left out below 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """Tokens of positive advantage are left out above 1 + clip_high."""
    max_weight: float = Field(default=3.0, gt=1)
    """Cap of the inverse ratio; the gradient stays."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Bounds the loss of negative-advantage tokens whose ratio explodes."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class SequenceSurrogate(LossParams):
    """Clipped surrogate on the ratio of the whole sequence (GSPO)."""

    name: Literal["sequence_surrogate"] = "sequence_surrogate"
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    """Ratios below 1 - clip_low earn nothing more by falling."""
    clip_high: float = Field(default=4e-4, gt=0)
    """Ratios above 1 + clip_high earn nothing more by growing."""
    level: Literal["geometric", "product"] = "geometric"
    """Geometric mean, close to 1, or product of the tokens' ratios, unbiased and wild."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class GeometricMeanSurrogate(LossParams):
    """Geometric mean of the sequence's ratios, each clipped before (GMPO)."""

    name: Literal["geometric_mean_surrogate"] = "geometric_mean_surrogate"
    clip_low: float = Field(default=0.4, gt=0)
    """Nats a log-ratio may lie below 0."""
    clip_high: float = Field(default=0.4, gt=0)
    """Nats a log-ratio may lie above 0."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})

    @property
    def couples_tokens(self) -> bool:
        return True


class PolicyGradient(LossParams):
    """Advantage times log-prob, no ratio (REINFORCE)."""

    name: Literal["policy_gradient"] = "policy_gradient"
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})


class WeightedPolicyGradient(LossParams):
    """REINFORCE under a bounded importance ratio without gradient (CISPO, TOPR, truncated importance sampling)."""

    name: Literal["weighted_policy_gradient"] = "weighted_policy_gradient"
    ratio_min: float = Field(default=0.0, ge=0)
    """Smallest weight."""
    ratio_max: float = Field(default=2.0, gt=0)
    """Largest weight."""
    level: Level = "token"
    """Whose ratio."""
    positive_unweighted: bool = False
    """Weight 1 where the advantage is positive (TOPR)."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class DivergenceMaskedPolicyGradient(LossParams):
    """REINFORCE without the tokens whose probability has moved far (DPPO)."""

    name: Literal["divergence_masked_policy_gradient"] = "divergence_masked_policy_gradient"
    max_rise: float = Field(default=0.2, gt=0, le=1)
    """What a token of positive advantage may have gained: probability, or nats with divergence "kl"."""
    max_fall: float = Field(default=0.2, gt=0, le=1)
    """What another token may have lost."""
    divergence: Literal["tv", "kl"] = "tv"
    """Total variation or KL divergence, of the token against all others."""
    ratio_max: float = Field(default=20.0, gt=0)
    """Largest weight."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class ShapedLikelihood(LossParams):
    """Advantage on expert answers whose probabilities are unknown (LUFFY)."""

    name: Literal["shaped_likelihood"] = "shaped_likelihood"
    shaping: float | None = Field(default=0.1, gt=0)
    """c of P / (P + c): the smaller, the more an unlikely token counts; None takes P itself (SRFT)."""
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})


class ShapedRatio(LossParams):
    """Advantage on replayed answers with recorded log-probs (ExGRPO)."""

    name: Literal["shaped_ratio"] = "shaped_ratio"
    shaping: float = Field(default=0.1, gt=0)
    """c of r / (r + c)."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class MixtureRatio(LossParams):
    """Advantage on expert answers under the ratio to a mixture (RL-PLUS)."""

    name: Literal["mixture_ratio"] = "mixture_ratio"
    exploration: float = Field(default=0.5, ge=0)
    """Power of 1 - P by which unlikely tokens count more."""
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})


class NegativeLogLikelihood(LossParams):
    """Imitation of the tokens as they are, optionally weighted per token by the current probability (CHORD)."""

    name: Literal["negative_log_likelihood"] = "negative_log_likelihood"
    token_weight: Literal["none", "phi", "probability", "power"] = "none"
    """none: 1; phi: p(1-p); probability: p; power: p^exponent, each without gradient."""
    exponent: float = 0.0
    """Of token_weight "power" only: below 0 unlikely tokens count more, above 0 less."""
    needs: ClassVar[frozenset[Need]] = frozenset()


class KLToReference(LossParams):
    """KL estimate to a frozen reference as a penalty in the loss; for fresh samples of the policy itself."""

    name: Literal["kl_to_reference"] = "kl_to_reference"
    estimator: Literal["k1", "k2", "k3", "k3+"] = "k3"
    """k1: d, k2: d^2/2, k3: exp(-d)+d-1 with d the log-ratio; k3+: the value of k3 with the gradient of k2."""
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logprobs"})


class ImportanceWeightedKL(LossParams):
    """KL penalty weighted by the importance ratio, for samples of an older policy."""

    name: Literal["importance_weighted_kl"] = "importance_weighted_kl"
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "reference_logprobs"})


class SquaredLogRatio(LossParams):
    """Half the squared log-ratio to the sampling policy (DRO per token, Kimi k1.5 per sequence)."""

    name: Literal["squared_log_ratio"] = "squared_log_ratio"
    level: Literal["token", "product"] = "token"
    """Square of each token's log-ratio, or of the sequence's sum."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs"})


class RatioVariance(LossParams):
    """Second moment of the ratio around 1 (R2VPO)."""

    name: Literal["ratio_variance"] = "ratio_variance"
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs"})


class RehearsalDivergence(LossParams):
    """Divergence to a frozen policy on its own stored samples (DPH-RL)."""

    name: Literal["rehearsal_divergence"] = "rehearsal_divergence"
    generator: Literal["forward", "js", "alpha"] = "forward"
    """Forward KL, Jensen-Shannon, or the alpha family."""
    alpha: float = Field(default=0.2, gt=0, lt=1)
    """Of generator "alpha" only."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs"})


class EntropyBonus(LossParams):
    """Negative entropy of the policy: a positive weight keeps the policy exploring."""

    name: Literal["entropy_bonus"] = "entropy_bonus"
    needs: ClassVar[frozenset[Need]] = frozenset({"entropy"})


class GroupLossParams(LossParams):
    """Base of the losses over whole groups; most are meant for aggregation "sequence"."""

    couples_groups: ClassVar[bool] = True
    silent_without_advantage: ClassVar[bool] = False


class GroupRegression(GroupLossParams):
    """Centred sequence log-ratio regressed on the centred score (GVPO)."""

    name: Literal["group_regression"] = "group_regression"
    beta: float = Field(default=0.1, gt=0)
    """Reward units per nat of log-ratio."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class ContrastivePolicyGradient(GroupLossParams):
    """Squared differences of the members' regularised scores (CoPG)."""

    name: Literal["contrastive_policy_gradient"] = "contrastive_policy_gradient"
    beta: float = Field(default=0.5, gt=0)
    """Reward units per nat of distance to the reference."""
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logprobs", "scores"})


class OutcomeClassification(GroupLossParams):
    """The log-ratio of an answer predicts whether it is right (PACS)."""

    name: Literal["outcome_classification"] = "outcome_classification"
    beta: float = Field(default=1.0, gt=0)
    """Logits per nat of log-ratio."""
    threshold: float = 0.5
    """An answer with a larger score is right; goes with advantage "score"."""
    baseline: Literal["leave_one_out", "none"] = "leave_one_out"
    """What is subtracted from a member's log-ratio: the mean of the others, or nothing."""
    balanced: bool = True
    """Right and wrong answers of a group weigh the same together."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})


class GroupPreference(GroupLossParams):
    """Winners of a group over its losers, and winners alike (GEPO, the preference part of OORL)."""

    name: Literal["group_preference"] = "group_preference"
    beta: float = Field(default=1.0, gt=0)
    """Logits per nat of difference."""
    variance_weight: float = Field(default=1.0, ge=0)
    """Factor of the variance among winners."""
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logprobs", "scores"})


class TiltedTargetGradient(GroupLossParams):
    """Matching of the reference tilted by the score (GDC, f-DPG); advantage "score"."""

    name: Literal["tilted_target_gradient"] = "tilted_target_gradient"
    beta: float = Field(default=1.0, gt=0)
    """Reward units per nat: the smaller, the farther the target lies from the reference."""
    divergence: Literal["kl", "reverse_kl", "js", "tv", "chi2", "reverse_chi2"] = "reverse_kl"
    """kl: KL(target || policy), covers; reverse_kl: RL with a KL penalty, seeks a mode; the others lie between."""
    max_slope: float = Field(default=100.0, gt=0)
    """Largest slope of the divergence, which some lose where the policy all but lost a sequence."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "reference_logprobs", "scores"})


class PairwisePreference(GroupLossParams):
    """Better over worse members through log-ratios to the reference (DPO, IPO)."""

    name: Literal["pairwise_preference"] = "pairwise_preference"
    beta: float = Field(default=0.1, gt=0)
    """Logits per nat (logistic); half the inverse of the wanted difference (squared)."""
    form: Literal["logistic", "squared"] = "logistic"
    """logistic: DPO, on sums over the sequence. squared: IPO, on means."""
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logprobs", "scores"})


class OddsRatioPreference(GroupLossParams):
    """Imitation of the better member and its odds against the worse, without reference (ORPO)."""

    name: Literal["odds_ratio_preference"] = "odds_ratio_preference"
    beta: float = Field(default=0.1, gt=0)
    """Factor of the odds beside the imitation."""
    needs: ClassVar[frozenset[Need]] = frozenset({"scores"})


class ProspectPreference(LossParams):
    """Good answers above a reference point, bad ones below (KTO)."""

    name: Literal["prospect_preference"] = "prospect_preference"
    beta: float = Field(default=0.1, gt=0)
    """Logits per nat."""
    reference_point: float | None = None
    """Nats; None takes the mean log-ratio of all answers of the update, not below 0."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Of answers with a positive advantage."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Of the others."""
    needs: ClassVar[frozenset[Need]] = frozenset({"reference_logprobs", "scores"})
    silent_without_advantage: ClassVar[bool] = False
    statistic: ClassVar[str | None] = "prospect_point"
    statistic_fields: ClassVar[frozenset[str]] = frozenset({"reference_point"})

    @property
    def couples_tokens(self) -> bool:
        return True


class TraceWeightedPolicyGradient(LossParams):
    """REINFORCE under the truncated ratios of a token and all behind it (V-trace with the baseline as value)."""

    name: Literal["trace_weighted_policy_gradient"] = "trace_weighted_policy_gradient"
    ratio_max: float = Field(default=1.0, gt=0)
    """Bound of each ratio in the product."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})

    @property
    def couples_tokens(self) -> bool:
        return True


class BehaviorKL(LossParams):
    """KL to the policy that sampled, from its samples (MDPO)."""

    name: Literal["behavior_kl"] = "behavior_kl"
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs"})


class LogRatioRegression(LossParams):
    """The log-ratio to the policy that sampled, regressed on the advantage (ROVER)."""

    name: Literal["log_ratio_regression"] = "log_ratio_regression"
    temperature: float = Field(default=1.0, gt=0)
    """Reward units per nat of log-ratio."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "scores"})
    silent_without_advantage: ClassVar[bool] = False


Loss = Annotated[
    ClippedSurrogate
    | RatioSurrogate
    | RecentredSurrogate
    | SoftGateSurrogate
    | InverseRatioSurrogate
    | SequenceSurrogate
    | GeometricMeanSurrogate
    | PolicyGradient
    | WeightedPolicyGradient
    | DivergenceMaskedPolicyGradient
    | NegativeLogLikelihood
    | ShapedLikelihood
    | ShapedRatio
    | MixtureRatio
    | KLToReference
    | ImportanceWeightedKL
    | SquaredLogRatio
    | RatioVariance
    | RehearsalDivergence
    | EntropyBonus
    | GroupRegression
    | ContrastivePolicyGradient
    | OutcomeClassification
    | GroupPreference
    | PairwisePreference
    | OddsRatioPreference
    | ProspectPreference
    | CovarianceClippedSurrogate
    | CovariancePenaltySurrogate
    | QuotientClippedSurrogate
    | MomentClippedSurrogate
    | OptimalBaselineGradient
    | ProtectedSurrogate
    | EntropyWeightedLikelihood
    | EntropyWeightedPolicyGradient
    | OneTokenRollout
    | OnPolicyDistillation
    | TeacherDivergence
    | TraceWeightedPolicyGradient
    | BehaviorKL
    | TiltedTargetGradient
    | LogRatioRegression,
    Field(discriminator="name"),
]
