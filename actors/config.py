"""What runs on the cluster: engines, rollout, replay, weights."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from actors.replay.config import ImportConfig, TableConfig
from actors.search.config import SearchConfig
from rewards.config import Section, SourceName


class EngineConfig(Section):
    """One text generator. `kind` picks the adapter; everything else means the same for all of them."""

    kind: Literal["vllm", "transformers", "simulated"] = "vllm"
    """vllm: the CPU or the GPU build. transformers: for machines without vLLM. simulated: scripted, without a model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights and activations; new versions are published in it."""
    max_model_len: int = Field(default=1024, ge=16)
    """Prompt plus answer, in tokens."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences decoded together."""
    kv_cache_bytes: int | None = Field(default=1 << 30, ge=1 << 20)
    """KV-cache memory; None lets a GPU engine take `gpu_memory_utilization` of the card."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a card the engine may take, weights included."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices one engine is spread over."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one engine (CPU build only)."""
    cores: str | None = None
    """Explicit core list of the engine, e.g. "0" or "0-3"; None leaves placement to the operating system."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed through to the engine's own arguments."""


class SamplingConfig(Section):
    """How rollouts are drawn. Truncated sampling is refused: the learner could not mirror it."""

    temperature: float = Field(default=1.0, gt=0)
    """Of rollouts; the learner takes log-probs at the same one."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1.0 is the only value allowed."""
    top_k: int = Field(default=0, ge=0)
    """0 (no limit) is the only value allowed."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens; longer ones are cut and marked as truncated."""

    @model_validator(mode="after")
    def _must_be_mirrored(self) -> SamplingConfig:
        if self.top_p < 1.0 or self.top_k > 0:
            raise ValueError(
                f"sampling with top_p={self.top_p} top_k={self.top_k} renormalises over a truncated vocabulary the "
                "learner cannot see, so importance ratios would be wrong. Set top_p=1.0 and top_k=0."
            )
        return self


class LikelihoodConfig(Section):
    """Pays an answer for how probable it makes the task's reference, which then follows it (RA3)."""

    weight: float = 1.0
    """Reward units per nat of gain."""
    per_token: bool = True
    """The gain is a mean over the reference's tokens instead of a sum."""
    cost: float = Field(default=0.0, ge=0)
    """Reward units an answer that is not empty costs."""
    separator: str = "\n"
    """Text between answer and reference."""


class RolloutConfig(Section):
    """The workers that sample."""

    num_workers: int = Field(default=1, ge=1)
    """Rollout workers, one engine each."""
    group_size: int = Field(default=8, ge=1)
    """Answers per task."""
    concurrent_groups: int = Field(default=8, ge=1)
    """Groups one worker keeps in flight; bounded by tickets in any case."""
    engine: EngineConfig = EngineConfig()
    """What each worker generates with."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers for training are drawn; evaluation has its own temperature."""
    num_gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs Ray reserves for one worker."""
    num_cpus_per_worker: float = Field(default=1, ge=0)
    """CPU cores Ray reserves for one worker; a number for scheduling, it limits nothing."""
    rules: tuple[str | dict[str, Any], ...] = ()
    """Rules applied to a scored group before it is stored, e.g. "drop_constant"."""
    likelihood: LikelihoodConfig | None = None
    """Adds the likelihood gain of the reference to each score; None pays for what the verifiers say alone."""
    search: SearchConfig | None = None
    """Answers hard prompts by a search over segments; None answers all of them independently."""
    drop_greedily_solved: bool = False
    """Each task is answered greedily first, and dropped when that answer is right (SELF)."""
    greedy_baseline: bool = False
    """Each group gets one more answer at temperature 0, which is judged like the others and never trained on: the
    baseline of the advantage "over_greedy" (ReMax)."""

    @model_validator(mode="after")
    def _prompt_has_room(self) -> RolloutConfig:
        if self.sampling.max_new_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"rollout.sampling.max_new_tokens={self.sampling.max_new_tokens} leaves no token for the prompt in "
                f"rollout.engine.max_model_len={self.engine.max_model_len}: lower the first or raise the second"
            )
        return self


class ReplayConfig(Section):
    """How long sampled groups stay useful, and the exact share of a batch each source has."""

    groups_per_update: int = Field(default=16, ge=1)
    """Prompt groups in one optimizer step, all sources together. The one batch unit; everything else is derived."""
    max_age: int = Field(default=1, ge=0)
    """Committed steps between sampling and training; older groups are not handed out. 0 is strictly on-policy."""
    quotas: dict[SourceName, Fraction] = Field(default_factory=dict)
    """Exact share of each batch's groups drawn from a source other than live, e.g. {"expert": "1/2"}."""
    max_uses: dict[SourceName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """How often one group may be trained on; absent: 1 for live, unlimited for expert, teacher and other_run."""
    tables: dict[SourceName, TableConfig] = Field(default_factory=dict)
    """How groups of each source are kept and chosen; absent ones follow the defaults of `TableConfig`."""
    imports: tuple[ImportConfig, ...] = ()
    """Frozen groups of other runs, teachers and experts, stored when the run starts."""
    num_shards: int = Field(default=1, ge=1)
    """Processes the groups are spread over; above 1 a coordinator decides over them. Byte and group limits of tables
    then hold in each of them."""
    memory_bytes: int = Field(default=1 << 30, ge=0)
    """Packed groups kept in memory; the least recently used beyond it lie on disk alone. A cache without a folder
    keeps everything in memory."""
    held_bytes: int | None = Field(default=None, ge=1)
    """Packed groups kept at all, trained ones included until a checkpoint covers them; above it no group is started
    before its batch waits for it. None sets no limit."""
    journal_bytes: int | None = Field(default=256 << 20, ge=1)
    """Size of the journal above which it begins anew at the next checkpoint; an audit then follows every group from
    there on. None keeps all of it."""
    lease_timeout_s: float = Field(default=600.0, gt=0)
    """A lease not committed by then returns its groups."""
    wait_timeout_s: float = Field(default=300.0, gt=0)
    """A wait (for a ticket, for a batch) that lasts longer raises StalledError with its reason."""
    ticket_timeout_s: float = Field(default=600.0, gt=0)
    """A ticket whose holder is silent for this long is taken back."""

    @field_validator("quotas", mode="before")
    @classmethod
    def _decimals_are_exact(cls, quotas: Any) -> Any:
        """0.1 means one tenth, not the binary number nearest to it."""
        if not isinstance(quotas, dict):
            return quotas
        return {source: repr(share) if isinstance(share, float) else share for source, share in quotas.items()}

    @model_validator(mode="after")
    def _live_groups_are_never_in_the_way(self) -> ReplayConfig:
        live = self.tables.get("live")
        if live is not None and live.is_limited:
            raise ValueError(
                "tables.live has max_groups, max_bytes or max_per_prompt: evicting fresh rollouts would waste what "
                "admission has just asked for. Lower replay.max_age, or set replay.held_bytes."
            )
        return self

    @model_validator(mode="after")
    def _only_own_past_is_collected(self) -> ReplayConfig:
        for source, table in self.tables.items():
            if source != "own_past" and (table.max_age is not None or table.is_rate_limited):
                raise ValueError(
                    f"tables.{source} sets max_age, min_groups or uses_per_insert, which count groups collected while "
                    "the run goes on: only own_past has those. Live groups have replay.max_age and max_uses."
                )
        return self

    @model_validator(mode="after")
    def _imports_are_handed_out(self) -> ReplayConfig:
        for entry in self.imports:
            if entry.source not in self.quotas:
                raise ValueError(
                    f"imports of {entry.path!r} count as {entry.source!r}, which has no quota: no batch would take "
                    f"them. Add replay.quotas={{'{entry.source}': '1/4'}}."
                )
        return self

    @model_validator(mode="after")
    def _quotas_are_shares(self) -> ReplayConfig:
        for source, share in self.quotas.items():
            if source == "live" or not 0 < share <= 1:
                raise ValueError(f"quotas.{source}={share}: quotas are shares in (0, 1] of sources other than live")
        total = sum(self.quotas.values(), Fraction(0))
        if total > 1:
            raise ValueError(f"quotas sum to {total}, more than the whole batch: lower them to at most 1 together")
        return self

    @field_serializer("quotas")
    def _fractions_as_text(self, quotas: dict[SourceName, Fraction]) -> dict[str, str]:
        return {source: str(share) for source, share in quotas.items()}

    @property
    def live_share(self) -> Fraction:
        """What the quotas leave to fresh rollouts."""
        return 1 - sum(self.quotas.values(), Fraction(0))


class WeightsConfig(Section):
    """How new weights reach the engines."""

    publish_every: int = Field(default=1, ge=1)
    """Learner steps between two published versions."""
    keep_versions: int = Field(default=2, ge=1)
    """Versions kept in the store; older ones are deleted."""
    transport: Literal["auto", "shared_files", "object_store"] = "auto"
    """How a version reaches the engines. `shared_files`: every engine reads `directory`, which all nodes share.
    `object_store`: every engine gets a copy for its node through Ray. `auto`: files on the learner's node, the object
    store on every other one."""
    directory: str | None = None
    """Folder of published versions, one on each node; None picks /dev/shm where there is one."""
    probe_tolerance: float = Field(default=1e-3, gt=0)
    """Largest mean |engine - learner| log-prob (nats) of the probe after an activation; above it the worker is
    quarantined. bfloat16 engines need about 0.1."""
    clear_cache: bool = True
    """True re-prefills running sequences under the new weights; False keeps their old KV cache (faster, not exact)."""
