"""A transformers causal LM behind one question: the log-probs of these tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.attention import ATTENTION_NAME
from learner.batch import MicroBatch, TrainingSequence, collate
from learner.logprobs import likeliest_tokens, token_logprobs, vocabulary_divergence, vocabulary_measures
from rewards.trajectory import Float32Array

if TYPE_CHECKING:  # the model side runs where pydantic is not installed
    from learner.config import LoRAConfig

ADAPTER_NAME = "default"

UNSUPPORTED_HEADS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}
"""Config fields that change logits after the head, with the value that leaves them alone."""


class TokenOutputs(NamedTuple):
    """What a forward pass says of a micro-batch's trained tokens, fp32, in the order of `batch.readers`.

    Attributes:
        logprobs: [N] nats.
        entropy: [N] nats, where asked for.
        measures: [4, N] `vocabulary_measures`, where asked for.
        divergence: [N] nats to the teacher, where there is one.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    measures: Tensor | None = None
    divergence: Tensor | None = None


class TeacherView(NamedTuple):
    """A teacher's next-token distributions at a micro-batch's predictors: [M, H'] hidden states, [V', H'] head.

    The head is that of the teacher while it is gathered: `release()` the teacher only after the backward pass.
    """

    hidden: Tensor
    weight: Tensor
    mixture: float


class Policy(nn.Module):
    """Weights in fp32, computation in `compute_dtype`. Also the frozen reference, with no weight requiring gradients.

    Attributes:
        model: the transformers model, with LoRA layers in place when adapters are trained.
        adapter: the PEFT wrapper around `model`, or None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 1.0,
        chunk_tokens: int = 512,
        compute_dtype: torch.dtype = torch.float32,
        lora: LoRAConfig | None = None,
    ) -> None:
        """Takes over `model`: sets its attention, and with `lora` freezes it and adds adapters.

        Raises:
            ValueError: the model's head does something between the last hidden state and the logits.
        """
        super().__init__()
        _refuse_unsupported_head(model)
        model.set_attn_implementation(ATTENTION_NAME)
        model.config.use_cache = False
        model.eval()
        self.adapter = _add_lora(model, lora) if lora is not None else None
        self.model = model
        self.temperature = temperature
        self.compute_dtype = compute_dtype
        self._chunk_tokens = chunk_tokens

    @classmethod
    def load(cls, model_path: str | Path, **options: Any) -> Self:
        """Reads a folder in Hugging Face format; `options` are those of the constructor."""
        return cls(AutoModelForCausalLM.from_pretrained(str(model_path), dtype=torch.float32), **options)

    @property
    def device(self) -> torch.device:
        return self._head_weight.device

    @property
    def sharded(self) -> bool:
        """Whether FSDP holds the weights: it then casts them itself and frees them between uses."""
        return isinstance(self, FSDPModule)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, the unit of sharding and gathering."""
        return cast(nn.ModuleList, self.model.get_decoder().layers)

    @property
    def _head_weight(self) -> Tensor:
        """[V, H]; read anew each time, because FSDP replaces the parameter while it is gathered."""
        return cast(nn.Linear, self.model.get_output_embeddings()).weight

    def forward(
        self,
        batch: MicroBatch,
        *,
        with_entropy: bool = False,
        temperature: float | None = None,
        vocabulary_floor: float | None = None,
        teacher: TeacherView | None = None,
    ) -> TokenOutputs:
        """Log-probs of a micro-batch's trained tokens, and what else is asked for.

        Args:
            vocabulary_floor: asks for `vocabulary_measures`, in which it is the floor.
            teacher: asks for `vocabulary_divergence` to it.
        """
        hidden = self.predictor_states(batch)
        temperature = self.temperature if temperature is None else temperature
        options = {"temperature": temperature, "chunk_tokens": self._chunk_tokens}
        weight, readers = self._head_weight, batch.readers
        logprobs, entropy = token_logprobs(
            hidden, weight, batch.rows, batch.targets, with_entropy=with_entropy, **options
        )
        measures = divergence = None
        if vocabulary_floor is not None:
            measures = vocabulary_measures(hidden, weight, floor=vocabulary_floor, **options)[:, batch.rows][:, readers]
        if teacher is not None:
            per_row = vocabulary_divergence(
                hidden, weight, teacher.hidden, teacher.weight, mixture=teacher.mixture, **options
            )
            divergence = per_row[batch.rows][readers]
        return TokenOutputs(logprobs[readers], None if entropy is None else entropy[readers], measures, divergence)

    def predictor_states(self, batch: MicroBatch) -> Tensor:
        """[M, H] hidden states behind the final norm at the nodes that predict a trained token."""
        return self._hidden_states(batch).index_select(0, batch.predictors)

    @torch.no_grad()
    def likeliest_tokens(self, batch: MicroBatch) -> Tensor:
        """[M] the token this policy finds likeliest at each of `batch.predictors`."""
        return likeliest_tokens(self.predictor_states(batch), self._head_weight, chunk_tokens=self._chunk_tokens)

    @torch.no_grad()
    def as_teacher(self, batch: MicroBatch, mixture: float) -> TeacherView:
        """This policy's distributions for another one to learn from."""
        return TeacherView(self.predictor_states(batch), self._head_weight.detach(), mixture)

    def _hidden_states(self, batch: MicroBatch) -> Tensor:
        """[n, H] hidden states behind the final norm, in the compute dtype."""
        decoder = self.model.get_decoder()
        casts = self.compute_dtype != torch.float32 and not self.sharded
        with torch.autocast(self.device.type, self.compute_dtype) if casts else nullcontext():
            embeddings = self._embed(cast(nn.Module, decoder.get_input_embeddings()), batch.token_ids[None])
            output = decoder(
                inputs_embeds=embeddings.to(self.compute_dtype),
                position_ids=batch.position_ids[None],
                use_cache=False,
                layout=batch.layout,
            )
        return output.last_hidden_state[0].to(self.compute_dtype)

    def _embed(self, table: nn.Module, token_ids: Tensor) -> Tensor:
        """[1, n, H]. On one CPU rank the rows' gradients are added to `table.weight.grad` in place, because autograd
        would make a dense [V, H] gradient for a few hundred rows; `backward()` works as ever, `autograd.grad` not."""
        plain = type(table) is nn.Embedding and self.device.type == "cpu" and not self.sharded
        if not plain or not torch.is_grad_enabled() or not cast(nn.Embedding, table).weight.requires_grad:
            return table(token_ids)
        table = cast(nn.Embedding, table)
        embeddings = F.embedding(token_ids, table.weight.detach()).requires_grad_()
        embeddings.register_hook(partial(_add_to_rows, table, token_ids))
        return embeddings

    def release(self) -> None:
        """Frees what a forward pass without backward left gathered, so that the next one sees updated weights."""
        if isinstance(self, FSDPModule):
            self.reshard()

    @torch.no_grad()
    def sequence_logprobs(self, token_ids: Sequence[int], temperature: float = 1.0) -> Float32Array:
        """[T] float32 log-probs of each token given those before it; the first is NaN."""
        ids = np.asarray(token_ids, np.int32)
        logprobs = np.full(len(ids), np.nan, np.float32)
        if len(ids) > 1:
            positions = np.arange(1, len(ids))
            batch = collate(
                [TrainingSequence(0, ids, positions, positions)],
                {},
                share_prefixes=True,
                backend="blocks",
                device=self.device,
                dtype=self.compute_dtype,
            )
            logprobs[1:] = self(batch, temperature=temperature)[0].cpu().numpy()
            self.release()
        return logprobs

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the model computes with its frozen weights alone: the reference of a LoRA run."""
        if self.adapter is None:
            raise ValueError("this policy has no adapter, so its own weights are no reference; load a frozen copy")
        with self.adapter.disable_adapter():
            yield


def _add_to_rows(table: nn.Embedding, token_ids: Tensor, gradient: Tensor) -> None:
    """What the backward pass of `nn.Embedding` adds to its weight, the padding row left alone as it does."""
    weight = table.weight
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    rows = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
    if table.padding_idx is not None:
        rows = rows * (token_ids.reshape(-1, 1) != table.padding_idx)
    weight.grad.index_add_(0, token_ids.reshape(-1), rows)


def _refuse_unsupported_head(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    changed = {
        name: getattr(config, name)
        for name, neutral in UNSUPPORTED_HEADS.items()
        if getattr(config, name, None) not in (None, neutral)
    }
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        changed["lm_head.bias"] = "set"
    if changed:
        raise ValueError(
            f"{type(model).__name__} changes its logits after the head ({changed}), which the chunked log-probs do not "
            "do; they would differ from the engine's. Use a model without it (Llama, Qwen, Mistral, SmolLM)."
        )


def _add_lora(model: PreTrainedModel, lora: LoRAConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, lora.alpha),  # any number will do
        target_modules=list(lora.target_modules),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, adapter_name=ADAPTER_NAME)
