"""What `preflight` refuses about machines: placement, resources, cores, and engines that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from orchestrator.config import RunConfig
from orchestrator.resources import Available, learner_gpus_per_rank, requested

VLLM_DEFAULT_LORA_RANK = 16

FIXED_ENGINE_OPTIONS = {
    "logprobs_mode": "log-probs must be those of the distribution tokens are drawn from",
    "generation_config": "a model's own top-p or top-k would truncate the distribution behind the learner's back",
    "logits_processors": "they change the distribution, and the learner could not mirror it",
    "worker_extension_cls": "new weights are loaded through it",
    "skip_tokenizer_init": "tokens go in and tokens come out",
}
"""Engine arguments a configuration must leave alone, and why."""


def placement_problems(config: RunConfig) -> Iterator[str]:
    """Placement, layout and core lists that contradict each other."""
    rollout, gpus = config.rollout, config.rollout.num_gpus_per_worker
    if config.placement == "cpu" and gpus > 0:
        yield (
            f"placement='cpu' but rollout.num_gpus_per_worker={gpus:g}: set placement='split' or 'colocated', or 0 GPUs"
        )
    if config.placement != "cpu" and gpus == 0 and rollout.engine.kind != "simulated":
        yield (
            f"placement={config.placement!r} but rollout.num_gpus_per_worker=0, so no engine would see a GPU: set it "
            f"to {rollout.engine.tensor_parallel_size if config.placement == 'split' else '0.5'}"
        )
    if config.placement == "split" and 0 < gpus != rollout.engine.tensor_parallel_size:
        yield (
            f"rollout.num_gpus_per_worker={gpus:g} but rollout.engine.tensor_parallel_size="
            f"{rollout.engine.tensor_parallel_size}: an engine needs as many whole GPUs as it is spread over"
        )
    if config.placement == "colocated" and gpus > 0 and learner_gpus_per_rank(config) <= 0:
        yield (
            f"placement='colocated' but {rollout.num_workers} workers x {gpus:g} GPUs leave nothing of the "
            f"{config.learner.num_ranks} GPUs of the learner: lower rollout.num_gpus_per_worker"
        )
    if config.layout is not None and config.placement != "cpu":
        yield (
            f"layout={config.layout!r} divides the cores of one machine, but placement={config.placement!r} puts the "
            "heavy roles on GPUs: set layout=null"
        )
    if rollout.engine.cores is not None and rollout.num_workers > 1:
        yield (
            f"rollout.engine.cores={rollout.engine.cores!r} with rollout.num_workers={rollout.num_workers}: all "
            "workers would share these cores. Use one worker, or no core list (layout=null)"
        )


def resource_problems(config: RunConfig, available: Available) -> Iterator[str]:
    """More than the cluster has. A cluster that starts with the run gets as many logical CPUs as are asked for."""
    roles = requested(config)
    parts = [f"{role.count} x {role.gpus:g} for each {role.role}" for role in roles if role.gpus]
    gpus = sum(role.count * role.gpus for role in roles)
    if gpus > available.gpus:
        yield (
            f"the run asks for {gpus:g} GPUs ({', '.join(parts)}), but {available.where} has {available.gpus:g}: "
            "lower rollout.num_workers or learner.num_ranks, or set placement='cpu' and 0 GPUs"
        )
    for role in roles:
        if gpus <= available.gpus and role.gpus > max(available.gpus_per_node, default=0):
            yield (
                f"a {role.role} asks for {role.gpus:g} GPUs on one node, but the largest node of {available.where} has "
                f"{max(available.gpus_per_node, default=0):g}"
            )
    cpus = sum(role.count * role.cpus for role in roles)
    if cpus > available.cpus and not available.starts_with_run:
        yield (
            f"the run asks for {cpus:g} CPUs, but {available.where} has {available.cpus:g}: lower rollout.num_workers, "
            "rollout.num_cpus_per_worker or learner.num_ranks"
        )
    if available.starts_with_run:
        yield from core_problems(config, int(available.cpus))


def core_problems(config: RunConfig, num_cores: int) -> Iterator[str]:
    """Core lists this machine cannot honour."""
    from actors.assembly import parse_cores  # loads torch, which the run loads too

    for key, cores in (("rollout.engine.cores", config.rollout.engine.cores), ("learner.cores", config.learner.cores)):
        try:
            wanted = set().union(*(parse_cores(part) for part in (cores or "").split("|") if part))
        except ValueError as error:
            yield f"{key}: {error}"
            continue
        if wanted and max(wanted) >= num_cores:
            yield (
                f"{key}={cores!r} names core {max(wanted)}, but this machine has {num_cores}, counted from 0: change "
                "the list, or set layout='free'"
            )


def engine_problems(config: RunConfig) -> Iterator[str]:
    """An engine that is not installed, and options it must not have."""
    engine, lora = config.rollout.engine, config.learner.lora
    if engine.kind == "simulated":
        from actors.engines.simulation import SimulatedOptions

        try:
            SimulatedOptions.from_config(engine.options)
        except ValueError as error:
            yield str(error)
        return
    if engine.kind != "vllm":
        return
    if find_spec("vllm") is None:
        yield (
            "rollout.engine.kind='vllm' but vllm is not installed: install the extra `cpu` or `gpu` of braid-rl, or "
            "--set rollout.engine.kind=transformers"
        )
    for name, reason in FIXED_ENGINE_OPTIONS.items():
        if name in engine.options:
            yield f"rollout.engine.options.{name}={engine.options[name]!r} cannot be set: {reason}. Remove it"
    max_rank = engine.options.get("max_lora_rank", VLLM_DEFAULT_LORA_RANK)
    if lora is not None and not (engine.options.get("enable_lora") and lora.rank <= max_rank):
        yield (
            f"learner.lora.rank={lora.rank} needs an engine that loads such adapters: set rollout.engine.options="
            f"{{enable_lora: true, max_lora_rank: {lora.rank}}}"
        )
