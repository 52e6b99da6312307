from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actors.model_store import cache_root
from actors.renderer import Renderer, RenderError
from actors.tiny_model import CHAT_TEMPLATE

TURNS = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "And the double?"},
]
BOS_TEMPLATE = "<|bos|>" + CHAT_TEMPLATE
NO_MARK_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
THINKING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Shows the thoughts of the last turn only, as reasoning models do."""
NO_TOOLS_TEMPLATE = (
    "{% if messages[-1]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + CHAT_TEMPLATE
)


def save_tokenizer(
    folder: Path, template: str | None = CHAT_TEMPLATE, *, eos: str | None = "<|im_end|>", adds_bos: bool = False
) -> str:
    """A byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|im_start|>", "<|im_end|>", "<|eos|>"])
    if adds_bos:
        bos = tokenizer.token_to_id("<|bos|>")
        tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", bos)])
    marks = {"eos_token": eos} if eos else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
        **marks,
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["bytes", "bos", "tiny", "smollm2-135m"])
def path(request, tmp_path) -> str:
    """Folders with a tokenizer; the last ones are those of real models."""
    if request.param == "bytes":
        return save_tokenizer(tmp_path)
    if request.param == "bos":
        return save_tokenizer(tmp_path, BOS_TEMPLATE, eos="<|eos|>", adds_bos=True)
    folder = cache_root() / "models" / request.param
    if not (folder / "config.json").exists():
        pytest.skip(f"{request.param} is not in the model cache: braid fetch-model {request.param}")
    return str(folder)


@cache
def tokenizer_in(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


def ids_of(path: str, text: str) -> list[int]:
    return tokenizer_in(path)(text, add_special_tokens=False)["input_ids"]


def template_ids(path: str, messages: list[dict], *, answer_follows: bool = True) -> list[int]:
    """What transformers itself makes of a conversation."""
    return tokenizer_in(path).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=answer_follows, return_dict=False
    )


@pytest.mark.parametrize("messages", [TURNS[:1], TURNS, [{"role": "system", "content": "Be short."}, *TURNS[:1]]])
def test_prompt_ids_are_those_of_the_template(path, messages):
    assert Renderer(path).prompt_ids(messages) == template_ids(path, messages)


def test_a_system_prompt_stands_in_for_the_templates_own_and_yields_to_the_conversations(path):
    renderer = Renderer(path, system_prompt="Be short.")
    own = {"role": "system", "content": "Be long."}
    assert renderer.prompt_ids(TURNS[:1]) == template_ids(path, [{"role": "system", "content": "Be short."}, TURNS[0]])
    assert renderer.prompt_ids([own, TURNS[0]]) == template_ids(path, [own, TURNS[0]])


def test_no_second_beginning_of_sequence_where_template_and_tokenizer_both_write_one(tmp_path):
    path = save_tokenizer(tmp_path, BOS_TEMPLATE, adds_bos=True)
    tokenizer = tokenizer_in(path)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id  # or nothing was tested
    renderer = Renderer(path)
    prompt = renderer.prompt_ids(TURNS[:1])
    assert prompt[0] == tokenizer.bos_token_id
    for ids in (prompt[1:], renderer.answer_ids("5"), renderer.extend([*prompt, *renderer.answer_ids("5")], TURNS[2:])):
        assert tokenizer.bos_token_id not in ids


@pytest.mark.parametrize(
    ("template", "eos", "expected"),
    [
        (CHAT_TEMPLATE, "<|im_end|>", ["<|im_end|>"]),
        (CHAT_TEMPLATE, "<|eos|>", ["<|im_end|>", "<|eos|>"]),
        (CHAT_TEMPLATE, None, ["<|im_end|>"]),
        (NO_MARK_TEMPLATE, "<|eos|>", ["<|eos|>"]),
    ],
)
def test_stop_ids_are_the_end_of_the_turn_then_the_end_of_the_sequence(tmp_path, template, eos, expected):
    path = save_tokenizer(tmp_path, template, eos=eos)
    assert Renderer(path).stop_token_ids == tuple(tokenizer_in(path).convert_tokens_to_ids(expected))


def test_a_tokenizer_that_cannot_end_or_render_a_conversation_is_refused(tmp_path):
    with pytest.raises(RenderError, match="neither an end-of-turn nor an end-of-sequence"):
        Renderer(save_tokenizer(tmp_path / "a", NO_MARK_TEMPLATE, eos=None))
    with pytest.raises(RenderError, match="no chat template"):
        Renderer(save_tokenizer(tmp_path / "b", None))


@pytest.mark.parametrize("text", ["5", "The answer is -12.", " leading, two  spaces\nand Ünïcode ✓", ""])
def test_an_answer_ends_with_the_end_of_turn_and_reads_back(path, text):
    renderer = Renderer(path)
    ids = renderer.answer_ids(text)
    assert ids[-1] == renderer.stop_token_ids[0]
    assert renderer.decode(ids) == renderer.decode(np.array(ids, np.int32)) == text


def test_a_further_turn_keeps_the_sampled_ids_and_gives_the_templates_conversation(path):
    renderer = Renderer(path)
    for earlier in (TURNS[:1], [{"role": "system", "content": "Be short."}, TURNS[0]]):
        sampled = [*renderer.prompt_ids(earlier), *renderer.answer_ids("5")]
        whole = [*sampled, *renderer.extend(sampled, TURNS[2:])]
        assert whole == template_ids(path, [*earlier, *TURNS[1:]])


def test_tokens_no_tokenizer_would_have_chosen_stay_as_they_were_sampled(tmp_path):
    path = save_tokenizer(tmp_path)
    renderer = Renderer(path)
    odd = [*renderer.prompt_ids(TURNS[:1]), *ids_of(path, "<|im_start|>"), renderer.stop_token_ids[0]]
    before = list(odd)
    added = renderer.extend(odd, TURNS[2:])
    assert odd == before
    assert added == ids_of(path, "\n<|im_start|>user\nAnd the double?<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_that_was_cut_is_ended_before_the_next_turn(path):
    renderer = Renderer(path)
    whole = [*renderer.prompt_ids(TURNS[:1]), *renderer.answer_ids("5")]
    cut = whole[:-1]
    assert [*cut, *renderer.extend(cut, TURNS[2:])] == [*whole, *renderer.extend(whole, TURNS[2:])]


def test_several_messages_and_other_roles_follow_in_order(tmp_path):
    path = save_tokenizer(tmp_path)
    renderer = Renderer(path)
    sampled = [*renderer.prompt_ids(TURNS[:1]), *renderer.answer_ids("5")]
    added = [{"role": "tool", "content": "10"}, TURNS[2]]
    assert [*sampled, *renderer.extend(sampled, added)] == template_ids(path, [*TURNS[:2], *added])


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path):
    renderer = Renderer(save_tokenizer(tmp_path, THINKING_TEMPLATE))
    sampled = [*renderer.prompt_ids(TURNS[:1]), *renderer.answer_ids("5")]
    with pytest.raises(RenderError, match="rewrites earlier turns"):
        renderer.extend(sampled, TURNS[2:])


def test_a_message_the_template_refuses_is_a_render_error(tmp_path):
    renderer = Renderer(save_tokenizer(tmp_path, NO_TOOLS_TEMPLATE))
    with pytest.raises(RenderError, match="no tools"):
        renderer.prompt_ids([{"role": "tool", "content": "10"}])


def test_fingerprints_tell_vocabularies_and_templates_apart(tmp_path):
    paths = [
        save_tokenizer(tmp_path / "a"),
        save_tokenizer(tmp_path / "b"),
        save_tokenizer(tmp_path / "c", BOS_TEMPLATE),
    ]
    one, same, other = (Renderer(path) for path in paths)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.vocab_size == 256 + 4
