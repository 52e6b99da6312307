"""The strict base of every configuration section, and the sections about tasks and rewards."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen config section that refuses unknown keys and says which known key was probably meant.

    NaN and infinity are refused as well: JSON, in which every run saves its configuration, has no words for them.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _suggest_known_key(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = list(cls.model_fields)
        for key in values:
            if key in known:
                continue
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise ValueError(f"unknown key {key!r} in {cls.__name__}: {hint}")
        return values


SourceName = Literal["live", "own_past", "expert", "teacher", "other_run"]
"""Values of `rewards.trajectory.Source`, spelled out so that config files stay import-light."""


class TaskConfig(Section):
    """Where problems come from, and which of them the run is judged by."""

    source: str = "reasoning_gym"
    """`reasoning_gym`, `arithmetic`, `file` (jsonl or parquet), or an import path `my_pkg.tasks:load`."""
    name: str | None = None
    """Generator name for `reasoning_gym`; path for `file`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the generator or to the loading function as keyword arguments."""
    num_train: int = Field(default=4096, ge=1)
    """Training problems to generate or keep."""
    num_heldout: int = Field(default=512, ge=0)
    """Problems kept aside for evaluation; none of them appears in training."""
    heldout_path: str | None = None
    """A second file of held-out problems, for `source: file`; without it a seeded split of `name` is taken."""
    seed: int = Field(default=0, ge=0)
    """Decides generation, split and order of the tasks."""
    system_prompt: str | None = None
    """Replaces the chat template's own system message; an empty string removes it."""

    @model_validator(mode="after")
    def _settings_are_read(self) -> TaskConfig:
        if self.heldout_path is not None and self.source != "file":
            raise ValueError(
                f"tasks.heldout_path={self.heldout_path!r} is read by source 'file' only, not by {self.source!r}: "
                "drop it, or change tasks.source"
            )
        if self.name is not None and (self.source == "arithmetic" or ":" in self.source):
            raise ValueError(
                f"tasks.name={self.name!r} is not read by source {self.source!r}: drop it, or pass what the source "
                "should know in tasks.options"
            )
        return self


class RewardComponent(Section):
    """One named part of the reward."""

    verifier: str
    """A name of the table VERIFIERS or an import path `my_pkg.rewards:score`."""
    weight: float = 1.0
    """Factor of this component in the sum; 0 only measures it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the verifier."""
    required: bool = True
    """Without a score from a required component the sample is unscored."""
    gate: str | None = None
    """Name of another component that must be positive for this one to count."""


class RewardConfig(Section):
    """How answers are judged and what the judging may cost."""

    components: dict[str, RewardComponent] = Field(default_factory=dict)
    """Named parts, combined by weighted sum."""
    floor: float = 0.0
    """Score of a fault that is the model's own: no answer, rejected, timeout, resource, crash."""
    clip: tuple[float, float] | None = None
    """Lowest and highest score after the sum; None leaves it as it is."""
    num_workers: int = Field(default=1, ge=1)
    """Reward actors; each owns `processes_per_worker` killable children."""
    processes_per_worker: int = Field(default=1, ge=1)
    """Answers one reward actor judges at the same time."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall clock for one answer; a verifier that hangs on model text is killed and earns the floor."""
    memory_mb: int = Field(default=2048, ge=64)
    """Address-space limit of one child process."""
    num_retries: int = Field(default=3, ge=0)
    """Retries after a fault of the infrastructure; never after a verdict."""
    max_unscored_fraction: float = Field(default=0.2, gt=0, le=1)
    """The run stops with a clear error when more samples than this have no score over a window."""

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> RewardConfig:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(
                f"reward.clip={list(self.clip)} would give every answer the same score: put the lower bound first"
            )
        return self
