"""A published version becomes a folder `transformers` and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path

from actors.engines.protocol import WeightUpdate

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".gguf"}


def keep_as_model(update: WeightUpdate, base_model: Path, target: Path) -> None:
    """Copies a published version beside the base model's configuration and tokenizer; replaces `target` in one move.

    An adapter version keeps PEFT's layout and needs the base model to load.
    """
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(update.path, building, ignore=shutil.ignore_patterns("manifest.json"))
    if update.kind == "full":
        for file in base_model.iterdir():
            if file.is_file() and file.suffix not in WEIGHT_SUFFIXES and not file.name.endswith(".index.json"):
                shutil.copy2(file, building / file.name)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
