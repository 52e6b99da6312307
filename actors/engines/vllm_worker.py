"""What Braid adds to vLLM's worker processes; imported only inside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.platforms import current_platform


class WeightLoader:
    """Mixed into the worker class; called through `collective_rpc`."""

    vllm_config: Any
    model_runner: Any

    def braid_load_weights(self, path: str) -> None:
        """Replaces all weights by those of a safetensors file under Hugging Face names.

        The file is mapped, not read: each layer is copied once, into the tensors the kernels already hold. The layers
        are processed as they complete, so the extra memory is one layer.
        """
        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config), torch.inference_mode():
            with _without_tied_head_warning(bool(_tied_heads(model))):
                self.model_runner.reload_weights(weights_iterator=_mapped_tensors(path))
            if current_platform.is_cpu():
                for head in _tied_heads(model):
                    # The CPU build multiplies with a packed copy of the head, which a reload of the embedding it is
                    # tied to does not refresh.
                    head.quant_method.process_weights_after_loading(head)


def _mapped_tensors(path: str) -> Iterator[tuple[str, Tensor]]:
    """In the order of the file, so that layers complete one after another."""
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in file.offset_keys():
            yield name, file.get_tensor(name)


def _tied_heads(model: nn.Module) -> list[ParallelLMHead]:
    """Output heads that share their storage with an input embedding."""
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, ParallelLMHead)]
    embeddings = {
        module.get_parameter("weight").data_ptr()
        for module in modules
        if isinstance(module, VocabParallelEmbedding) and module not in heads
    }
    return [head for head in heads if head.get_parameter("weight").data_ptr() in embeddings]


@contextmanager
def _without_tied_head_warning(has_tied_head: bool) -> Iterator[None]:
    """A tied head has no weights of its own in the file, which is reported as a failure on every update."""

    def keep(record: logging.LogRecord) -> bool:
        return not (
            has_tied_head and "Failed to load weights" in str(record.msg) and "ParallelLMHead" in str(record.args)
        )

    log = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)
