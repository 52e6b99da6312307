import pytest

from rewards import sandbox


def works(tier):
    """Whether a tier works on this machine; with a missing one its tests are skipped, with none they fail."""
    run = sandbox._run_in_namespaces if tier == "A" else sandbox._run_confined
    try:
        return run(["-c", "print(1)"], b"", sandbox.Limits(wall_s=20.0)).stdout == b"1\n"
    except (sandbox.SandboxError, OSError):
        return False


@pytest.fixture(params=["A", "B"])
def tier(request, monkeypatch):
    if sandbox.tier() == "none":
        pytest.fail("no sandbox works here; BRAID_ALLOW_NO_SANDBOX=1 skips these tests")
    if not works(request.param):
        pytest.skip(f"sandbox tier {request.param} does not work here; the other one does")
    monkeypatch.setattr(sandbox, "tier", lambda: request.param)
    return request.param
