"""Tasks from a JSON-lines or Parquet file, read through Hugging Face `datasets`."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, disable_progress_bars
from datasets.exceptions import DatasetGenerationError

from rewards.task import ExpertResponse, Task

PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
REFERENCE_COLUMNS = ("reference", "answer", "solution", "ground_truth")
RESPONSE_COLUMNS = ("responses", "response")
ID_COLUMNS = ("task_id", "id")
READERS = {".jsonl": Dataset.from_json, ".json": Dataset.from_json, ".parquet": Dataset.from_parquet}


def read_tasks(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    reference_column: str | None = None,
    response_column: str | None = None,
    logprobs_column: str = "logprobs",
    tags_column: str = "tags",
    id_column: str | None = None,
    require_reference: bool = True,
    expert_from_reference: bool = False,
    expert_template: str = "{answer}",
) -> list[Task]:
    """One task per row, in file order.

    Columns that are not named are looked for under their usual names (`prompt`, `question`, ...; `reference`,
    `answer`, ...; `responses`, `response`; `task_id`, `id`). A prompt is text or a list of chat messages. Responses are
    off-policy answers, one text or a list of them; `logprobs` holds nats per token, one list per response. Columns with
    another role travel in the task's metadata.

    Args:
        require_reference: False where no verifier compares with a reference.
        expert_from_reference: the reference, put into `expert_template`, is an expert response as well.

    Raises:
        FileNotFoundError, ValueError: no such file, another format, a missing column, or a row that cannot be a task.
    """
    path = Path(path)
    rows, columns = _read_rows(path)
    prompt_column = _column(path, columns, prompt_column, PROMPT_COLUMNS, "prompt")
    assert prompt_column is not None  # it is required
    reference_column = _column(
        path, columns, reference_column, REFERENCE_COLUMNS, "reference answer", required=require_reference
    )
    response_column = _column(path, columns, response_column, RESPONSE_COLUMNS, "response", required=False)
    id_column = _column(path, columns, id_column, ID_COLUMNS, "id", required=False)
    roles = {prompt_column, reference_column, response_column, id_column, logprobs_column, tags_column}
    file_id = "/".join(path.resolve().with_suffix("").parts[-2:])
    tasks: list[Task] = []
    for index, row in enumerate(rows):
        where = f"{path}, row {index}"
        reference = _reference(row.get(reference_column) if reference_column else None, where, require_reference)
        expert = _responses(row.get(response_column) if response_column else None, row.get(logprobs_column), where)
        if expert_from_reference:
            if reference is None:
                raise ValueError(f"{where}: expert_from_reference is set, but the row has no reference answer")
            expert += (ExpertResponse(text=expert_template.format(answer=reference), author="reference"),)
        tasks.append(
            Task(
                task_id=str(row[id_column]) if id_column else f"{file_id}/{index}",
                prompt=_prompt(row[prompt_column], where),
                reference=reference,
                metadata={name: value for name, value in row.items() if name not in roles},
                expert=expert,
                tags=_tags(row.get(tags_column), where),
            )
        )
    return tasks


def _read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no task file {path} (looked in {Path.cwd()}): set tasks.name to a .jsonl or .parquet")
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"task file {path}: {path.suffix or 'no suffix'} is not one of {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"task file {path} is empty")
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="braid-tasks-") as cache:
        try:
            data = reader(str(path), cache_dir=cache, keep_in_memory=True)
        except DatasetGenerationError as error:
            raise ValueError(f"task file {path} cannot be read: {error.__cause__ or error}") from error
        assert isinstance(data, Dataset)
        return data.to_list(), list(data.features or Features())


def _column(
    path: Path, columns: Sequence[str], wanted: str | None, usual: Sequence[str], role: str, *, required: bool = True
) -> str | None:
    candidates = (wanted,) if wanted is not None else usual
    for name in candidates:
        if name in columns:
            return name
    if wanted is None and not required:
        return None
    close = difflib.get_close_matches(candidates[0], columns, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"task file {path} has no {role} column: looked for {', '.join(candidates)}, found {', '.join(columns)}.{hint} "
        f"Name it in tasks.options."
    )


def _prompt(value: Any, where: str) -> str | tuple[Mapping[str, Any], ...]:
    if isinstance(value, str) and value.strip():
        return value
    messages = value if isinstance(value, list) else []
    if messages and all(isinstance(m, dict) and m.get("role") and m.get("content") is not None for m in messages):
        return tuple({key: part for key, part in message.items() if part is not None} for message in messages)
    raise ValueError(f"{where}: the prompt must be text or chat messages with role and content, got {value!r:.120}")


def _reference(value: Any, where: str, required: bool) -> str | None:
    text = "" if value is None else str(value)
    if text.strip():
        return text
    if required:
        raise ValueError(
            f"{where}: no reference answer, so no verifier could judge it. Remove the row, or set "
            "tasks.options.require_reference=false if no verifier needs one."
        )
    return None


def _responses(value: Any, logprobs: Any, where: str) -> tuple[ExpertResponse, ...]:
    texts = [value] if isinstance(value, str) else list(value or [])
    if logprobs and not isinstance(logprobs[0], list | tuple):
        logprobs = [logprobs]
    per_text = list(logprobs) if logprobs else [None] * len(texts)
    if len(per_text) != len(texts):
        raise ValueError(f"{where}: {len(texts)} responses but {len(per_text)} lists of logprobs")
    return tuple(
        ExpertResponse(text=text, logprobs=tuple(nats) if nats else None)
        for text, nats in zip(texts, per_text, strict=True)
    )


def _tags(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: tags must map names to labels, got {value!r:.120}")
    return {name: str(label) for name, label in value.items() if label is not None}
