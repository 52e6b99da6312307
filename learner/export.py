"""A policy's weights under the names others know: for publishing and as folders that transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from learner.policy import ADAPTER_NAME, Policy
from learner.sharding import full_tensor

MAX_SHARD_BYTES = 5 << 30
"""A weight file of an exported folder holds at most this much."""

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}


def full_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face names and whole CPU tensors, in the model's order, a tied head left out; collective."""
    for name, parameter in policy.model.named_parameters():
        yield name, full_tensor(parameter).cpu()


def adapter_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The trained LoRA matrices under the names of PEFT's `adapter_model.safetensors`; collective."""
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            yield f"base_model.model.{name.replace(f'.{ADAPTER_NAME}.', '.')}", full_tensor(parameter).cpu()


def merged_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """As `full_weights` of a policy without adapters: W + scaling * B A under the name of W; collective."""
    from peft.tuners.lora import LoraLayer

    adapted = {name: module for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in policy.model.named_parameters():
        if ".lora_" in name:
            continue
        weight = full_tensor(parameter).cpu()
        module = adapted.get(name.removesuffix(".base_layer.weight"))
        if module is not None:
            weight = weight + _low_rank_product(module)
        yield name.replace(".base_layer.", "."), weight


def _low_rank_product(module: Any) -> Tensor:
    """[out, in] what a LoRA layer adds to its weight."""
    down: nn.Linear = module.lora_A[ADAPTER_NAME]
    up: nn.Linear = module.lora_B[ADAPTER_NAME]
    return module.scaling[ADAPTER_NAME] * (full_tensor(up.weight).cpu() @ full_tensor(down.weight).cpu())


def adapter_config(policy: Policy) -> dict[str, Any]:
    """Contents of PEFT's `adapter_config.json`."""
    if policy.adapter is None:
        raise ValueError("this policy trains all weights and has no adapter to describe")
    config = policy.adapter.peft_config[ADAPTER_NAME].to_dict()
    return json.loads(json.dumps({**config, "inference_mode": True}, default=_plain))


def write_model_folder(policy: Policy, base_model: Path, folder: Path, *, writes: bool) -> None:
    """A folder that `from_pretrained` and `vllm serve` load: configuration and tokenizer of the base, trained weights.

    Weights get the dtype the base model's configuration names. A LoRA policy is merged, and its adapter is written
    in PEFT layout to `folder/adapter`. Collective: all ranks gather, the one that `writes` keeps the tensors.
    """
    dtype = _stored_dtype(base_model)
    weights = merged_weights(policy) if policy.adapter is not None else full_weights(policy)
    kept = {name: tensor.to(dtype).contiguous() for name, tensor in weights if writes}
    adapter = {}
    if policy.adapter is not None:
        adapter = {name: tensor.contiguous() for name, tensor in adapter_weights(policy) if writes}
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in base_model.iterdir():
        if file.is_file() and file.suffix not in WEIGHT_SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    _write_shards(kept, folder)
    if adapter:
        (folder / "adapter").mkdir(exist_ok=True)
        save_file(adapter, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(adapter_config(policy), indent=2))


def _stored_dtype(base_model: Path) -> torch.dtype:
    config = json.loads((base_model / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, name)


def _write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """`model.safetensors`, or numbered files with an index when it would be too large."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > MAX_SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file_name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / file_name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: f for f, shard in zip(names, shards, strict=True) for name in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _plain(value: Any) -> Any:
    """PEFT's configuration holds sets and enums."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
