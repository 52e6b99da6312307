"""Memory of each role, by arithmetic on the model's shape; nothing is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.config import RunConfig
from orchestrator.shapes import ModelShape, TaskShape

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

ACTIVATIONS_PER_LAYER = 34
"""Bytes per token and hidden unit that backward needs of one layer at two bytes a number."""

HEAD_BYTES = 10
"""Bytes per token of a chunk and vocabulary entry."""

RECORD_BYTES_PER_TOKEN = 9
"""Token id, behaviour log-prob and role."""
RECORD_BYTES_PER_ANSWER = 600
"""Header of a stored answer: verdict, spans, sampling."""

Place = Literal["memory", "gpu", "shm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One line of the table.

    Attributes:
        bytes: of one process; `count` processes have them.
        place: memory of the machine, of a GPU, or the shared-memory file system.
        formula: where the number comes from.
    """

    role: str
    item: str
    bytes: float
    count: int
    place: Place
    formula: str


def memory_items(
    config: RunConfig, model: ModelShape, tasks: TaskShape, *, num_live_groups: int, tokens_per_update: int
) -> list[MemoryItem]:
    """Everything large.

    Args:
        num_live_groups: live groups that may exist at the same time, stored or running.
        tokens_per_update: tokens the learner computes for one update, all ranks together.
    """
    return [
        *_learner(config, model, tokens_per_update),
        *_engine(config, model),
        _weight_store(config, model),
        _replay(config, tasks, num_live_groups),
        _verifiers(config),
    ]


def total_bytes(items: list[MemoryItem], place: Place) -> float:
    return sum(item.bytes * item.count for item in items if item.place == place)


def kv_bytes_per_token(config: RunConfig, model: ModelShape) -> int:
    return 2 * model.layers * model.kv_heads * model.head_dim * BYTES[config.rollout.engine.dtype]


def _learner(config: RunConfig, model: ModelShape, tokens_per_update: int) -> list[MemoryItem]:
    learner, ranks = config.learner, config.learner.num_ranks
    place: Place = "memory" if config.placement == "cpu" else "gpu"
    width = BYTES[learner.compute_dtype]
    tokens = min(learner.max_tokens_per_micro_batch, math.ceil(tokens_per_update / ranks))
    head_gradient = 4 * model.vocabulary * model.hidden
    chunk = min(learner.logprob_chunk_tokens, tokens)

    def item(name: str, size: float, formula: str) -> MemoryItem:
        return MemoryItem(role="learner rank", item=name, bytes=size, count=ranks, place=place, formula=formula)

    if learner.lora is not None:
        trained = model.adapter_params(learner.lora.rank, learner.lora.target_modules)
        items = [item("frozen weights, fp32", 4 * model.params / ranks, "4 P / ranks")]
        adapted = "P of the adapters"
    else:
        trained, items, adapted = model.params, [], "P"
    items += [
        item("master weights and Adam moments, fp32", 12 * trained / ranks, f"12 {adapted} / ranks"),
        item("gradients, fp32", 4 * trained / ranks, f"4 {adapted} / ranks"),
    ]
    if ranks > 1 or width < 4:
        items.append(item("unsharded layers", 2 * width * model.params_per_layer, f"2 x {width} P of a layer"))
    if learner.gradient_checkpointing:
        size = tokens * model.hidden * width * (model.layers + ACTIVATIONS_PER_LAYER / 2)
        formula = f"T H {width} (layers + {ACTIVATIONS_PER_LAYER / 2:g}), T = {tokens:,} tokens"
    else:
        size = ACTIVATIONS_PER_LAYER / 2 * width * tokens * model.hidden * model.layers
        formula = f"{ACTIVATIONS_PER_LAYER / 2 * width:g} T H layers, T = {tokens:,} tokens"
    items.append(item("activations", size, formula))
    head = HEAD_BYTES * chunk * model.vocabulary + (head_gradient if learner.lora is None else 0)
    items.append(item("log-prob head", head, f"{HEAD_BYTES} C V + 4 V H, C = {chunk} tokens"))
    own_reference = learner.lora is None or learner.reference.model is not None
    if own_reference and any("reference_logprobs" in term.needs for term in config.terms):
        items.append(item("reference weights", 4 * model.params / ranks, "4 P / ranks"))
    if any({"teacher_logprobs", "divergence"} & term.needs for term in config.terms):
        items.append(item("teacher weights, if it is as large", 4 * model.params / ranks, "4 P / ranks"))
    if learner.critic is not None:
        items.append(
            item(
                "critic's weights, moments and gradients, if it is as large",
                16 * trained / ranks,
                f"16 {adapted} / ranks",
            )
        )
    return items


def _engine(config: RunConfig, model: ModelShape) -> list[MemoryItem]:
    engine, count = config.rollout.engine, config.rollout.num_workers
    if engine.kind == "simulated":
        return []
    place: Place = "memory" if config.placement == "cpu" else "gpu"
    per_token = kv_bytes_per_token(config, model)
    limit = engine.max_num_seqs * engine.max_model_len * per_token
    if engine.kind == "transformers":
        cache, formula = limit, f"{engine.max_num_seqs} sequences x {engine.max_model_len} tokens x {per_token:,} B"
    elif engine.kv_cache_bytes is None:
        cache, formula = limit, f"up to gpu_memory_utilization={engine.gpu_memory_utilization:g}; useful: what is shown"
    else:
        cache = engine.kv_cache_bytes
        formula = f"kv_cache_bytes: {cache // per_token:,} tokens, {cache / limit:.0%} of all sequences at full length"
    weights = model.params * BYTES[engine.dtype]
    return [
        MemoryItem(
            role="engine", item="weights", bytes=weights, count=count, place=place, formula=f"P {BYTES[engine.dtype]}"
        ),
        MemoryItem(role="engine", item="KV cache", bytes=cache, count=count, place=place, formula=formula),
    ]


def _weight_store(config: RunConfig, model: ModelShape) -> MemoryItem:
    lora, versions = config.learner.lora, config.weights.keep_versions + 1
    params = model.params if lora is None else model.adapter_params(lora.rank, lora.target_modules)
    width = BYTES[config.rollout.engine.dtype]
    return MemoryItem(
        role="weight store",
        item=f"{versions} versions",
        bytes=versions * params * width,
        count=1,
        place="shm" if config.weights.directory is None else "memory",
        formula=f"(keep_versions + 1) P {width}",
    )


def _replay(config: RunConfig, tasks: TaskShape, num_live_groups: int) -> MemoryItem:
    live = num_live_groups * config.rollout.group_size
    frozen = tasks.num_with_expert * tasks.answers_per_expert_group if "expert" in config.replay.quotas else 0.0
    prompt = tasks.prompt_tokens
    tokens = live * (prompt + config.rollout.sampling.max_new_tokens) + frozen * (prompt + tasks.expert_answer_tokens)
    size = RECORD_BYTES_PER_TOKEN * tokens + RECORD_BYTES_PER_ANSWER * (live + frozen)
    formula = f"{live:,.0f} live and {frozen:,.0f} frozen answers, {RECORD_BYTES_PER_TOKEN} B per token"
    return MemoryItem(role="replay cache", item="packed groups", bytes=size, count=1, place="memory", formula=formula)


def _verifiers(config: RunConfig) -> MemoryItem:
    reward = config.reward
    return MemoryItem(
        role="reward child",
        item="limit, mostly unused",
        bytes=0.0,
        count=reward.num_processes,
        place="memory",
        formula=f"address space is limited to reward.memory_mb={reward.memory_mb}",
    )
