"""What is optimised and how: loss terms with their needs, schedules, optimizer, learner group."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rewards.config import Section, SourceName

Need = Literal["behavior_logprobs", "reference_logprobs", "proximal_logprobs", "entropy", "values", "scores"]
"""What a loss reads beside the log-probs being trained; a run that cannot supply it refuses to start."""


class Schedule(Section):
    """A coefficient as a function of the learner step (0-based).

    constant: start.  linear, cosine: start -> end over `steps` after `warmup` steps that climb 0 -> start, then end.
    step: start before `steps`, end from there on.
    """

    kind: Literal["constant", "linear", "cosine", "step"] = "constant"
    """The shape, see above."""
    start: float = 1.0
    """Value at the first step after the warm-up."""
    end: float | None = None
    """Value at the end and from there on; only for a schedule that changes."""
    steps: int = Field(default=0, ge=0)
    """Steps from start to end, the warm-up not counted."""
    warmup: int = Field(default=0, ge=0)
    """Steps before that, climbing from 0."""
    complemented: bool = False
    """The value is 1 minus the schedule: the other side of a convex mixture."""

    @model_validator(mode="after")
    def _needs_end(self) -> Schedule:
        if self.kind != "constant" and (self.end is None or self.steps < 1):
            raise ValueError(
                f"a {self.kind} schedule needs `end` and `steps` >= 1, got end={self.end} steps={self.steps}"
            )
        if self.kind == "constant" and (self.end is not None or self.steps):
            raise ValueError(
                f"a constant schedule never reaches end={self.end} steps={self.steps}: say kind=linear, cosine or step"
            )
        return self

    def complement(self) -> Schedule:
        """The schedule 1 - self."""
        return self.model_copy(update={"complemented": not self.complemented})

    def at(self, step: int) -> float:
        """Value at a 0-based learner step."""
        value = self._raw(step)
        return 1.0 - value if self.complemented else value

    def _raw(self, step: int) -> float:
        if step < self.warmup:
            return self.start * step / self.warmup
        if self.kind == "constant" or self.end is None:
            return self.start
        progress = min(1.0, (step - self.warmup) / self.steps)
        if self.kind == "step":
            return self.start if progress < 1.0 else self.end
        if self.kind == "linear":
            return self.start + (self.end - self.start) * progress
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


class LossParams(Section):
    """Base of the parameter models; `name` picks the torch function of the same name in `learner/losses/`."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of the torch function."""
        return self.model_dump(exclude={"name"})


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


class NegativeLogLikelihood(LossParams):
    """Imitation of the tokens as they are, optionally weighted per token by the current probability (CHORD)."""

    name: Literal["negative_log_likelihood"] = "negative_log_likelihood"
    token_weight: Literal["none", "phi", "probability"] = "none"
    """none: 1; phi: p(1-p); probability: p, each without gradient."""
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


class EntropyBonus(LossParams):
    """Negative entropy of the policy: a positive weight keeps the policy exploring."""

    name: Literal["entropy_bonus"] = "entropy_bonus"
    needs: ClassVar[frozenset[Need]] = frozenset({"entropy"})


Loss = Annotated[
    ClippedSurrogate | NegativeLogLikelihood | KLToReference | ImportanceWeightedKL | EntropyBonus,
    Field(discriminator="name"),
]


class Term(Section):
    """One summand of the objective: which function, on whose tokens, with which weight over time."""

    loss: Loss
    """The function and its parameters; its name alone takes their defaults."""
    source: SourceName = "live"
    """Whose tokens it trains on."""
    weight: Schedule = Schedule()
    """Factor of this term at each step; a number is a constant."""
    advantage: Literal["group_relative", "centered", "leave_one_out", "score"] = "group_relative"
    """How scores of a group become advantages; ignored by losses that need none."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """token: sum over the term's global token count. sequence: mean over sequences of token means (global number of
    sequences). constant: sum over sequences of token sums, over `aggregation_constant` x global sequences (Dr.GRPO)."""
    aggregation_constant: float | None = Field(default=None, gt=0)
    """Tokens, e.g. the longest answer; for aggregation "constant" only."""

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
        if (self.aggregation == "constant") != (self.aggregation_constant is not None):
            raise ValueError("aggregation='constant' and aggregation_constant go together; set both or neither")
        return self


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
    logprob_chunk_tokens: int = Field(default=256, ge=1)
    """Tokens whose logits exist at once."""
    attention: Literal["auto", "shared_prompt", "packed"] = "auto"
    """shared_prompt: a group's prompt is computed once; packed: each sequence stands alone; auto picks by cost."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its learning rate."""
    lora: LoRAConfig | None = None
    """Train adapters only; None trains all weights."""
    max_skipped_steps: int = Field(default=3, ge=0)
    """Consecutive NaN steps after which the run stops instead of skipping on."""
    seed: int = 0
    """Seeds torch in each rank."""
