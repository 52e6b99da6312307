"""Models beside the policy: the frozen reference and teacher, the critic, and fresh starts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewards.config import Section


class ReferenceConfig(Section):
    """The frozen policy that KL terms and preference losses compare with; loaded only where a term reads it."""

    model: str | None = None
    """A known name, a folder or a hub id, with the tokenizer of the policy; None is the policy as the run began."""


class TeacherConfig(Section):
    """A frozen model whose opinion of the tokens is learnt from."""

    model: str
    """A known name, a folder or a hub id, with the tokenizer of the policy."""


class CriticConfig(Section):
    """A model that predicts what each answer will earn; its optimizer has the policy's settings but for the rate."""

    model: str | None = None
    """A known name, a folder or a hub id, with the tokenizer of the policy; None is the policy as the run began."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Highest rate; None is the policy's."""
    loss: Literal["squared", "hl_gauss", "two_hot"] = "squared"
    """squared: one number. hl_gauss, two_hot: a distribution over `bins`, learnt by cross-entropy."""
    low: float = -0.05
    """Smallest value a distribution can say; targets below count as it. Leave room around the rewards: hl_gauss decodes
    the ends of its range inwards."""
    high: float = 1.05
    """Largest value a distribution can say; targets above count as it."""
    bins: int = Field(default=51, ge=2)
    """Bins (hl_gauss) or points (two_hot) between them."""
    target: Literal["gae", "v_trace", "conservative"] = "gae"
    """gae: advantage plus value. v_trace: the value of the current policy from samples of an older one. conservative:
    one step ahead, as if the next token were the reference's likeliest (B-Coder)."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Of a reward one token later."""
    trace: float = Field(default=0.95, ge=0, le=1)
    """How far targets look before they trust the critic; 1 is what the answer earned."""
    gap_scale: float = Field(default=1.0, gt=0)
    """Of target "conservative" only: reward units per nat a token's log-prob lies below the likeliest one's."""
    kl_in_reward: float = Field(default=0.0, ge=0)
    """Reward units each token pays per nat of its sampling log-prob above the reference's; 0 reads no reference."""
    feature_penalty: float = Field(default=0.0, ge=0)
    """Weight of BEER's bound on successive features; the paper's is 1e-3. Tokens without a reward satisfy it always, so
    it goes with kl_in_reward."""

    @property
    def reads_reference(self) -> bool:
        """Whether rewards or targets need the reference."""
        return self.kl_in_reward > 0 or self.target == "conservative"

    def target_options(self) -> dict[str, float]:
        """Keyword arguments of the function of `learner.returns`."""
        own = {"scale": self.gap_scale} if self.target == "conservative" else {"trace": self.trace}
        return {"discount": self.discount, **own}

    @model_validator(mode="after")
    def _choices_fit(self) -> CriticConfig:
        if self.low >= self.high:
            raise ValueError(f"critic.low={self.low} is not below critic.high={self.high}: no value lies between them")
        if self.feature_penalty > 0 and self.kl_in_reward == 0:
            raise ValueError(
                f"critic.feature_penalty={self.feature_penalty} would do nothing: where no token but the last earns a "
                "reward its bound always holds. Set critic.kl_in_reward, or feature_penalty=0"
            )
        if self.feature_penalty > 0 and self.loss != "squared":
            raise ValueError(
                f"critic.feature_penalty bounds features by the weights of a single value, but "
                f"critic.loss={self.loss!r} has a distribution: set loss='squared', or feature_penalty=0"
            )
        return self


class ResetConfig(Section):
    """Fresh starts within a run: the reference becomes the current policy, the optimizer forgets its moments (ProRL).

    They come before the named 0-based learner steps.
    """

    every: int = Field(default=0, ge=0)
    """Learner steps between two resets; 0 is never."""
    at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Single learner steps with a reset."""
    reference: bool = True
    """Whether the reference moves."""
    optimizer: bool = True
    """Whether the optimizer forgets."""

    @property
    def moves_reference(self) -> bool:
        """Whether the reference ever moves."""
        return self.reference and bool(self.every or self.at)

    def due(self, step: int) -> bool:
        """Whether a reset comes before this step."""
        return step in self.at or bool(self.every and step and step % self.every == 0)
