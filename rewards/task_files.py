"""Tasks from a JSON-lines or Parquet file."""

from __future__ import annotations

import difflib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from datasets.exceptions import DatasetGenerationError

from rewards.task import ExpertResponse, Task
from rewards.templates import check_template
from rewards.trajectory import LOGPROB_SLACK

PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
REFERENCE_COLUMNS = ("reference", "answer", "solution", "ground_truth")
RESPONSE_COLUMNS = ("responses", "response")
LOGPROBS_COLUMNS = ("logprobs",)
TAGS_COLUMNS = ("tags",)
ID_COLUMNS = ("task_id", "id")

Row = dict[str, Any]


def read_tasks(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    reference_column: str | None = None,
    response_column: str | None = None,
    logprobs_column: str | None = None,
    rejected_column: str | None = None,
    tags_column: str | None = None,
    id_column: str | None = None,
    require_reference: bool = True,
    expert_from_reference: bool = False,
    expert_template: str = "{answer}",
) -> list[Task]:
    """One task per row, in file order.

    Columns that are not named are looked for under their usual names (`prompt`, `question`, ...; `reference`,
    `answer`, ...; `responses`, `response`; `logprobs`; `tags`; `task_id`, `id`). A prompt is text or a list of chat
    messages up to the user's turn. Responses are off-policy answers, one text or a list of them; `logprobs` holds nats
    per token, for a list of responses one list each; null is unknown, for one token or for a whole response. Columns
    with another role travel in the task's metadata.

    Args:
        rejected_column: answers worse than the responses, one text or a list; they join them with a recorded score of
            0 beside 1, which preference losses and advantages read. Only read where it is named.
        require_reference: False where no verifier compares with a reference.
        expert_from_reference: the reference, put into `expert_template`, is an expert response as well.

    Raises:
        FileNotFoundError, ValueError: no such file, another format, a missing column, or a row that cannot be a task.
    """
    check_template("tasks.options.expert_template", expert_template, required="answer")
    path = Path(path)
    rows = _read_rows(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    prompt_column = _column(path, names, prompt_column, PROMPT_COLUMNS, "prompt", required=True)
    assert prompt_column is not None  # it is required
    reference_column = _column(
        path, names, reference_column, REFERENCE_COLUMNS, "reference", required=require_reference
    )
    response_column = _column(path, names, response_column, RESPONSE_COLUMNS, "response")
    logprobs_column = _column(path, names, logprobs_column, LOGPROBS_COLUMNS, "logprobs")
    if rejected_column is not None:
        _column(path, names, rejected_column, (), "rejected", required=True)
    tags_column = _column(path, names, tags_column, TAGS_COLUMNS, "tags")
    id_column = _column(path, names, id_column, ID_COLUMNS, "id")
    roles = {prompt_column, reference_column, response_column, logprobs_column, tags_column, id_column}
    roles.add(rejected_column)
    file_id = "/".join(path.resolve().with_suffix("").parts[-2:])

    def task(index: int, row: Row) -> Task:
        where = f"{path}, row {index}"
        reference = _reference(_cell(row, reference_column), where, require_reference)
        expert = _responses(_cell(row, response_column), _cell(row, logprobs_column), where)
        rejected = _responses(_cell(row, rejected_column), None, where)
        expert += tuple(replace(response, score=0.0) for response in rejected)
        if expert_from_reference:
            if reference is None:
                raise ValueError(f"{where}: expert_from_reference is set, but the row has no reference answer")
            expert += (ExpertResponse(text=expert_template.format(answer=reference), author="reference"),)
        return Task(
            task_id=f"{file_id}/{index}" if id_column is None else _task_id(_cell(row, id_column), where),
            prompt=_prompt(_cell(row, prompt_column), where),
            reference=reference,
            metadata={name: value for name, value in row.items() if name not in roles},
            expert=expert,
            tags=_tags(_cell(row, tags_column), where),
        )

    return [task(index, row) for index, row in enumerate(rows)]


# -- files ------------------------------------------------------------------------------------------------------------


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"no task file {path} (looked in {Path.cwd()}): set tasks.name to a .jsonl or .parquet")
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"task file {path}: {path.suffix or 'no suffix'} is not one of {', '.join(READERS)}")
    rows = reader(path)
    if not rows:
        raise ValueError(f"task file {path} holds no rows")
    return rows


def _read_json(path: Path) -> list[Row]:
    """Rows as they are written. A reader that infers column types would turn the answer "2020-01-01" into a time, 3
    into 3.0 beside 0.5, and a number of thirty digits into a rounded one."""
    text = path.read_text(encoding="utf-8")
    rows = []
    for where, row in _json_array(path, text) if text.lstrip().startswith("[") else _json_lines(path, text):
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not an object with columns but {row!r:.80}")
        rows.append(row)
    return rows


def _json_array(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for index, row in enumerate(_parsed(text, f"task file {path}")):
        yield f"{path}, row {index}", row


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut at characters JSON text may hold
        if line.strip():
            yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _read_parquet(path: Path) -> list[Row]:
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="braid-tasks-") as cache:
        try:
            data = Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
        except (DatasetGenerationError, OSError, ValueError) as error:
            raise ValueError(f"task file {path} cannot be read: {error.__cause__ or error}") from error
        assert isinstance(data, Dataset)
        return data.to_list()


READERS = {".jsonl": _read_json, ".json": _read_json, ".parquet": _read_parquet}


# -- columns and cells ------------------------------------------------------------------------------------------------


def _column(
    path: Path, names: Sequence[str], wanted: str | None, usual: Sequence[str], role: str, *, required: bool = False
) -> str | None:
    """The column that plays a role; None where it is optional and absent. One that was asked for must be there."""
    candidates = (wanted,) if wanted is not None else usual
    for name in candidates:
        if name in names:
            return name
    if wanted is None and not required:
        return None
    close = difflib.get_close_matches(candidates[0], names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    way_out = f"Name it in tasks.options.{role}_column"
    if role == "reference":
        way_out += ", or set tasks.options.require_reference=false if no verifier needs one"
    raise ValueError(
        f"task file {path} has no {'reference answer' if role == 'reference' else role} column: looked for "
        f"{', '.join(candidates)}, found {', '.join(names)}.{hint} {way_out}."
    )


def _cell(row: Row, column: str | None) -> Any:
    return None if column is None else row.get(column)


def _task_id(value: Any, where: str) -> str:
    if isinstance(value, str | int) and str(value).strip():
        return str(value)
    raise ValueError(f"{where}: the task id must be text or a number, got {value!r:.120}")


def _prompt(value: Any, where: str) -> str | tuple[Mapping[str, Any], ...]:
    if isinstance(value, str) and value.strip():
        return value
    messages = value if isinstance(value, list) else []
    if not messages or not all(
        isinstance(m, dict) and m.get("role") and m.get("content") is not None for m in messages
    ):
        raise ValueError(f"{where}: the prompt must be text or chat messages with role and content, got {value!r:.120}")
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{where}: the chat ends with the assistant's turn, so the prompt would hold the answer. Move that turn to "
            "a `response` column."
        )
    return tuple({key: part for key, part in message.items() if part is not None} for message in messages)


def _reference(value: Any, where: str, required: bool) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        if required:
            raise ValueError(
                f"{where}: no reference answer, so no verifier could judge it. Remove the row, or set "
                "tasks.options.require_reference=false if no verifier needs one."
            )
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise ValueError(f"{where}: the reference answer must be text or a number, got {value!r:.120}")


def _responses(value: Any, logprobs: Any, where: str) -> tuple[ExpertResponse, ...]:
    if value is None:
        if logprobs is not None:
            raise ValueError(f"{where}: logprobs without a response they could belong to")
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(
            f"{where}: a response must be text, or a list of texts, none of them blank; got {value!r:.120}"
        )
    if logprobs is None:
        per_text: list[Any] = [None] * len(texts)
    elif isinstance(value, str) and not (isinstance(logprobs, list) and any(isinstance(p, list) for p in logprobs)):
        per_text = [logprobs]
    else:
        per_text = logprobs if isinstance(logprobs, list) else [logprobs]
    if len(per_text) != len(texts):
        raise ValueError(f"{where}: {len(texts)} responses but {len(per_text)} lists of logprobs")
    return tuple(
        ExpertResponse(text=text, logprobs=None if nats is None else _nats(nats, where))
        for text, nats in zip(texts, per_text, strict=True)
    )


def _nats(values: Any, where: str) -> tuple[float, ...]:
    """Log-probs of one response; null stays unknown, as NaN."""
    if not isinstance(values, list):
        raise ValueError(f"{where}: logprobs must be a list of nats per token, got {values!r:.120}")
    nats = tuple(math.nan if value is None else value for value in values)
    for value in nats:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (math.isnan(value) or -math.inf < value <= LOGPROB_SLACK):
            raise ValueError(f"{where}: a log-prob is a number of at most 0 or null, got {value!r:.80}")
    return tuple(float(value) for value in nats)


def _tags(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: tags must map names to labels, got {value!r:.120}")
    return {name: str(label) for name, label in value.items() if label is not None}
