"""The threats a sandbox is there for, tier by tier."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewards import sandbox, sandbox_cgroup, sandbox_check, sandbox_filter
from rewards.sandbox_confine import landlock_version
from rewards.verdict import Status
from tests.rewards import hostile
from tests.rewards.sandboxed import assert_gone, judge, needs_sandbox, run


@needs_sandbox
@pytest.mark.usefixtures("tier")
class TestThreats:
    def test_expected_values_are_nowhere_inside(self):
        source = (
            "import glob, sys, os\n"
            "seen = b''\n"
            "for f in ('cmdline', 'environ'):\n"
            "    try: seen += open('/proc/self/' + f, 'rb').read()\n    except OSError: pass\n"
            "def add(a, b): return 'SECRETVALUE' if b'SECRET' + b'VALUE' in seen else 0"
        )
        assert (
            judge(source, {"entry_point": "add", "cases": [{"args": [1, 2], "expected": "SECRETVALUE"}]}).score == 0.0
        )

    def test_files_and_variables_of_the_host_are_out_of_reach(self, tmp_path, monkeypatch):
        canary = tmp_path / "canary"
        canary.write_text("canary-text")
        tmp_path.chmod(0o755)
        monkeypatch.setenv("CANARY", "canary-text")
        source = (
            f"import os\nfor f in ({str(canary)!r}, '/etc/passwd', '/proc/1/environ'):\n"
            "    try: print(open(f).read())\n    except OSError: print('hidden')\n"
            "print(dict(os.environ))"
        )
        said = run(source).stdout
        assert said.count(b"hidden") >= 2
        assert b"root:" not in said
        assert b"canary-text" not in said

    def test_nothing_outside_its_folder_can_be_written(self):
        source = (
            "import os\nfor f in ('/x', '/usr/x', '/dev/x', '/root/x', os.path.dirname(os.__file__) + '/x'):\n"
            "    try: open(f, 'w'); print('wrote', f)\n    except OSError: pass\n"
            "try: open('/tmp/x', 'w').write('1')\nexcept OSError: pass\n"
            "print('ok')"
        )
        assert run(source).stdout == b"ok\n"
        look = "import os\ntry: print(os.listdir('/tmp'))\nexcept OSError: print([])"
        assert run(look).stdout == b"[]\n"  # jobs do not see each other's files

    def test_programs_at_the_same_time_share_no_place(self):
        meet = (
            "import os, sys, time\nmine, other = sys.argv[1:]\nfor f in ('/tmp', '/dev/shm', '/var/tmp'):\n"
            "    try: open(f'{f}/braid-{mine}', 'w').write(mine)\n    except OSError: pass\n"
            "time.sleep(1)\nfor f in ('/tmp', '/dev/shm', '/var/tmp'):\n"
            "    try: print(open(f'{f}/braid-{other}').read())\n    except OSError: pass"
        )
        limits = sandbox.Limits(wall_s=20.0)
        with ThreadPoolExecutor(2) as threads:
            runs = [
                threads.submit(sandbox.run_python, ["-c", meet, mine, other], limits=limits)
                for mine, other in (("left", "right"), ("right", "left"))
            ]
        assert [(r.result().exit_code, r.result().stdout) for r in runs] == [(0, b""), (0, b"")]

    def test_an_orphan_that_holds_the_pipes_is_not_waited_for(self):
        source = (
            "import os, time\ntry:\n    if os.fork() == 0: time.sleep(300)\nexcept OSError: pass\n"
            "print('ok', flush=True); os._exit(0)"
        )
        start = time.monotonic()
        assert run(source).stdout == b"ok\n"
        assert time.monotonic() - start < 15

    def test_sockets_of_the_host_receive_nothing(self, tmp_path):
        tmp_path.chmod(0o777)
        listeners = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
        listeners += [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        addresses = [("127.0.0.1", 0), ("127.0.0.1", 0), str(tmp_path / "s"), f"\0braid-{os.getpid()}"]
        for listener, address in zip(listeners, addresses, strict=True):
            listener.bind(address)
        listeners[0].listen()
        ports = [listener.getsockname()[1] for listener in listeners[:2]]
        source = (
            "import socket\n"
            f"for family, kind, address in ((2, 1, ('127.0.0.1', {ports[0]})), (2, 2, ('127.0.0.1', {ports[1]})),"
            f" (1, 2, {addresses[2]!r}), (1, 2, {addresses[3]!r}), (2, 1, ('169.254.169.254', 80))):\n"
            "    try:\n        s = socket.socket(family, kind); s.settimeout(1); s.connect(address); s.send(b'x')\n"
            "    except OSError: pass\nprint('done')"
        )
        assert run(source).stdout == b"done\n"
        for listener in listeners:
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept() if listener is listeners[0] else listener.recv(1)
            listener.close()

    def test_privileges_are_refused(self, tier):
        source = (
            "import ctypes, os\nc = ctypes.CDLL(None)\n"
            "print(c.unshare(0x10000000), c.mount(b'a', b'/tmp', b'tmpfs', 0, None))\n"
            "try: print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNewPrivs'))])\n"
            "except OSError: print('hidden')\n"
            "import resource\n"
            "try: resource.setrlimit(resource.RLIMIT_CPU, (100, 100)); print('raised')\n"
            "except (OSError, ValueError): pass"
        )
        assert run(source).stdout == b"-1 -1\n" + (b"['0000000000000000', '1']\n" if tier == "A" else b"hidden\n")

    def test_a_daemon_dies_with_its_program(self):
        name = f"braid-daemon-{os.getpid()}"
        source = (
            "import os, sys, time\n"
            "try:\n  if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
            f"        os.execv(sys.executable, [{name!r}, '-c', 'import time; time.sleep(300)'])\n    os._exit(0)\n"
            "except OSError: pass\ntime.sleep(0.5); print('ok')"
        )
        start = time.monotonic()
        assert run(source).stdout == b"ok\n"
        assert time.monotonic() - start < 20
        assert_gone(name)

    def test_a_fork_bomb_is_gone_and_the_next_job_passes(self):
        name = f"braid-bomb-{os.getpid()}"
        source = (
            "import os, sys, time\n"
            f"for _ in range(100):\n    try:\n        if os.fork() == 0:\n"
            f"            os.execv(sys.executable, [{name!r}, '-c', 'import time; time.sleep(300)'])\n"
            "    except OSError: print('refused'); break\ntime.sleep(60)"
        )
        start = time.monotonic()
        outcome = run(source, wall_s=1.5, num_processes=16)
        assert outcome.fate == "timeout"
        assert time.monotonic() - start < 15  # the limit and what ending it takes, not the minute it wanted
        assert_gone(name)
        assert judge("def add(a, b): return a + b").score == 1.0

    def test_disk_is_bounded(self):
        source = (
            "n = 0\ntry:\n    for i in range(100):\n        open(f'/tmp/{i}', 'wb').write(bytes(1 << 20)); n += 1\n"
            "except OSError: pass\nprint(n)"
        )
        assert int(run(source, disk_mb=8).stdout) <= 8

    def test_honest_large_output_passes(self):
        outcome = run("import sys\nfor _ in range(3000): print('x' * 99)\nsys.stderr.write('y' * 300000)")
        assert (outcome.exit_code, len(outcome.stdout), len(outcome.stderr)) == (0, 300_000, 300_000)

    def test_floods_stop_at_the_limit(self):
        outcome = run("import os\nwhile True: os.write(2, b'\\xff' * 4096)")
        assert outcome.fate == "output"
        assert len(outcome.stderr) == sandbox.Limits().max_output

    def test_a_program_cannot_pretend_the_sandbox_failed(self):
        verdict = judge("import sys\nsys.stderr.write('bwrap: no'); sys.exit(1)")
        assert verdict.status is Status.CRASH

    @pytest.mark.parametrize(
        "call",
        ["socket(2, 1, 0)", "unshare(0x10000000)", "ptrace(16, 1, 0, 0)", "syscall(425, 1, 0)", "syscall(321, 0, 0, 0)",
         "syscall(250, 0, 0)", "syscall(310, 1, 0, 0, 0, 0, 0)", "shmget(1, 4096, 0o1600)", "personality(0x40000)"],
    )  # fmt: skip
    @pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86_64")
    def test_system_calls_beyond_a_programs_needs_are_refused(self, call):
        source = f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nprint(c.{call}, ctypes.get_errno())"
        assert run(source).stdout == b"-1 1\n"

    def test_threads_and_event_loops_still_work(self):
        source = (
            "import asyncio, threading\nt = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
            "async def main(): await asyncio.sleep(0.01); return 'loop'\nprint(asyncio.run(main()))"
        )
        assert run(source).stdout == b"thread\nloop\n"

    def test_the_self_test_finds_nothing(self):
        sandbox_check.self_test.cache_clear()
        found = sandbox_check.self_test()
        sandbox_check.self_test.cache_clear()
        assert found.failures == {}
        found.require()


@needs_sandbox
class TestSelfTest:
    """Each point notices when its promise is broken: the programs run with nothing but resource limits."""

    @pytest.fixture(autouse=True)
    def unprotected(self, monkeypatch):
        def run_bare(arguments, *, stdin=b"", limits=None, **_):
            limits = limits or sandbox.Limits()
            command = [*sandbox._limited(limits), sys.executable, "-I", *arguments]
            with sandbox._started(command, limits, cwd="/tmp") as process:
                return sandbox._converse(process, stdin, limits, process.kill, tier="none")

        monkeypatch.setattr(sandbox, "run_python", run_bare)

    def test_canaries(self):
        assert "read a file or a variable" in (sandbox_check._canaries_stay_hidden() or "")

    def test_daemons(self, monkeypatch):
        monkeypatch.setattr(sandbox_check, "GONE_WITHIN_S", 0.2)
        assert "outlived" in (sandbox_check._daemon_is_gone() or "")
        end_processes_named("braid-daemon")

    def test_a_failed_point_refuses_code_with_the_reason(self):
        found = sandbox_check.SelfTest("A", {"canaries": "a program read a file"}, 1.0)
        with pytest.raises(sandbox.SandboxError, match=r"tier A.*canaries: a program read a file.*unsafe_no_sandbox"):
            found.require()


class TestTiers:
    def test_a_weaker_tier_than_asked_for_is_refused(self, monkeypatch):
        monkeypatch.setattr(sandbox, "tier", lambda: "B")
        monkeypatch.delenv(sandbox.ALLOW_NONE_VARIABLE, raising=False)
        verdict = judge("def add(a, b): return a + b", min_tier="A")
        assert (verdict.status, verdict.score) == (Status.INFRA_ERROR, None)
        assert "only sandbox tier B" in verdict.extras["error"]

    def test_without_isolation_a_verdict_carries_a_warning(self, monkeypatch):
        monkeypatch.setattr(sandbox, "tier", lambda: "none")
        verdict = judge("def add(a, b): return a + b", unsafe_no_sandbox=True)
        assert (verdict.score, verdict.extras["sandbox"]) == (1.0, "none")
        assert "without isolation" in verdict.extras["warning"]

    def test_landlock_and_filter_are_told_apart_from_their_absence(self, monkeypatch):
        assert landlock_version() >= 0
        monkeypatch.setattr("platform.machine", lambda: "mips")
        assert not sandbox_filter.is_supported()
        with pytest.raises(ValueError, match="no table of system calls for 'mips'"):
            sandbox_filter.program()

    def test_a_folder_that_holds_no_control_groups_is_refused(self, monkeypatch, tmp_path):
        monkeypatch.setenv(sandbox_cgroup.FOLDER_VARIABLE, str(tmp_path / "missing"))
        verdict = judge("def add(a, b): return a + b")
        assert verdict.status is Status.INFRA_ERROR
        assert "BRAID_SANDBOX_CGROUP" in verdict.extras["error"]


CGROUP_ROOT = next(
    (p for p in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()), None
)


@pytest.mark.skipif(CGROUP_ROOT is None or not os.access(CGROUP_ROOT, os.W_OK), reason="needs a writable cgroup v2")
def test_a_control_group_ends_what_is_left_and_is_removed(tmp_path):
    name = f"{hostile.NAME}-group-{os.getpid()}"
    source = (
        "import os, sys, time\nif os.fork() == 0:\n"
        f"    os.execv(sys.executable, [{name!r}, '-c', 'import time; time.sleep(300)'])\n"
        "time.sleep(0.3)"
    )
    assert CGROUP_ROOT is not None
    with sandbox_cgroup.Cgroup(CGROUP_ROOT, memory_mb=256, num_processes=8) as group:
        subprocess.run(group.joining([sys.executable, "-I", "-c", source]), check=True)
        assert sandbox_check.processes_named(name)
        assert list(CGROUP_ROOT.glob("braid-*"))
    assert_gone(name)
    assert not list(CGROUP_ROOT.glob(f"braid-{os.getpid()}-*"))


def end_processes_named(name):
    for process in sandbox_check.processes_named(name):
        os.kill(process, 9)
