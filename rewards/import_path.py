"""Turns `my_pkg.rewards:score` into the object it names, with one error that says what to fix."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any


class ImportPathError(ValueError):
    """A name in a config that leads to no usable function."""


def load_callable(path: str, *, purpose: str, known_names: Iterable[str] = ()) -> Callable[..., Any]:
    """The function an import path `package.module:attribute` names.

    Args:
        path: what the config says.
        purpose: what the path was for, e.g. "verifier"; opens the error message.
        known_names: names that would have been accepted instead of a path; the nearest ones are suggested.

    Raises:
        ImportPathError: not a path, module or attribute missing, the module fails while it is imported, or the
            object cannot be called.
    """
    known_names = tuple(known_names)
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise ImportPathError(
            f"unknown {purpose} {path!r}: {_nearest(path, known_names)}, or an import path such as 'my_pkg.module:name'"
        )
    module = _import(path, module_name, purpose, known_names)
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in dir(target) if not name.startswith("_") and callable(getattr(target, name))]
            raise ImportPathError(
                f"{purpose} {path!r}: module {module_name!r} has no attribute {part!r}: {_nearest(part, public)}"
            )
        target = getattr(target, part)
    if not callable(target):
        raise ImportPathError(f"{purpose} {path!r} names a {type(target).__name__}, which cannot be called")
    return target


def _import(path: str, module_name: str, purpose: str, known_names: tuple[str, ...]) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise ImportPathError(
                f"{purpose} {path!r}: module {module_name!r} was found, but it imports {missing!r}, which was not"
            ) from error
        raise ImportPathError(
            f"{purpose} {path!r}: no module {missing!r} on sys.path ({_shown_path()}). Run from the folder that holds "
            f"the package, or add that folder to PYTHONPATH. For a built-in name: {_nearest(path, known_names)}"
        ) from error
    except Exception as error:
        raise ImportPathError(
            f"{purpose} {path!r}: module {module_name!r} failed while it was imported: {type(error).__name__}: {error}"
        ) from error


def _shown_path(limit: int = 4) -> str:
    shown = [entry or "." for entry in sys.path[:limit]]
    return ", ".join(shown) + (", ..." if len(sys.path) > limit else "")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name.partition(":")[2] or name, known, n=3)
    if close:
        return f"did you mean {' or '.join(repr(candidate) for candidate in close)}?"
    return f"known names: {', '.join(known) or 'none'}"
