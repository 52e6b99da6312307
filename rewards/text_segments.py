"""Texts as tasks: what is the next segment, or the one that was left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from rewards.task import ExpertResponse, Task, TaskSet
from rewards.templates import check_template

NEXT = "{before}\n\nWrite the next sentence of this text, and nothing else."
MISSING = "{before}\n[...]\n{after}\n\nWrite the sentence that was left out, and nothing else."
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
NUM_SENTENCES = 5
"""Of a generated text."""


def text_segment_tasks(
    *,
    num_train: int,
    num_heldout: int,
    seed: int,
    path: str | None = None,
    missing_share: float = 0.5,
    window: int = 2,
    min_before: int = 2,
    next_template: str = NEXT,
    missing_template: str = MISSING,
) -> TaskSet:
    """Tasks of two modes, in the tag `mode`: `next` shows what comes before a segment, `missing` also what follows it.

    A segment is a sentence. The reference of `next` is the segment and the ones after it, up to `window`, so that a
    verifier can accept any number of them; of `missing` it is the segment alone. A prompt never holds its reference's
    first segment. Texts are on one side of the split only.

    Args:
        path: .jsonl with a `text` per line, or plain text with blank lines between texts; None generates texts that
            count in steps.
        missing_share: share of `missing` among the segments, evenly spread.
        min_before: segments shown before the first one that is asked for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed template, numbers without sense, or too few segments.

    Source: RLPT, arXiv:2509.19249, sections on ASR and MSR.
    """
    check_template("tasks.options.next_template", next_template, required="before")
    check_template("tasks.options.missing_template", missing_template, required="before", optional=("after",))
    if not 0 <= missing_share <= 1 or window < 1 or min_before < 1:
        raise ValueError(
            f"missing_share={missing_share}, window={window}, min_before={min_before}: a share within 0 and 1, and at "
            "least one segment before and one to be found"
        )
    wanted = num_train + num_heldout
    texts = _counting_texts(wanted, seed) if path is None else _shuffled(read_texts(Path(path)), seed)
    templates = {"next": next_template, "missing": missing_template}
    share = Fraction(str(missing_share))
    heldout: list[Task] = []
    train: list[Task] = []
    for number, text in enumerate(texts):
        side = heldout if len(heldout) < num_heldout else train
        room = num_heldout - len(heldout) if side is heldout else num_train - len(train)
        side += list(_tasks_of(text, number, len(heldout) + len(train), share, window, min_before, templates))[:room]
        if len(train) == num_train:
            return TaskSet(train=tuple(train), heldout=tuple(heldout))
    raise ValueError(
        f"{len(heldout)} held-out and {len(train)} training segments were found in {path or 'generated texts'}, "
        f"{num_heldout} and {num_train} are needed: ask for fewer, lower min_before, or supply more text"
    )


def segments(text: str) -> list[str]:
    """Sentences of a text, white space made even."""
    return [" ".join(sentence.split()) for sentence in SENTENCE_END.split(text.strip()) if sentence.strip()]


def read_texts(path: Path) -> list[str]:
    """The texts of a .jsonl file (key `text`), or of a plain file with blank lines between them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not an object with a text.
    """
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return [part for part in re.split(r"\n\s*\n", content) if part.strip()]
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f"{path}:{number}: expected an object with a string under 'text'")
        texts.append(row["text"])
    return texts


def _tasks_of(
    text: str,
    number: int,
    first: int,
    missing_share: Fraction,
    window: int,
    min_before: int,
    templates: dict[str, str],
) -> Iterator[Task]:
    """One task per segment that has enough before it, and for `missing` one after it."""
    parts = segments(text)
    for place, i in enumerate(range(min_before, len(parts) - 1), start=first):
        is_missing = int(missing_share * (place + 1)) > int(missing_share * place)
        mode = "missing" if is_missing else "next"
        before = " ".join(parts[:i])
        reference = parts[i] if is_missing else " ".join(parts[i : i + window])
        if parts[i] in before or (is_missing and parts[i] in parts[i + 1]):
            continue  # the answer stands in the prompt
        yield Task(
            task_id=f"segments/{number}-{i}",
            prompt=templates[mode].format(before=before, **({"after": parts[i + 1]} if is_missing else {})),
            reference=reference,
            metadata={"document": number, "segment": i, "mode": mode},
            expert=(ExpertResponse(text=parts[i], author="text"),),
            tags={"mode": mode},
        )


def _counting_texts(num: int, seed: int) -> Iterable[str]:
    """Distinct texts that add or subtract the same number again and again, so each sentence follows from the others."""
    rng = np.random.default_rng(seed)
    pairs = [(start, step) for start in range(10, 100) for step in range(-9, 10) if step]
    for i in rng.permutation(len(pairs))[:num]:
        value, step = pairs[int(i)]
        sign = "+" if step > 0 else "-"
        sentences = []
        for _ in range(NUM_SENTENCES):
            sentences.append(f"{value} {sign} {abs(step)} = {value + step}.")
            value += step
        yield " ".join(sentences)


def _shuffled(texts: list[str], seed: int) -> list[str]:
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
