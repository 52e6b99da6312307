"""Builds each box of a run from the run's settings; the same code serves one process and a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.assemble import expert_group
from actors.config import EngineConfig, ReplayConfig, RolloutConfig, WeightsConfig
from actors.contexts.config import GuidanceConfig
from actors.contexts.policy import GuidancePolicy
from actors.engines.protocol import Engine
from actors.finisher import Finisher
from actors.model_store import resolve_model
from actors.renderer import Renderer
from actors.replay.cache import ReplayCache
from actors.replay.coordinator import ReplayCoordinator
from actors.replay.imports import check_needs, imported_groups
from actors.replay.shard import ReplayShard
from actors.replay.sharded import ShardedReplay
from actors.reward_worker import RewardWorker
from actors.rollout_worker import RolloutPorts, RolloutWorker
from actors.rules.config import donor_tables
from actors.samplers.config import CurriculumConfig
from actors.samplers.order import make_order
from actors.task_feed import TaskFeed
from actors.weights import WeightStore
from learner.config import LearnerConfig, Term
from rewards.config import RewardConfig, TaskConfig
from rewards.task import Task
from rewards.trajectory import Group

if TYPE_CHECKING:
    from actors.learner_worker import LearnerPlan, LearnerRank

PROBE_TEXT = "The quick brown fox jumps over the lazy dog. 12 + 34 = 46, and 7 is less than 9."
"""Its log-probs tell after every push whether an engine runs the weights it claims; without a chat template, which
would double its cost and add nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What the boxes of one run are built from; crosses process boundaries.

    Attributes:
        model: what the run was told to train: a known name, a folder or a hub id.
        model_path: its folder in Hugging Face format, on the node of the driver.
        state_dir: durable state of the run (replay log, task log, checkpoints, issued versions).
        weights_dir: folder of published versions on the learner's node, in shared memory where there is any.
        incarnation: counts starts and resumes of the run.
        pin_roles: processes of a role go only to nodes with its label.
    """

    model: str
    model_path: str
    state_dir: str
    weights_dir: str
    terms: tuple[Term, ...]
    rollout: RolloutConfig
    replay: ReplayConfig
    learner: LearnerConfig
    weights: WeightsConfig
    reward: RewardConfig
    tasks: TaskConfig
    system_prompt: str | None
    num_steps: int
    max_minutes: float | None
    checkpoint_every: int
    checkpoint_keep: int
    seed: int
    incarnation: int = 0
    config_json: str = "{}"
    guidance: GuidanceConfig = GuidanceConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    pin_roles: bool = False

    @property
    def directory(self) -> Path:
        return Path(self.state_dir)


def make_engine(config: EngineConfig) -> Engine:
    """The adapter `config.kind` names; its heavy imports happen here and in no other process."""
    if config.kind == "vllm":
        from actors.engines.vllm import VLLMEngine

        return VLLMEngine(config)
    if config.kind == "transformers":
        from actors.engines.transformers import TransformersEngine

        return TransformersEngine(config)
    from actors.engines.simulated import SimulatedEngine

    return SimulatedEngine(config)


def on_this_node(spec: RunSpec) -> RunSpec:
    """The spec with a model folder of this node: the driver's, where this node sees it, else the model by its name.

    Raises:
        ModelError: neither; says how to get it.
    """
    if (Path(spec.model_path) / "config.json").exists():
        return spec
    return replace(spec, model_path=str(resolve_model(spec.model)))


def companion_models(config: LearnerConfig) -> dict[str, str]:
    """Models beside the policy that the learner's settings name, by role."""
    named = {
        "reference": config.reference.model,
        "teacher": config.teacher and config.teacher.model,
        "critic": config.critic and config.critic.model,
    }
    return {role: model for role, model in named.items() if model is not None}


def companion_folders(config: LearnerConfig) -> dict[str, Path]:
    """Folders, on this node, of `companion_models`.

    Raises:
        ModelError: one is not here; says how to get it.
    """
    return {role: resolve_model(model) for role, model in companion_models(config).items()}


def make_renderer(spec: RunSpec) -> Renderer:
    return Renderer(spec.model_path, system_prompt=spec.system_prompt)


def make_replay(spec: RunSpec) -> ReplayCache | ShardedReplay:
    if spec.replay.num_shards == 1:
        directory = spec.directory / "replay"
        return ReplayCache(spec.replay, directory=directory, seed=spec.seed, incarnation=spec.incarnation)
    shards = [make_replay_shard(spec, shard) for shard in range(spec.replay.num_shards)]
    return ShardedReplay(ReplayCoordinator(spec.replay, shards), shards)


def make_replay_shard(spec: RunSpec, shard: int) -> ReplayShard:
    return ReplayShard(spec.replay, directory=spec.directory / "replay", seed=spec.seed, shard=shard)


def task_feed_options(spec: RunSpec, tasks: Sequence[Task]) -> dict[str, Any]:
    """Keyword arguments of the run's TaskFeed."""
    guided = bool(spec.guidance.contexts)
    return {
        "seed": spec.seed,
        "log_dir": spec.directory / "tasks",
        "order": make_order(spec.curriculum.sampler, tasks, spec.seed),
        "guidance": GuidancePolicy(spec.guidance, spec.seed) if guided else None,
        "stages": spec.curriculum.stages,
        "tables": donor_tables(spec.rollout.rules),
        "donors_from": spec.curriculum.donors_from,
        "lease_timeout_s": spec.replay.ticket_timeout_s,
    }


def make_task_feed(spec: RunSpec, tasks: Sequence[Task]) -> TaskFeed:
    return TaskFeed(tasks, **task_feed_options(spec, tasks))


def make_weight_store(spec: RunSpec) -> WeightStore:
    return WeightStore(
        Path(spec.weights_dir), state_dir=spec.directory / "weights", keep_versions=spec.weights.keep_versions
    )


def make_reward_worker(spec: RunSpec) -> RewardWorker:
    return RewardWorker(spec.reward)


def make_rollout_worker(spec: RunSpec, worker_id: str, ports: RolloutPorts) -> RolloutWorker:
    return RolloutWorker(
        worker_id,
        spec.rollout,
        spec.weights,
        make_engine(spec.rollout.engine),
        make_renderer(spec),
        Finisher(spec.rollout.rules),
        ports,
        seed=spec.seed,
        cues={str(kind): cue for kind, cue in spec.guidance.cues.items()},
        weights_timeout_s=spec.replay.ticket_timeout_s,
    )


def make_learner_rank(spec: RunSpec, rank: int = 0, init_method: str | None = None) -> LearnerRank:
    """Loads the model; with several ranks all of them must be built together (they meet at `init_method`)."""
    from actors.learner_worker import LearnerRank
    from learner.trainer import Trainer

    pin_to_cores(spec.learner.cores)
    trainer = Trainer(
        spec.learner,
        spec.terms,
        spec.model_path,
        temperature=spec.rollout.sampling.temperature,
        companions=companion_folders(spec.learner),
        rank=rank,
        world_size=spec.learner.num_ranks,
        init_method=init_method,
    )
    return LearnerRank(trainer, Path(spec.weights_dir), incarnation=spec.incarnation)


def make_learner_plan(spec: RunSpec) -> LearnerPlan:
    from actors.learner_worker import LearnerPlan

    renderer = make_renderer(spec)
    probe = renderer.answer_ids(PROBE_TEXT)
    return LearnerPlan(
        num_steps=spec.num_steps,
        weights=spec.weights,
        weights_dtype=spec.rollout.engine.dtype,
        probe_token_ids=tuple(probe[: spec.rollout.engine.max_model_len - 1]),
        max_age=spec.replay.max_age,
        max_skipped_steps=spec.learner.max_skipped_steps,
        checkpoint_every=spec.checkpoint_every,
        max_minutes=spec.max_minutes,
        skipped_dir=spec.directory / "skipped",
    )


def expert_groups(tasks: Sequence[Task], renderer: Renderer) -> Iterator[Group]:
    """Frozen groups of all expert responses that come with the tasks."""
    for task in tasks:
        if task.expert:
            answers = [renderer.answer_ids(response.text) for response in task.expert]
            yield expert_group(task, renderer.prompt_ids(task.messages), answers)


def frozen_groups(spec: RunSpec, tasks: Sequence[Task]) -> Iterator[Group]:
    """All the replay cache is filled with before the run: expert responses of the tasks, and imports.

    Raises:
        ImportedDataError: an import cannot be read, or lacks what a term of its source needs.
    """
    if "expert" not in spec.replay.quotas and not spec.replay.imports:
        return
    renderer = make_renderer(spec)
    if "expert" in spec.replay.quotas:
        yield from expert_groups(tasks, renderer)
    for entry in spec.replay.imports:
        needs = frozenset(need for term in spec.terms if term.source == entry.source for need in term.needs)
        for group in imported_groups(entry, renderer):
            check_needs(group, needs, entry.path)
            yield group


def pin_to_cores(cores: str | None) -> None:
    """Restricts this process to a core list such as "0" or "0,2-3"; None or an unsupported system changes nothing."""
    if cores is None or not hasattr(os, "sched_setaffinity"):
        return
    os.sched_setaffinity(0, parse_cores(cores) & os.sched_getaffinity(0) or os.sched_getaffinity(0))


def parse_cores(cores: str) -> set[int]:
    """{0, 2, 3} for "0,2-3".

    Raises:
        ValueError: not a list of core numbers and ranges.
    """
    chosen: set[int] = set()
    for part in cores.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            raise ValueError(f"core list {cores!r}: write numbers and ranges such as '0,2-3'")
        chosen |= set(range(int(first), int(last or first) + 1))
    return chosen
