"""RunConfig: the sections put together, and the checks that span two sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from actors.config import ReplayConfig, RolloutConfig, WeightsConfig
from learner.config import LearnerConfig, Term
from rewards.config import RewardConfig, Section, TaskConfig


class EvaluationConfig(Section):
    """How the run is judged on held-out tasks."""

    every: int = Field(default=0, ge=0)
    """Learner steps between evaluations at a pinned version; 0 evaluates only before and after."""
    at_start: bool = True
    at_end: bool = True
    num_tasks: int | None = Field(default=None, ge=1)
    """Held-out tasks of an evaluation during the run; None uses all."""
    samples_per_task: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    split_by: str | None = None
    """A task tag accuracy is also reported by, e.g. "coverage"."""


class CheckpointConfig(Section):
    every: int = Field(default=0, ge=0)
    """Learner steps between checkpoints; 0 keeps only the final one."""
    keep: int = Field(default=2, ge=1)


class TrackingConfig(Section):
    """Where metrics go. JSONL is always written."""

    sinks: tuple[Literal["tensorboard", "wandb", "ray"], ...] = ("ray", "tensorboard")
    wandb_project: str = "braid"
    wandb_mode: Literal["online", "offline"] = "offline"


class RunConfig(Section):
    """Everything one run needs; saved as JSON beside its results."""

    name: str = "run"
    model: str = "smollm2-135m"
    """A name known to `braid fetch-model`, a folder in Hugging Face format, or a hub id."""
    tasks: TaskConfig = TaskConfig()
    reward: RewardConfig = RewardConfig()
    terms: tuple[Term, ...] = Field(min_length=1)
    rollout: RolloutConfig = RolloutConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    weights: WeightsConfig = WeightsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    num_steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Training wall clock after which the run ends early, evaluations not counted."""
    placement: Literal["cpu", "split", "colocated"] = "cpu"
    """cpu: everything on cores. split: learner and engines on their own GPUs. colocated: they share GPUs."""
    layout: Literal["free", "halves", "turns"] | None = None
    """How engine and learner divide the cores of one machine (see orchestrator.layout); None leaves the settings as
    they are written in `rollout.engine` and `learner`."""
    synchronous: bool = False
    """True waits for training before sampling the next batch: the baseline asynchrony is measured against."""
    seed: int = 0

    @model_validator(mode="after")
    def _sources_are_supplied(self) -> RunConfig:
        for index, term in enumerate(self.terms):
            if term.source == "live":
                if self.replay.live_share == 0:
                    raise ValueError(f"terms[{index}] trains on live rollouts but the quotas leave none: lower them")
            elif term.source not in self.replay.quotas:
                raise ValueError(
                    f"terms[{index}] trains on source {term.source!r} but replay.quotas has no share for it, so "
                    f"it would never see a token. Add replay.quotas={{'{term.source}': '1/4'}}."
                )
        return self

    @model_validator(mode="after")
    def _age_fits_publishing(self) -> RunConfig:
        if self.replay.live_share > 0 and self.replay.max_age < self.weights.publish_every - 1:
            raise ValueError(
                f"replay.max_age={self.replay.max_age} but weights are published every {self.weights.publish_every} "
                f"steps: groups sampled late in the interval would always be too old. Raise max_age to at least "
                f"{self.weights.publish_every - 1} or publish more often."
            )
        if self.synchronous and self.replay.max_age > 0:
            raise ValueError(
                f"synchronous=true samples and trains in turn, so replay.max_age must be 0, got {self.replay.max_age}"
            )
        return self
