"""Finds runs by what a user calls them."""

from __future__ import annotations

import difflib
import json
import re
import time
from pathlib import Path

from orchestrator.load_config import make_importable, recipe_folder

STAMP = re.compile(r"-\d{8}-\d{6}$")
FOLDERS = "import_folders.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class UnknownRunError(ValueError):
    """No run of that name, or a name no run can have."""


def new_run_folder(runs: Path, recipe_name: str, name: str | None) -> Path:
    """Where a new run goes: `runs/NAME`, or `runs/RECIPE-YYYYmmdd-HHMMSS` without a name.

    Raises:
        UnknownRunError: the name cannot be a folder's.
    """
    chosen = name or f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not NAME.fullmatch(chosen):
        raise UnknownRunError(
            f"run name {chosen!r}: use letters, digits, '.', '_' and '-', beginning with one of the first"
        )
    return runs.expanduser() / chosen


def find_run(text: str, runs: Path) -> Path:
    """The folder of a run named by path, by name below `runs`, or by name without its time stamp (the newest).

    Raises:
        UnknownRunError: there is none.
    """
    runs = runs.expanduser()
    for folder in (Path(text).expanduser(), runs / text):
        if is_run(folder):
            return folder
    known = sorted(p.name for p in runs.iterdir() if is_run(p)) if runs.is_dir() else []
    stamped = [name for name in known if STAMP.sub("", name) == text]
    if stamped:
        return runs / stamped[-1]
    close = difflib.get_close_matches(text, [*known, *(STAMP.sub("", name) for name in known)], n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"{len(known)} runs are in {runs}; --runs looks elsewhere"
    raise UnknownRunError(f"no run {text!r}: {hint}")


def remember_folders(run_dir: Path, recipe: str) -> None:
    """Writes down where the user's own modules were found, so that the run can go on from another folder."""
    folders = [Path.cwd(), recipe_folder(recipe)]
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / FOLDERS).write_text(json.dumps([str(folder) for folder in folders if folder is not None]))


def recall_folders(run_dir: Path) -> None:
    """Makes a run's own modules importable again, where they still lie."""
    path = run_dir / FOLDERS
    for folder in json.loads(path.read_text()) if path.exists() else []:
        if Path(folder).is_dir():
            make_importable(Path(folder))


def is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "state").is_dir()
