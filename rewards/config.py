"""The strict base of every configuration section, and the sections about tasks and rewards."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rewards.judges.config import JudgeService


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


GENERATED = ("arithmetic", "random_calculation", "self_play", "text_segments")
"""Task sources that are functions of their options alone."""


class TaskConfig(Section):
    """Where problems come from, and which of them the run is judged by."""

    source: str = "reasoning_gym"
    """`reasoning_gym`, `arithmetic`, `random_calculation`, `self_play`, `text_segments`, `file` (jsonl or parquet), or
    an import path `my_pkg.tasks:load`."""
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
    decontaminate: int = Field(default=0, ge=0)
    """Training prompts that share this many words in a row with a held-out one are left out, e.g. 32; 0 leaves out
    none. Prompts from one template share its words: choose more than it has."""
    system_prompt: str | None = None
    """Replaces the chat template's own system message; an empty string removes it."""

    @model_validator(mode="after")
    def _settings_are_read(self) -> TaskConfig:
        if self.heldout_path is not None and self.source != "file":
            raise ValueError(
                f"tasks.heldout_path={self.heldout_path!r} is read by source 'file' only, not by {self.source!r}: "
                "drop it, or change tasks.source"
            )
        if self.name is not None and (self.source in GENERATED or ":" in self.source):
            raise ValueError(
                f"tasks.name={self.name!r} is not read by source {self.source!r}: drop it, or pass what the source "
                "should know in tasks.options"
            )
        return self


class RewardComponent(Section):
    """One named part of the reward."""

    verifier: str
    """A name of the table VERIFIERS or an import path `my_pkg.rewards:score`."""
    scope: Literal["sample", "group"] = "sample"
    """What the verifier is called with: one answer, or all answers of a group at once, as votes need them."""
    pool: str | None = None
    """Name in `reward.pools` of the processes that judge it; None uses those of the reward section itself."""
    weight: float = 1.0
    """Factor of this component in the sum; 0 only measures it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the verifier."""
    required: bool = True
    """Without a score from a required component the sample is unscored."""
    gate: str | tuple[str, ...] | None = None
    """Another component, or several, that must all score above their `opens_above` for this one to count."""
    opens_above: float = 0.0
    """The score of this component above which the gates that name it are open."""
    veto_below: float | None = None
    """A lower score cancels all components: the answer gets the floor. Without a score the sample is unscored, also
    where the component is not required."""
    saturation: float = Field(default=0.0, ge=0)
    """c of (1 - exp(-c s)) / (1 - exp(-c)), applied to scores in [0, 1]: more of a good thing is worth ever less."""
    normalise: Literal["none", "group", "running"] = "none"
    """Replace the score by its distance from the mean in deviations: `group`, of the answers to this task, so that
    every component has the same say whatever its range; `running`, of all live samples this reward actor has seen."""

    @property
    def gates(self) -> tuple[str, ...]:
        """The components this one waits for."""
        return (self.gate,) if isinstance(self.gate, str) else self.gate or ()


class PoolConfig(Section):
    """Processes that judge, and what one verdict may cost."""

    processes_per_worker: int = Field(default=1, ge=1)
    """Answers one reward actor judges at the same time, each in a killable child; can be changed during a run."""
    timeout_s: float = Field(default=5.0, gt=0)
    """Wall clock for one answer; a verifier that hangs on model text is killed and earns the floor."""
    memory_mb: int = Field(default=2048, ge=64)
    """Address-space limit of one child process."""
    num_retries: int = Field(default=3, ge=0)
    """Retries after a fault of the infrastructure; never after a verdict."""
    max_wait_s: float | None = Field(default=None, gt=0)
    """A sample that waited longer for a free child has no score; None lets it wait."""
    max_batch: int = Field(default=32, ge=1)
    """Answers handed to a child at once, as long as their verdicts take milliseconds."""
    service: JudgeService | None = None
    """A model that judges in place of the processes; `verifier` then names a judge (`rewards.judges.table`), or is
    `reward_model` where the service returns numbers. Of the settings above and below only `cache_size` is read."""
    hedge_after_s: float | None = Field(default=None, gt=0)
    """A verdict that takes longer is also asked for in an idle child, and the first one counts; None asks once."""
    cache_size: int = Field(default=1 << 16, ge=0)
    """Verdicts kept for answers that come again; 0 judges each anew, as a judge that samples must."""


class WatchConfig(Section):
    """When a change in what is paid looks like a way around the reward. Alarms are told; they stop nothing."""

    window: int = Field(default=512, ge=2)
    """Scored live samples, of one reward actor, in the baseline and among the newest."""
    held_out: str | None = None
    """A component of weight 0 that judges in another way; the reward should agree with it."""
    max_length_drift: float = Field(default=1.5, gt=0)
    """Rise of the mean length in tokens, in deviations of the baseline's samples."""
    max_repetition_drift: float = Field(default=1.0, gt=0)
    """Rise of the mean share of repeated word triples, in deviations."""
    max_agreement_drop: float = Field(default=0.1, gt=0, le=1)
    """Fall of the share of samples that reward and held-out component agree on."""
    max_gap: float = Field(default=0.5, gt=0)
    """Deviations the reward may rise more than the held-out component."""
    max_same_answer: float = Field(default=0.5, gt=0, le=1)
    """Share of the recent tasks that may get one and the same answer."""


DEFAULT_POOL = "default"
"""The pool of components that name none."""


class RewardConfig(PoolConfig):
    """How answers are judged and what the judging may cost; itself the pool of the components that name none."""

    components: dict[str, RewardComponent] = Field(default_factory=dict)
    """Named parts, combined by weighted sum."""
    pools: dict[str, PoolConfig] = Field(default_factory=dict)
    """Further pools, so that slow verifiers or model-written programs do not hold up the others."""
    success: str | None = None
    """The component whose score above `success_above` means that the answer is right: accuracy, pass@k, success rates
    and the best checkpoint count it, whatever else the reward pays for. None takes the first component that is
    required, ungated and of positive weight."""
    success_above: float = 0.0
    """See `success`; e.g. 0.5 for a probability."""
    floor: float = 0.0
    """Score of a fault that is the model's own: no answer, rejected, timeout, resource, crash."""
    clip: tuple[float, float] | None = None
    """Lowest and highest score after the sum; None leaves it as it is."""
    num_workers: int = Field(default=1, ge=1)
    """Reward actors; each owns the children of every pool."""
    hedge_worker_after_s: float | None = Field(default=None, gt=0)
    """A group whose verdicts take longer is also given to another reward actor; None never is."""
    max_unscored_fraction: float = Field(default=0.2, gt=0, le=1)
    """The run stops with a clear error when more samples than this have no score over a window."""
    watch: WatchConfig = WatchConfig()
    """When to raise an alarm about what the reward pays for."""

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> RewardConfig:
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(
                f"reward.clip={list(self.clip)} would give every answer the same score: put the lower bound first"
            )
        return self

    @model_validator(mode="after")
    def _pools_and_components_fit(self) -> RewardConfig:
        if DEFAULT_POOL in self.pools:
            raise ValueError(
                f"reward.pools.{DEFAULT_POOL} is the reward section itself: set reward.timeout_s and its siblings"
            )
        for name, component in self.components.items():
            others = [other for other in self.components if other != name]
            if unknown := [gate for gate in component.gates if gate not in others]:
                raise ValueError(
                    f"reward.components.{name}.gate={unknown[0]!r} names no other component: choose from "
                    f"{others or 'none'}"
                )
        used = {component.pool for component in self.components.values()}
        for name, component in self.components.items():
            if component.pool is not None and component.pool not in self.pools:
                raise ValueError(
                    f"reward.components.{name}.pool={component.pool!r} is no pool: add it to reward.pools, or choose "
                    f"from {sorted(self.pools) or 'none'}"
                )
        if idle := sorted(self.pools.keys() - used):
            raise ValueError(f"reward.pools.{idle[0]} judges nothing: name it in a component, or drop it")
        return self

    @model_validator(mode="after")
    def _watch_names_a_measure(self) -> RewardConfig:
        name = self.watch.held_out
        if name is not None and (name not in self.components or self.components[name].weight != 0):
            raise ValueError(
                f"reward.watch.held_out={name!r} must name a component of weight 0: one that is paid for cannot tell "
                "whether the reward is still right"
            )
        return self

    @model_validator(mode="after")
    def _success_is_always_judged(self) -> RewardConfig:
        if self.success is None:
            return self
        component = self.components.get(self.success)
        if component is None:
            raise ValueError(
                f"reward.success={self.success!r} names no component: choose from {sorted(self.components) or 'none'}"
            )
        if not component.required or component.gates:
            raise ValueError(
                f"reward.success={self.success!r} is optional or behind a gate, so some scored answers would be "
                "neither right nor wrong: make the component required and ungated"
            )
        return self

    @property
    def success_component(self) -> str | None:
        """Name of the component that means success; None where no component could, and the sum has to."""
        if self.success is not None:
            return self.success
        able = (name for name, part in self.components.items() if part.required and not part.gates and part.weight > 0)
        return next(able, None)

    @property
    def pool_names(self) -> tuple[str, ...]:
        """Pools that have something to judge, in the order of their first component."""
        return tuple(dict.fromkeys(component.pool or DEFAULT_POOL for component in self.components.values()))

    def service_of(self, component: RewardComponent) -> JudgeService | None:
        """The model that judges a component; None where a verifier does."""
        return self.service if component.pool is None else self.pools[component.pool].service

    @property
    def num_processes(self) -> int:
        """Children of all pools of all reward actors."""
        pools = (self.pool(name) for name in self.pool_names)
        sizes = (pool.processes_per_worker for pool in pools if pool.service is None)
        return self.num_workers * sum(sizes)

    def pool(self, name: str) -> RewardConfig:
        """What the children of one pool are configured with: its components alone, ungated, and its limits."""
        limits = self if name == DEFAULT_POOL else self.pools[name]
        components = {
            key: component.model_copy(update={"pool": None, "gate": None})
            for key, component in self.components.items()
            if (component.pool or DEFAULT_POOL) == name
        }
        settings = {field: getattr(limits, field) for field in PoolConfig.model_fields}
        return RewardConfig(components=components, floor=self.floor, **settings)
