"""What is optimised and how: loss terms with their needs, schedules, optimizer, learner group."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from learner.companions.config import CriticConfig, ReferenceConfig, ResetConfig, TeacherConfig
from learner.losses.config import (
    BehaviorKL,
    ClippedSurrogate,
    ContrastivePolicyGradient,
    CovarianceClippedSurrogate,
    CovariancePenaltySurrogate,
    DivergenceMaskedPolicyGradient,
    EntropyBonus,
    EntropyWeightedLikelihood,
    EntropyWeightedPolicyGradient,
    GeometricMeanSurrogate,
    GroupPreference,
    GroupRegression,
    ImportanceWeightedKL,
    InverseRatioSurrogate,
    KLToReference,
    Level,
    Loss,
    LossParams,
    MixtureRatio,
    MomentClippedSurrogate,
    Need,
    NegativeLogLikelihood,
    OddsRatioPreference,
    OneTokenRollout,
    OnPolicyDistillation,
    OptimalBaselineGradient,
    OutcomeClassification,
    PairwisePreference,
    PolicyGradient,
    ProspectPreference,
    ProtectedSurrogate,
    QuotientClippedSurrogate,
    RatioSurrogate,
    RatioVariance,
    RecentredSurrogate,
    RehearsalDivergence,
    SequenceSurrogate,
    ShapedLikelihood,
    ShapedRatio,
    SoftGateSurrogate,
    SquaredLogRatio,
    TeacherDivergence,
    TiltedTargetGradient,
    TraceWeightedPolicyGradient,
    WeightedPolicyGradient,
)
from learner.schedules.config import Controller, Schedule
from rewards.config import Section, SourceName

__all__ = [
    "AdvantageName",
    "BehaviorKL",
    "ClippedSurrogate",
    "ContrastivePolicyGradient",
    "Controller",
    "Correction",
    "CovarianceClippedSurrogate",
    "CovariancePenaltySurrogate",
    "CriticConfig",
    "DivergenceMaskedPolicyGradient",
    "EntropyBonus",
    "EntropyWeightedLikelihood",
    "EntropyWeightedPolicyGradient",
    "GeometricMeanSurrogate",
    "GroupPreference",
    "GroupRegression",
    "ImportanceWeightedKL",
    "InverseRatioSurrogate",
    "KLToReference",
    "LearnerConfig",
    "Level",
    "LoRAConfig",
    "Loss",
    "LossParams",
    "MixtureRatio",
    "MomentClippedSurrogate",
    "Need",
    "NegativeLogLikelihood",
    "OddsRatioPreference",
    "OnPolicyDistillation",
    "OneTokenRollout",
    "OptimalBaselineGradient",
    "OptimizerConfig",
    "OutcomeClassification",
    "PairwisePreference",
    "PolicyGradient",
    "ProspectPreference",
    "ProtectedSurrogate",
    "QuotientClippedSurrogate",
    "RatioSurrogate",
    "RatioVariance",
    "RecentredSurrogate",
    "ReferenceConfig",
    "RehearsalDivergence",
    "Rejection",
    "ResetConfig",
    "Schedule",
    "SequenceSurrogate",
    "ShapedLikelihood",
    "ShapedRatio",
    "SoftGateSurrogate",
    "SquaredLogRatio",
    "TeacherConfig",
    "TeacherDivergence",
    "Term",
    "TiltedTargetGradient",
    "TraceWeightedPolicyGradient",
    "WeightedPolicyGradient",
]


class Rejection(Section):
    """A criterion on how far sampling and proximal policy are apart; tokens that fail it get weight 0.

    rho = exp(proximal - behaviour log-prob), d = ln rho; k2 = d^2 / 2, k3 = rho - 1 - d. (Some code bounds 1 / rho.)
    """

    statistic: Literal["ratio", "k2", "k3"] = "ratio"
    """What is bounded; over "mean" and "sum" of a sequence "ratio" is its geometric mean and its product."""
    over: Literal["token", "all", "mean", "sum"] = "token"
    """token: each by itself. all: the sequence fails with one token. mean, sum: of the sequence's tokens."""
    low: float = Field(default=0.0, ge=0)
    """Smallest value that stays."""
    high: float = Field(default=2.0, gt=0)
    """Largest value that stays."""


class Correction(Section):
    """Weight of a token for the step from sampling to proximal policy, without gradient (decoupled PPO, TIS, IcePop).

    Denominators count a token of weight 0 still.
    """

    transform: Literal["identity", "clamp", "band", "one"] = "clamp"
    """identity: rho. clamp: rho within the bounds. band: rho inside the bounds, 0 outside. one: 1."""
    level: Level = "token"
    """Of rho."""
    low: float = Field(default=0.0, ge=0)
    """Lower bound of clamp and band."""
    high: float = Field(default=2.0, gt=0)
    """Upper bound of clamp and band."""
    reject: tuple[Rejection, ...] = ()
    """All of them must hold."""
    max_negative_drift: float | None = Field(default=None, ge=0)
    """Nats: sequences of negative advantage whose mean behaviour minus current log-prob is larger are dropped."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Correction:
        for low, high in [(self.low, self.high), *((r.low, r.high) for r in self.reject)]:
            if low > high:
                raise ValueError(f"low={low} lies above high={high}, so nothing could stay: swap them")
        return self

    @property
    def splits_sequences(self) -> bool:
        """Whether one token of a sequence can go while another stays."""
        return (self.transform == "band" and self.level == "token") or any(r.over == "token" for r in self.reject)


AdvantageName = Literal[
    "group_relative",
    "centered",
    "leave_one_out",
    "score",
    "best_over_second",
    "max_likelihood",
    "length_weighted",
    "stage_centered",
    "batch_relative",
    "whitened",
    "centered_whitened",
    "nonzero_scaled",
    "shifted",
    "log_mean_exp",
    "positives_only",
    "negatives_only",
    "sign_weighted",
    "outliers_removed",
    "component_relative",
    "label_smoothed",
    "shortest_right",
    "rank_penalised",
    "over_greedy",
    "gae",
    "v_trace",
    "source_over_other",
]
TOKEN_ADVANTAGES: frozenset[AdvantageName] = frozenset({"gae", "v_trace"})
"""Advantages of single tokens, from a critic."""


class Term(Section):
    """One summand of the objective: which function, on whose tokens, with which weight over time."""

    loss: Loss
    """The function and its parameters; its name alone takes their defaults."""
    source: SourceName = "live"
    """Whose tokens it trains on."""
    weight: Schedule = Schedule()
    """Factor of this term at each step; a number is a constant."""
    controller: Controller | None = None
    """A second factor, moved after each step by what the step measured."""
    advantage: AdvantageName = "group_relative"
    """How scores of a group become advantages; ignored by losses that need none."""
    advantage_options: dict[str, float] = Field(default_factory=dict)
    """Options of that advantage by name, e.g. {"shift": -0.1}."""
    members: Literal["all", "right"] = "all"
    """right: only trajectories that are right by the reward's success component; the others are in no denominator."""
    compared_with: Literal["source", "group"] = "source"
    """Whose scores make the statistics: members of the same source only, or all members of the group (LUFFY)."""
    against: SourceName | None = None
    """Second source whose answers a loss over groups sees beside those of `source`, e.g. live ones that an expert's
    answer is preferred to."""
    ratio_to: Literal["behavior", "proximal"] = "behavior"
    """Policy in the denominator of the loss's ratio: the one that sampled, or the one this update starts from."""
    correction: Correction | None = None
    """Weight for the step from the sampling to the proximal policy; goes with a ratio to the proximal one, or none."""
    aggregation: Literal["token", "sequence", "constant", "width"] = "token"
    """token: sum over the term's global token count. sequence: mean over sequences of token means (global number of
    sequences). constant: sum over sequences of token sums, over `aggregation_constant` x global sequences (Dr.GRPO).
    width: the same sum over `aggregation_constant` alone, so it grows with the batch (LUFFY, RL-PLUS)."""
    aggregation_constant: float | None = Field(default=None, gt=0)
    """Tokens, e.g. the longest answer; for aggregations "constant" and "width" only."""

    @field_validator("weight", mode="before")
    @classmethod
    def _number_is_constant(cls, value: Any) -> Any:
        return {"start": value} if isinstance(value, (int, float)) else value

    @field_validator("loss", mode="before")
    @classmethod
    def _name_is_default_parameters(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _constant_needs_number(self) -> Term:
        if (self.aggregation in ("constant", "width")) != (self.aggregation_constant is not None):
            raise ValueError(
                "aggregation='constant' or 'width' and aggregation_constant go together; set both or neither"
            )
        return self

    @model_validator(mode="after")
    def _against_has_pairs(self) -> Term:
        if self.against is not None and (self.against == self.source or not self.loss.couples_groups):
            raise ValueError(
                f"against={self.against!r} puts answers of two sources side by side, but {self.loss.name} on source "
                f"{self.source!r} does not compare them: name another source and a loss over groups, or leave it out"
            )
        return self

    @property
    def sources(self) -> frozenset[SourceName]:
        """Whose answers it trains on."""
        return frozenset({self.source} if self.against is None else {self.source, self.against})

    @model_validator(mode="after")
    def _parts_fit(self) -> Term:
        reads_behavior = "behavior_logprobs" in self.loss.needs
        if self.advantage == "v_trace" and reads_behavior:
            raise ValueError(
                f"advantage='v_trace' holds the step from the sampling policy already, and {self.loss.name} would "
                "count it twice: use policy_gradient"
            )
        if self.ratio_to == "proximal" and not reads_behavior:
            raise ValueError(f"ratio_to='proximal', but {self.loss.name} forms no ratio: leave it out")
        if self.correction is None:
            return self
        if reads_behavior and self.ratio_to == "behavior":
            raise ValueError(
                f"correction on {self.loss.name} with ratio_to='behavior' would count the step from the sampling "
                "policy twice: set ratio_to='proximal', or drop the correction"
            )
        if self.advantage == "v_trace":
            raise ValueError("advantage='v_trace' holds the step from the sampling policy already: drop the correction")
        if self.loss.couples_tokens and self.correction.splits_sequences:
            raise ValueError(
                f"{self.loss.name} reads whole sequences, but the correction drops single tokens, which would change "
                "their ratios: use a level or criterion over the sequence"
            )
        if self.correction.max_negative_drift is not None and "scores" not in self.loss.needs:
            raise ValueError(f"max_negative_drift looks at advantages, but {self.loss.name} reads none: drop it")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """What the term reads beside the log-probs being trained, its correction included."""
        behavior = frozenset[Need]({"behavior_logprobs"})
        needs = self.loss.needs if self.ratio_to == "behavior" else self.loss.needs - behavior
        if "scores" in needs and self.advantage in TOKEN_ADVANTAGES:
            needs |= frozenset[Need]({"values"}) | (behavior if self.advantage == "v_trace" else frozenset[Need]())
        return needs | behavior if self.correction is not None else needs


class LoRAConfig(Section):
    """Train low-rank adapters (PEFT) instead of the weights."""

    rank: int = Field(default=16, ge=1)
    """Inner dimension of an adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter's product counts alpha / rank."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get one."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW with fp32 master weights."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Highest rate; `schedule` moves it."""
    schedule: Schedule = Schedule()
    """Multiplies the learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay per step of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled from the gradient, times the learning rate."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global gradient norm above which the gradient is scaled down."""


class LearnerConfig(Section):
    """The learner group: ranks, precision, packing."""

    num_ranks: int = Field(default=1, ge=1)
    """Processes the model is sharded over."""
    threads_per_rank: int = Field(default=1, ge=1)
    """CPU threads of torch in each rank."""
    cores: str | None = None
    """Explicit core list of the learner's processes, e.g. "1"; None leaves placement to the operating system."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of forward and backward; master weights are always fp32."""
    max_tokens_per_micro_batch: int = Field(default=4096, ge=16)
    """Packed tokens (shared prompts counted once) of one forward and backward."""
    logprob_chunk_tokens: int = Field(default=512, ge=1)
    """Tokens whose logits exist at once."""
    attention: Literal["auto", "shared_prompt", "packed"] = "auto"
    """shared_prompt: a group's prompt is computed once; packed: each sequence stands alone; auto picks by cost."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its learning rate."""
    lora: LoRAConfig | None = None
    """Train adapters only; None trains all weights."""
    reference: ReferenceConfig = ReferenceConfig()
    """Which frozen policy terms compare with."""
    teacher: TeacherConfig | None = None
    """Whom distillation terms learn from."""
    critic: CriticConfig | None = None
    """Who predicts what answers earn, for advantages "gae" and "v_trace"."""
    resets: ResetConfig = ResetConfig()
    """When reference and optimizer start afresh."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Consecutive NaN steps after which the run stops instead of skipping on."""
    seed: int = 0
    """Seeds torch in each rank."""

    @property
    def supplies(self) -> frozenset[Need]:
        """What a learner with these settings can give to a loss."""
        teacher = frozenset[Need]({"teacher_logprobs", "divergence"} if self.teacher is not None else ())
        critic = frozenset[Need]({"values"} if self.critic is not None else ())
        return frozenset[Need]({"behavior_logprobs", "reference_logprobs", "entropy", "scores"}) | teacher | critic

    @model_validator(mode="after")
    def _reference_can_move(self) -> LearnerConfig:
        if self.lora is not None and self.resets.moves_reference:
            raise ValueError(
                "learner.resets.reference=true with learner.lora: the reference is the model below the adapters, which "
                "never moves. Set learner.resets.reference=false, or train all weights"
            )
        return self
