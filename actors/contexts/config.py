"""Which help stands in a prompt, and which groups get it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from actors.samplers.config import LedgerCondition
from rewards.config import Section

ContextKind = Literal["prefix", "hint", "plan", "demo", "feedback", "role"]


class ContextSpec(Section):
    """Something that stands in the prompt, or begins the answer, beside the task itself."""

    kind: ContextKind
    """prefix: tokens of an oracle answer the policy has to continue. hint, plan: text below the problem. demo: a whole
    solution below it. feedback: a previous attempt and what was wrong with it. role: an instruction below it."""
    amount: float | tuple[float, float] | None = None
    """How much of the text, in `unit`; a pair is drawn from evenly, for each group anew; absent: all of it."""
    unit: Literal["share", "tokens", "steps"] = "share"
    """share: of tokens (prefix) or characters; tokens: of the answer; steps: lines of the text that are not empty."""
    text: str = "expert"
    """Whose text: `expert`, the task's first oracle answer, or a key of the task's metadata; of a role: the words."""
    removed: bool = False
    """True trains on the plain prompt, without the help; log-probs stay those of sampling, so their ratio is right."""

    @field_validator("amount")
    @classmethod
    def _amount_is_a_range(cls, amount: Any) -> Any:
        low, high = amount if isinstance(amount, tuple) else (amount or 0.0, amount or 0.0)
        if low < 0 or low > high:
            raise ValueError(f"amount={amount}: from at least 0, the smaller number first")
        return amount

    @model_validator(mode="after")
    def _parts_fit(self) -> ContextSpec:
        largest = self.amount[1] if isinstance(self.amount, tuple) else self.amount
        if self.unit == "share" and largest is not None and largest > 1:
            raise ValueError(f"amount={self.amount} of unit 'share' is more than the whole: stay within 0 and 1")
        if self.unit == "tokens" and self.kind != "prefix":
            raise ValueError(f"unit='tokens' is for prefixes, not for kind={self.kind!r}: use 'share' or 'steps'")
        if self.amount is not None and self.kind in ("feedback", "role"):
            raise ValueError(f"kind={self.kind!r} is shown whole: leave amount={self.amount} out")
        if self.removed and self.kind == "prefix":
            raise ValueError("a prefix is part of the answer, not of the prompt, and stays: leave `removed` out")
        if self.kind == "role" and self.text == "expert":
            raise ValueError("kind='role' needs the words of its instruction in `text`")
        return self


class GuidedShare(Section):
    """One kind of help and the part of the stream of tasks that gets it."""

    contexts: tuple[ContextSpec | None, ...] = Field(min_length=1)
    """The help at stage 0, 1, ... of the prompt; beyond them the last one. null asks plainly."""
    share: Fraction = Field(default=Fraction(1), gt=0, le=1)
    """Exact share of the stream; shares of several entries must not exceed 1 together."""
    when: LedgerCondition = LedgerCondition()
    """Only for prompts of which the ledger says this; others of the share are asked plainly."""

    @field_validator("share", mode="before")
    @classmethod
    def _decimals_are_exact(cls, share: Any) -> Any:
        return repr(share) if isinstance(share, float) else share

    @field_serializer("share")
    def _fraction_as_text(self, share: Fraction) -> str:
        return str(share)


class GuidanceConfig(Section):
    """Help in the prompts of live rollouts. Tasks without the text it shows are asked plainly."""

    contexts: tuple[GuidedShare, ...] = ()
    """Which part of the stream is helped how."""
    cues: dict[ContextKind, str] = Field(default_factory=dict)
    """Words around the help, with `{text}`, where the usual ones do not fit."""

    @model_validator(mode="after")
    def _shares_fit(self) -> GuidanceConfig:
        total = sum((entry.share for entry in self.contexts), Fraction(0))
        if total > 1:
            raise ValueError(f"guidance.contexts: shares sum to {total}, more than all tasks: lower them to at most 1")
        for kind, cue in self.cues.items():
            if kind == "prefix" or cue.count("{text}") != 1:
                raise ValueError(f"guidance.cues.{kind}={cue!r} must hold '{{text}}' once, and a prefix has no cue")
        return self
