"""Turns what a user names or writes into a validated RunConfig, or into one error that says what to fix."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

import recipes
from orchestrator.config import RunConfig
from rewards.import_path import load_callable

TREE_SUFFIXES = (".yaml", ".yml", ".json")
MAX_SHOWN_FAULTS = 3


class ConfigError(ValueError):
    """A recipe, a configuration file or an override that leads to no usable configuration."""


def load_run_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration a recipe describes, validated as a whole after the overrides.

    Args:
        recipe: a name of the package `recipes`; `./my_recipe.py` or `./my_recipe.py:function`; a .yaml or .json file,
            whose key `recipe` names a base that the rest of the file changes; or `module:function`.
        overrides: `a.b=c` with the value in YAML; numbers in the path are places in a list, and the place after the
            last one appends.

    Raises:
        ConfigError, ImportPathError: anything that is wrong with one of them, in one message.
    """
    config = _load(recipe, seen=())
    return override(config, overrides) if overrides else config


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration with `a.b=c` settings applied.

    Raises:
        ConfigError: a malformed override, an unknown key, or a configuration that is invalid afterwards.
    """
    tree = config.model_dump(mode="json")
    for text in overrides:
        path, value = _parse_override(text)
        _assign(tree, path, value, text)
    return _validate(tree, "--set " + " --set ".join(overrides))


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(m.name for m in pkgutil.iter_modules(recipes.__path__) if not m.name.startswith("_"))


def recipe_summary(name: str) -> str:
    """What a built-in recipe is, in one line."""
    module = importlib.import_module(f"recipes.{name}")
    return (module.__doc__ or "").strip().partition("\n")[0]


def recipe_folder(recipe: str) -> Path | None:
    """The folder of a recipe that is a file; a user's modules are looked for there."""
    file, _ = _split_file(recipe)
    return None if file is None else file.resolve().parent


def make_importable(folder: Path) -> None:
    """Lets modules in `folder` be imported, here and in the processes of a run, which inherit the search path.

    The folder comes last: a user's own folder `rewards` or `tests` must not hide an installed package.
    """
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.append(path)
        importlib.invalidate_caches()


# -- where a configuration comes from ---------------------------------------------------------------------------


def _load(recipe: str, seen: tuple[Path, ...]) -> RunConfig:
    file, function = _split_file(recipe)
    if file is not None and file.suffix == ".py":
        return _from_python_file(file, function)
    if file is not None:
        return _from_tree_file(file, seen)
    if ":" in recipe:
        return _call(load_callable(recipe, purpose="recipe", known_names=recipe_names()), recipe)
    return _built_in(recipe)


def _split_file(recipe: str) -> tuple[Path | None, str | None]:
    """(path, function) when the recipe is a file; a function can follow a Python file after a colon."""
    path, colon, function = recipe.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path).expanduser(), function
    if recipe.endswith((".py", *TREE_SUFFIXES)):
        return Path(recipe).expanduser(), None
    return None, None


def _built_in(name: str) -> RunConfig:
    known = recipe_names()
    if name not in known:
        raise ConfigError(f"unknown recipe {name!r}: {_recipe_hint(name, known)}")
    return _call(getattr(importlib.import_module(f"recipes.{name}"), name), name)


def _recipe_hint(name: str, known: Sequence[str]) -> str:
    beside = [f"{name}{suffix}" for suffix in (".py", *TREE_SUFFIXES) if Path(f"{name}{suffix}").is_file()]
    if beside:
        return f"did you mean the file ./{beside[0]}?"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}? `braid recipes` lists all of them"
    return f"known recipes: {', '.join(known)}. Your own is a path such as ./my_recipe.py or ./my_run.yaml"


def _from_python_file(path: Path, function: str | None) -> RunConfig:
    _check_exists(path)
    make_importable(path.parent)
    name = f"braid_recipe_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a spec and a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"recipe {path} failed while it was imported: {_told(error)}") from error
    return _call(_recipe_function(module, path, function), str(path))


def _recipe_function(module: Any, path: Path, wanted: str | None) -> Callable[[], Any]:
    own = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if wanted is not None:
        if wanted not in own:
            close = difflib.get_close_matches(wanted, own, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its functions: {', '.join(own) or 'none'}"
            raise ConfigError(f"recipe {path} has no function {wanted!r}: {hint}")
        return own[wanted]
    declared = [f for f in own.values() if f.__annotations__.get("return") in (RunConfig, "RunConfig")]
    candidates = declared or list(own.values())
    if len(candidates) == 1:
        return candidates[0]
    if path.stem in own:
        return own[path.stem]
    if not candidates:
        raise ConfigError(f"recipe {path} defines no function; write `def {path.stem}() -> RunConfig: ...`")
    names = ", ".join(f.__name__ for f in candidates)
    raise ConfigError(
        f"recipe {path} defines several functions ({names}): name one, as in {path}:{names.split(',')[0]}"
    )


def _call(function: Callable[..., Any], where: str) -> RunConfig:
    """What a recipe function returns, validated again: `model_copy(update=...)` checks nothing."""
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if required:
        raise ConfigError(f"recipe {where}: its function must take no arguments, but needs {', '.join(required)}")
    try:
        config = function()
    except ValidationError as error:
        raise ConfigError(f"recipe {where}: {error.title}: {_explain(error, {})}") from error
    except Exception as error:
        raise ConfigError(f"recipe {where} raised {_told(error)}") from error
    if not isinstance(config, RunConfig):
        raise ConfigError(f"recipe {where} must return a RunConfig, got {type(config).__name__}")
    return _validate(config.model_dump(mode="json", warnings=False), f"recipe {where}")


def _from_tree_file(path: Path, seen: tuple[Path, ...]) -> RunConfig:
    _check_exists(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its `recipe` leads back to itself; name another base")
    tree = _read_tree(path)
    if path.suffix != ".json":  # a run's own config.json lies beside folders that are no packages
        make_importable(path.parent)
    base = tree.pop("recipe", None)
    if base is None:
        return _validate(tree, str(path))
    if not isinstance(base, str):
        raise ConfigError(f"{path}: recipe must be a name or a path, got {base!r:.80}")
    file, function = _split_file(base)
    if file is not None and not file.is_absolute():
        base = str(path.parent / file) + (f":{function}" if function else "")
    try:
        based_on = _load(base, (*seen, path.resolve()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _validate(_merged(RunConfig, based_on.model_dump(mode="json"), tree), str(path))


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text()) if path.suffix == ".json" else parse_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(tree).__name__}")
    return tree


def _merged(section: type[BaseModel], base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key. Anything else is replaced: lists, and mappings whose keys the user names."""
    merged = dict(base)
    for key, value in changes.items():
        inner = _section_in(section, key)
        if inner is not None and isinstance(value, dict) and isinstance(base.get(key), dict):
            value = _merged(inner, base[key], value)
        merged[key] = value
    return merged


def _section_in(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section a key of a section holds, optional or not; None for a plain value or an unknown key."""
    field = section.model_fields.get(key)
    annotation = field.annotation if field is not None else None
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    folder = path.parent if path.parent.is_dir() else Path()
    close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir() if p.is_file()], n=1)
    hint = f" Did you mean {folder / close[0]}?" if close else ""
    raise ConfigError(f"no file {path} (looked in {Path.cwd()}).{hint}")


# -- overrides --------------------------------------------------------------------------------------------------


def _parse_override(text: str) -> tuple[list[str], Any]:
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: write it as section.key=value, e.g. --set rollout.group_size=4")
    try:
        return parts, parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text}: the value is not valid YAML ({_one_line(error)}); put text with braces, brackets or colons "
            f"in quotes of its own: --set '{path}=\"...\"'"
        ) from error


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any, text: str) -> None:
    """Writes into the nested mappings and lists; missing mappings on the way are made."""
    node: Any = tree
    for depth, part in enumerate(path):
        key: Any = part
        if isinstance(node, list):
            key = _place(node, ".".join(path[:depth]), part, text)
        elif not isinstance(node, dict):
            at = ".".join(path[:depth])
            raise ConfigError(f"--set {text}: {at} is {node!r}, which has no parts; set {at} itself")
        if depth == len(path) - 1:
            node[key] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]


def _place(node: list[Any], at: str, part: str, text: str) -> int:
    """The index `part` means in a list; one past the end appends an empty entry."""
    if not part.isdigit() or int(part) > len(node):
        raise ConfigError(f"--set {text}: {at} is a list of {len(node)}, so {at}.{part} is none of its places")
    if int(part) == len(node):
        node.append({})
    return int(part)


# -- YAML -------------------------------------------------------------------------------------------------------


class _CoreLoader(yaml.SafeLoader):
    """Scalars of YAML 1.2: `1e-4` is a number, `on` and `12:30` are text. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if key.value in known:
                raise yaml.constructor.ConstructorError(problem=f"key {key.value!r} twice", problem_mark=key.start_mark)
            known.add(key.value)
        return super().construct_mapping(node, deep)


_CoreLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_CoreLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_CoreLoader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


def parse_yaml(text: str) -> Any:
    """Plain data from YAML text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _CoreLoader)


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1} column {mark.column + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or error}{where}"


# -- what is wrong ----------------------------------------------------------------------------------------------


def _validate(tree: Mapping[str, Any], where: str) -> RunConfig:
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, tree)}") from error


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """Key and fault of what pydantic found, in one line."""
    faults: dict[str, str] = {}
    for item in error.errors(include_url=False):
        path = _path_of(item["loc"], tree, missing=item["type"] == "missing")
        if not any(other.startswith(f"{path}.") for other in faults):  # else only a consequence of the other one
            faults.setdefault(path, _fault_of(item))
    shown = [f"{path}: {fault}" if path else fault for path, fault in list(faults.items())[:MAX_SHOWN_FAULTS]]
    more = len(faults) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _path_of(loc: Sequence[int | str], tree: Any, *, missing: bool) -> str:
    """Dotted key as a user writes it: pydantic's names of union members are left out."""
    parts: list[str] = []
    node: Any = tree
    for depth, part in enumerate(loc):
        if _holds(node, part):
            node = node[part]
            parts.append(str(part))
        elif not tree or (missing and depth == len(loc) - 1):
            parts.append(str(part))
    return ".".join(parts)


def _holds(node: Any, part: int | str) -> bool:
    return part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int)


def _fault_of(item: Any) -> str:
    context = item.get("ctx", {})
    if item["type"] == "value_error":
        return str(context["error"])
    if item["type"] == "missing":
        return "is required and was not given"
    message = item["msg"][:1].lower() + item["msg"][1:]
    if item["type"] == "union_tag_invalid":
        given, known = context["tag"], re.findall(r"'([^']*)'", context["expected_tags"])
        message = f"must be one of {', '.join(known)}"
    else:
        given, known = item["input"], re.findall(r"'([^']*)'", str(context.get("expected", "")))
    close = difflib.get_close_matches(str(given), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{message}, got {given!r:.80}{hint}"


def _told(error: Exception) -> str:
    """Kind, message and the place in the user's own file where an exception came from."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"
