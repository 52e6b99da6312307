"""RunConfig: the sections put together, and the checks that span two sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from actors.config import ReplayConfig, RolloutConfig, WeightsConfig
from actors.contexts.config import GuidanceConfig
from actors.rules.config import donor_sources
from actors.samplers.config import CurriculumConfig
from learner.config import TOKEN_ADVANTAGES, LearnerConfig, Term
from rewards.config import RewardConfig, Section, TaskConfig


class EvaluationConfig(Section):
    """How the run is judged on held-out tasks."""

    every: int = Field(default=0, ge=0)
    """Learner steps between evaluations at a pinned version; 0 evaluates only before and after."""
    at_start: bool = True
    """Evaluate the model as it was given."""
    at_end: bool = True
    """Evaluate the trained model."""
    num_tasks: int | None = Field(default=None, ge=1)
    """Held-out tasks of an evaluation during the run; None uses all."""
    samples_per_task: int = Field(default=1, ge=1)
    """Answers drawn for each held-out task; more than one needs a temperature above 0."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    split_by: str | None = None
    """A task tag accuracy is also reported by, e.g. "coverage"."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationConfig:
        if self.samples_per_task > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluation.samples_per_task={self.samples_per_task} at temperature 0 gives the same answer each "
                "time and an interval that is too narrow: set evaluation.temperature, or one sample"
            )
        return self


class CheckpointConfig(Section):
    """When the run's state becomes durable."""

    every: int = Field(default=0, ge=0)
    """Learner steps between checkpoints; 0 keeps only the final one."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""


class TrackingConfig(Section):
    """Where metrics go. JSONL is always written."""

    sinks: tuple[Literal["tensorboard", "wandb", "ray"], ...] = ("ray", "tensorboard")
    """Where numbers go beside JSONL; ray: `ray.util.metrics`, and from there Prometheus."""
    wandb_project: str = "braid"
    """Project of the wandb run."""
    wandb_mode: Literal["online", "offline"] = "offline"
    """offline writes files that `wandb sync` uploads later."""


class ScalingConfig(Section):
    """Whether the number of rollout workers follows the load while a run trains."""

    max_rollout_workers: int | None = Field(default=None, ge=1)
    """Rollout workers are added up to this many while the learner waits for them; None never changes their number."""
    min_rollout_workers: int = Field(default=1, ge=1)
    """Workers are not taken away below this many."""
    period_s: float = Field(default=60.0, gt=0)
    """Between two decisions; at most one worker joins or leaves in it."""
    wait_share_high: float = Field(default=0.2, ge=0, le=1)
    """A worker is added while the learner waits for batches more than this share of the time."""
    wait_share_low: float = Field(default=0.02, ge=0, le=1)
    """A worker may be taken away while the learner waits less than this share of the time."""
    blocked_share: float = Field(default=0.5, ge=0, le=1)
    """Share of rollout loops waiting for a ticket above which more workers would not help, and fewer would do."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> ScalingConfig:
        if self.max_rollout_workers is not None and self.max_rollout_workers < self.min_rollout_workers:
            raise ValueError(
                f"scaling.max_rollout_workers={self.max_rollout_workers} is below scaling.min_rollout_workers="
                f"{self.min_rollout_workers}, so no number of workers would do: raise the first or lower the second"
            )
        if self.wait_share_low > self.wait_share_high:
            raise ValueError(
                f"scaling.wait_share_low={self.wait_share_low} is above scaling.wait_share_high="
                f"{self.wait_share_high}, so a run would swing between two sizes: lower the first"
            )
        return self


class RunConfig(Section):
    """Everything one run needs; saved as JSON beside its results."""

    name: str = "run"
    """Names the run's folder, unless the command line does."""
    model: str = "smollm2-135m"
    """A name known to `braid fetch-model`, a folder in Hugging Face format, or a hub id."""
    tasks: TaskConfig = TaskConfig()
    """Which problems."""
    reward: RewardConfig = RewardConfig()
    """How answers are judged."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """In which order problems are asked, and what is remembered of them."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Help in the prompts of live rollouts."""
    terms: tuple[Term, ...] = Field(min_length=1)
    """The loss: a weighted sum, each summand over the tokens of one source."""
    rollout: RolloutConfig = RolloutConfig()
    """Who samples, and how."""
    replay: ReplayConfig = ReplayConfig()
    """What a batch is made of, and how old it may be."""
    learner: LearnerConfig = LearnerConfig()
    """Who trains, and how."""
    weights: WeightsConfig = WeightsConfig()
    """How new weights reach the engines."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how held-out tasks are answered."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run's state becomes durable."""
    tracking: TrackingConfig = TrackingConfig()
    """Where numbers go."""
    scaling: ScalingConfig = ScalingConfig()
    """Whether rollout workers join and leave by themselves."""
    max_losses: int = Field(default=5, ge=0)
    """Rollout workers, and learner groups, that are replaced before the next loss ends the run."""
    num_steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Training wall clock after which the run ends early, evaluations not counted."""
    placement: Literal["cpu", "split", "colocated"] = "cpu"
    """cpu: everything on cores. split: learner and engines on their own GPUs. colocated: they share GPUs."""
    pin_roles: bool = False
    """Learner, rollout and reward processes only on nodes whose Ray label `braid/role` names their role, as the groups
    of deploy/kuberay do."""
    layout: Literal["free", "halves", "shared", "turns"] | None = None
    """How engine and learner divide the cores of one machine (see orchestrator.layout); None leaves the settings as
    they are written in `rollout.engine` and `learner`."""
    synchronous: bool = False
    """True refuses `replay.max_age` above 0, with which sampling and training overlap: the baseline that asynchrony is
    measured against."""
    seed: int = Field(default=0, ge=0)
    """Seeds sampling and the order of tasks and batches; `tasks.seed` decides which problems there are."""

    @model_validator(mode="after")
    def _sources_are_supplied(self) -> RunConfig:
        spliced = donor_sources(self.rollout.rules) if self.replay.live_share > 0 else frozenset[str]()
        read = [(index, source) for index, term in enumerate(self.terms) for source in sorted(term.sources)]
        for index, source in read:
            if source == "live":
                if self.replay.live_share == 0:
                    raise ValueError(f"terms[{index}] trains on live rollouts but the quotas leave none: lower them")
            elif source not in self.replay.quotas and source not in spliced:
                raise ValueError(
                    f"terms[{index}] trains on source {source!r} but replay.quotas has no share for it, so "
                    f"it would never see a token. Add replay.quotas={{'{source}': '1/4'}}, or a rule that "
                    "splices donors of this source into groups."
                )
        return self

    @model_validator(mode="after")
    def _supplies_are_trained_on(self) -> RunConfig:
        trained = {source for term in self.terms for source in term.sources}
        if self.replay.live_share > 0 and "live" not in trained:
            raise ValueError(
                f"replay.quotas leave {self.replay.live_share} of each batch to live rollouts, but no term trains on "
                "them: add a term with source 'live', or let the quotas sum to 1"
            )
        for source in sorted(donor_sources(self.rollout.rules) - trained):
            raise ValueError(
                f"rollout.rules splice answers of source {source!r} into groups, but no term trains on them: add a "
                "term of that source, or leave the rule out"
            )
        for source, share in self.replay.quotas.items():
            if source not in trained:
                raise ValueError(
                    f"replay.quotas.{source}={share} of each batch, but no term trains on source {source!r}: drop the "
                    "quota, or add a term"
                )
        return self

    @model_validator(mode="after")
    def _answers_are_compared(self) -> RunConfig:
        for index, term in enumerate(self.terms):
            compares = "scores" in term.needs and term.advantage not in ("score", *TOKEN_ADVANTAGES)
            if term.source == "live" and compares and self.rollout.group_size < 2:
                raise ValueError(
                    f"terms[{index}].advantage={term.advantage!r} compares the answers of a group, but "
                    "rollout.group_size=1, so every advantage would be 0: raise group_size, or use advantage='score'"
                )
        return self

    @model_validator(mode="after")
    def _greedy_answers_are_compared_with(self) -> RunConfig:
        compares = [f"terms[{index}]" for index, term in enumerate(self.terms) if term.advantage == "over_greedy"]
        if compares and not self.rollout.greedy_baseline:
            raise ValueError(
                f"{compares[0]}.advantage='over_greedy' compares with an answer at temperature 0, which nobody "
                "samples: set rollout.greedy_baseline=true"
            )
        if self.rollout.greedy_baseline and not compares:
            raise ValueError(
                "rollout.greedy_baseline=true samples one more answer per group, but no term has "
                "advantage='over_greedy' to compare with it: leave it out"
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
