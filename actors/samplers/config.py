"""Which task comes next: the samplers' parameters, and conditions on a row of the prompt ledger."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rewards.config import Section

Share = Annotated[float, Field(ge=0, le=1)]


class LedgerCondition(Section):
    """What a row of the prompt ledger must say. Bounds belong to what holds; rates count plain answers only."""

    min_attempts: int = Field(default=0, ge=0)
    """Scored answers without help so far, at least."""
    max_attempts: int | None = Field(default=None, ge=0)
    """Scored answers without help so far, at most."""
    min_rate: Share | None = None
    """Share of right ones among them, at least; an untried prompt has none and does not hold."""
    max_rate: Share | None = None
    """Share of right ones among them, at most."""
    min_stage: int = Field(default=0, ge=0)
    """Stage of the prompt, at least."""
    max_stage: int | None = Field(default=None, ge=0)
    """Stage of the prompt, at most."""
    min_epoch: int = Field(default=0, ge=0)
    """Rounds of the sampler that lie behind, at least."""

    @model_validator(mode="after")
    def _can_hold(self) -> LedgerCondition:
        for name in ("attempts", "rate", "stage"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name}={low} is above max_{name}={high}, so this never holds: swap them")
        return self

    def holds(self, row: Any, epoch: int) -> bool:
        """Whether a `LedgerRow` is one of those meant."""
        if row.attempts < self.min_attempts or row.stage < self.min_stage or epoch < self.min_epoch:
            return False
        if self.max_attempts is not None and row.attempts > self.max_attempts:
            return False
        if self.max_stage is not None and row.stage > self.max_stage:
            return False
        if self.min_rate is None and self.max_rate is None:
            return True
        highest = 1.0 if self.max_rate is None else self.max_rate
        return row.rate is not None and (self.min_rate or 0.0) <= row.rate <= highest


class Sampler(Section):
    """Base of the samplers. The stream is a sequence of rounds; each is chosen from what the ledger says when it
    begins."""

    round_size: int | None = Field(default=64, ge=1)
    """Tasks of one round, each at most once; None is all that may be drawn."""
    reentry: Share = 0.02
    """Share of a round taken from retired prompts, which return if their group no longer says that they are done."""


class Uniform(Sampler):
    """Every prompt with the same probability; with `round_size=None` each once per round."""

    name: Literal["uniform"] = "uniform"
    round_size: int | None = Field(default=None, ge=1)
    """Tasks of one round; None is every task once."""


class Band(Sampler):
    """Prompts whose last rate lies in a band of difficulty, and untried ones (BUFFER-style selection, SwS, DAPO)."""

    name: Literal["band"] = "band"
    low: Share = 0.125
    """Smallest rate."""
    high: Share = 0.875
    """Largest rate."""
    unseen: float = Field(default=1.0, ge=0)
    """Weight of an untried prompt beside 1 for one of the band."""
    outside: float = Field(default=0.05, ge=0)
    """Weight of the others: without any, a prompt that left the band would never be looked at again."""


class Pools(Sampler):
    """Pools by last rate, each with a weight (difficulty ladder of prime-rl)."""

    name: Literal["pools"] = "pools"
    thresholds: tuple[Share, ...] = (0.25, 0.75)
    """Upper ends, inclusive, ascending; a last pool takes the rest."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] = (1.0, 2.0, 0.5)
    """Weight of a prompt of each pool."""
    unseen: float = Field(default=1.0, ge=0)
    """Weight of an untried prompt."""

    @model_validator(mode="after")
    def _one_weight_per_pool(self) -> Pools:
        if len(self.weights) != len(self.thresholds) + 1 or list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(
                f"thresholds={self.thresholds} make {len(self.thresholds) + 1} pools and must ascend, but there are "
                f"{len(self.weights)} weights"
            )
        return self


class Priority(Sampler):
    """Prompts in proportion to what they still have to teach."""

    name: Literal["priority"] = "priority"
    by: Literal["failure", "signal", "change"] = "failure"
    """failure: 1 - rate over all attempts (Kimi k1.5). signal: rate x (1 - rate), the size of group advantages. change:
    spread of the rates over its last groups (1-shot RLVR)."""
    floor: float = Field(default=0.01, gt=0)
    """Smallest priority, so that nothing is lost for ever."""
    unseen: float = Field(default=1.0, ge=0)
    """Priority of an untried prompt."""


class Buckets(Sampler):
    """A normal density over the number of right answers in the last group, whatever the buckets' sizes (ExGRPO)."""

    name: Literal["buckets"] = "buckets"
    group_size: int = Field(default=8, ge=2)
    """Answers a rate is a share of."""
    mean: Share = 0.5
    """Rate the density peaks at."""
    spread: float = Field(default=1.0, gt=0)
    """Standard deviation, in right answers."""
    unseen: float = Field(default=1.0, ge=0)
    """Weight of all untried prompts together, beside 1 for all buckets together."""


class Nearest(Sampler):
    """A value model on the words of prompts predicts each one's rate; the nearest to a target are taken (PCL).

    The model is a ridge regression over hashed words, fitted anew to the ledger at the beginning of each round.
    """

    name: Literal["nearest"] = "nearest"
    target: Share = 0.5
    """Rate that is looked for."""
    candidates: int = Field(default=4, ge=1)
    """Prompts looked at for each one taken."""
    random: Share = 0.05
    """Share of a round taken blindly, or the model would only ever see prompts it places near the target."""
    features: int = Field(default=256, ge=8)
    """Width of the hashed words."""
    ridge: float = Field(default=1.0, gt=0)
    """Penalty on the weights."""


class Mixture(Sampler):
    """A domain by its weight, then a prompt of it evenly (MoDoMoDo, RECAP's uniform mixture)."""

    name: Literal["mixture"] = "mixture"
    tag: str
    """Tag of tasks that names their domain."""
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weight by domain; a domain that is not named has `other`."""
    other: float = Field(default=1.0, ge=0)
    """Weight of a domain that is not named."""
    by_failure: bool = False
    """Weights are each domain's share of failures so far (SwS), times those above."""


class Stages(Sampler):
    """Parts of the tasks one after another, each with a gate to the next (Light-R1, Tulu 3, easy to hard)."""

    name: Literal["stages"] = "stages"
    tag: str
    """Tag of tasks that names their stage."""
    order: tuple[str, ...] = Field(min_length=1)
    """Values of the tag, first stage first."""
    gate_rate: Share = 0.7
    """The next stage begins when the last rates of this one's tried prompts average this much."""
    gate_groups: int = Field(default=64, ge=1)
    """And when this many of its groups were finished."""
    keep_earlier: Share = 0.0
    """Share of each round from stages that are over."""


class TransferGap(Sampler):
    """The next family of tasks to train on, by a Gaussian process on what was reached and a linear gap (MBTL)."""

    name: Literal["transfer_gap"] = "transfer_gap"
    tag: str
    """Tag of tasks with their family's parameter, a number."""
    groups_per_source: int = Field(default=64, ge=1)
    """Groups one family gets before the next is chosen."""
    slope: float = Field(default=0.005, ge=0)
    """Rate lost per unit of distance between families."""
    exploration: float = Field(default=1.0, ge=0)
    """Standard deviations of the process that count as hope."""
    noise: float = Field(default=0.1, gt=0)
    """Standard deviation of a measured rate."""
    length_scale: float = Field(default=1.0, gt=0)
    """Distance over which the process is smooth, in the families' unit."""


class Fixed(Sampler):
    """A few named prompts, over and over (1-shot RLVR)."""

    name: Literal["fixed"] = "fixed"
    prompts: tuple[str, ...] = ()
    """Ids of the tasks; with none, the `count` whose rates moved most in the ledger so far, or the first ones."""
    count: int = Field(default=1, ge=1)
    """How many, where none is named."""
    explore_rounds: int = Field(default=0, ge=0)
    """Rounds over all tasks before the choice is made."""


class Custom(Sampler):
    """A function of one's own: `(tasks, ledger rows, epoch, **options) -> weights`, a number per task."""

    name: Literal["custom"] = "custom"
    function: str
    """Import path `my_pkg.samplers:weights`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""


AnySampler = Annotated[
    Uniform | Band | Pools | Priority | Buckets | Nearest | Mixture | Stages | TransferGap | Fixed | Custom,
    Field(discriminator="name"),
]


class StageRule(Section):
    """A level of each prompt that follows its rate: how hard its problem, or how large its help, may be."""

    raise_from: Share = 0.7
    """A group with at least this share right moves its prompt up."""
    lower_to: Share = 0.1
    """A group with at most this share right moves its prompt down."""
    highest: int = Field(default=3, ge=1)
    """Highest stage; the lowest is 0."""


class CurriculumConfig(Section):
    """In which order tasks are asked, and what is remembered of them."""

    sampler: AnySampler = Uniform()
    """Which task comes next; a name alone takes its defaults."""
    donors_from: Share = 0.0
    """Stashed answers join groups once the last rates of tried prompts average this much; until then they are only
    collected (ExGRPO)."""
    stages: StageRule | None = None
    """How the stage of a prompt follows its groups; None leaves it at 0."""

    @field_validator("sampler", mode="before")
    @classmethod
    def _name_is_default_parameters(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
