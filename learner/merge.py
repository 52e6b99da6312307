"""Several models of one architecture become one: the mean of their weights, or RAM."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.export import WEIGHT_SUFFIXES

Method = Literal["mean", "ram"]

CHANGED = 1e-5
"""A weight differs from its base when it lies further away; rounding of bfloat16 is coarser than this."""


class MergeError(ValueError):
    """Models that do not fit together."""


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """Element by element, in fp32, in the dtype of the first."""
    return torch.stack([t.float() for t in tensors]).mean(dim=0).to(tensors[0].dtype)


def ram_of(base: Tensor, tensors: Sequence[Tensor], *, changed: float = CHANGED) -> Tensor:
    """base + D: where several models changed a weight the mean of their changes, where one did its whole change.

    Source: RAM, xiangchi-yuan/mrl, ram-main.py.
    """
    deltas = torch.stack([t.float() - base.float() for t in tensors])
    masks = deltas.abs() > changed
    total = (deltas * masks).sum(dim=0) / masks.sum(dim=0).clamp(min=1)
    return (base.float() + total).to(base.dtype)


def merge_models(models: Sequence[Path], target: Path, *, method: Method, base: Path | None = None) -> int:
    """Writes a Hugging Face folder with the merged weights and everything else of the first (RAM: of the base) model.

    Returns:
        Number of merged tensors.

    Raises:
        MergeError: too few models, no base where one is needed, or tensors of other names or shapes.
        FileExistsError: the target is there and not empty.
    """
    if len(models) < (2 if method == "mean" else 1):
        raise MergeError(f"{len(models)} models cannot be averaged: name at least two")
    if (method == "ram") != (base is not None):
        raise MergeError(f"method {method!r} {'needs' if method == 'ram' else 'has no use for'} a base model (--base)")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty folder: name another target")
    found = [_weights(model) for model in models]
    before = None if base is None else _weights(base)
    _check_alike(models, found if before is None else [before, *found])
    merged = {
        name: mean_of([f[name] for f in found]) if before is None else ram_of(before[name], [f[name] for f in found])
        for name in found[0]
    }
    target.mkdir(parents=True, exist_ok=True)
    for file in (base or models[0]).iterdir():
        if file.is_file() and file.suffix not in WEIGHT_SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copy2(file, target / file.name)
    save_file({name: t.contiguous() for name, t in merged.items()}, target / "model.safetensors", {"format": "pt"})
    return len(merged)


def _weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MergeError(f"{folder} holds no .safetensors file: merge exported models (`braid export`)")
    tensors: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    return tensors


def _check_alike(models: Sequence[Path], found: Sequence[dict[str, Tensor]]) -> None:
    shapes = [{name: tuple(t.shape) for name, t in tensors.items()} for tensors in found]
    for other in shapes[1:]:
        if strangers := {name for name in {*shapes[0], *other} if shapes[0].get(name) != other.get(name)}:
            raise MergeError(
                f"{', '.join(map(str, models))}: {len(strangers)} tensors differ in name or shape, e.g. "
                f"{min(strangers)}: only models trained from the same base can be merged"
            )
