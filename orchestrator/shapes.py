"""Sizes a plan is made from: of a model, without loading its weights, and of tasks, counted in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.model_store import KNOWN_MODELS, cache_root
from actors.renderer import Renderer
from rewards.task import Task, TaskSet

MAX_MEASURED_TASKS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What memory depends on.

    Attributes:
        params: parameters, tied ones once; params_per_layer: of one decoder layer.
        adapter_size: input plus output features of all linear layers of a name, summed over the layers; times the rank
            it is the size of their LoRA adapters.
    """

    params: int
    params_per_layer: int
    layers: int
    hidden: int
    vocabulary: int
    kv_heads: int
    head_dim: int
    adapter_size: Mapping[str, int]

    def adapter_params(self, rank: int, target_modules: Sequence[str]) -> int:
        return rank * sum(self.adapter_size.get(name, 0) for name in target_modules)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskShape:
    """Tasks in tokens, from an even sample of them.

    Attributes:
        prompts: token ids of the sampled training prompts.
        expert_answers: for each of them the token ids of its expert responses, often none.
    """

    num_train: int
    num_heldout: int
    num_with_expert: int
    prompts: tuple[list[int], ...]
    expert_answers: tuple[tuple[list[int], ...], ...]

    @property
    def prompt_tokens(self) -> float:
        return sum(map(len, self.prompts)) / len(self.prompts)

    @property
    def longest_prompt(self) -> int:
        return max(map(len, self.prompts))

    @property
    def answers_per_expert_group(self) -> float:
        groups = [answers for answers in self.expert_answers if answers]
        return sum(map(len, groups)) / len(groups) if groups else 0.0

    @property
    def expert_answer_tokens(self) -> float:
        answers = [answer for answers in self.expert_answers for answer in answers]
        return sum(map(len, answers)) / len(answers) if answers else 0.0


def local_model_folder(name_or_path: str) -> Path | None:
    """The folder of a model that is already on this machine; nothing is downloaded or built."""
    if name_or_path in KNOWN_MODELS:
        folder = cache_root() / "models" / name_or_path
        return folder if (folder / "config.json").exists() else None
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name_or_path, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def model_shape(folder: Path) -> ModelShape:
    """Counts parameters on a model that is built without memory for its weights.

    Raises:
        OSError, ValueError: the folder holds no configuration transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = model.get_decoder().layers
    adapter_size: dict[str, int] = {}
    for name, module in layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            short = name.rpartition(".")[2]
            adapter_size[short] = adapter_size.get(short, 0) + module.in_features + module.out_features
    heads = text.num_attention_heads
    return ModelShape(
        params=sum(p.numel() for p in model.parameters()),
        params_per_layer=sum(p.numel() for p in layers[0].parameters()),
        layers=len(layers),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        adapter_size=adapter_size,
    )


def task_shape(tasks: TaskSet, renderer: Renderer) -> TaskShape:
    """Counts tokens as a run would, for an even sample of the training tasks."""
    sample: Sequence[Task] = tasks.train[:: max(1, len(tasks.train) // MAX_MEASURED_TASKS)]
    return TaskShape(
        num_train=len(tasks.train),
        num_heldout=len(tasks.heldout),
        num_with_expert=sum(bool(task.expert) for task in tasks.train),
        prompts=tuple(renderer.prompt_ids(task.messages) for task in sample),
        expert_answers=tuple(tuple(renderer.answer_ids(r.text) for r in task.expert) for task in sample),
    )
