import os
import socket
import subprocess
import time

import pytest

from rewards import sandbox
from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.code import code, last_block

ROOMY = {"wall_s": 20.0}
TESTS = {"entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}, {"args": [5, 5], "expected": 10}]}
ECHO = {"cases": [{"stdin": "3\n", "stdout": "6\n"}, {"stdin": "4\n", "stdout": "8"}]}

needs_sandbox = pytest.mark.skipif(
    sandbox.tier() == "none" and os.environ.get(sandbox.ALLOW_NONE_VARIABLE) == "1",
    reason="no sandbox works here and BRAID_ALLOW_NO_SANDBOX=1 allows skipping",
)


def judge(source, tests=TESTS, limits=ROOMY, **options):
    task = Task(task_id="t", prompt="p", metadata={"tests": tests} if tests else {})
    return code(f"```python\n{source}\n```", task, limits=limits, **options)


def run(source, **limits):
    return sandbox.run_python(["-c", source], limits=sandbox.Limits(**(ROOMY | limits)))


def test_last_block():
    assert last_block("```python\na\n```\ntext\n```\nb\n```") == "b\n"
    assert last_block("```python\na\n```\n```json\n{}\n```") == "a\n"
    assert last_block("<think>```python\na\n```</think>") is None
    assert last_block("```python\na") is None


def test_unusable_tests_and_missing_code():
    for tests in (None, {"cases": []}, {"entry_point": "a b", "cases": [{"args": [], "expected": 1}]}, {"cases": [{}]}):
        assert judge("x", tests).status is Status.INVALID_GOLD
    assert code("no code", Task(task_id="t", prompt="p", metadata={"tests": TESTS})).status is Status.NO_ANSWER


def test_no_isolation_is_refused_and_never_a_number(monkeypatch):
    monkeypatch.setattr(sandbox, "tier", lambda: "none")
    monkeypatch.delenv(sandbox.ALLOW_NONE_VARIABLE, raising=False)
    verdict = judge("def add(a, b): return a + b")
    assert (verdict.status, verdict.score) == (Status.INFRA_ERROR, None)
    assert "bubblewrap" in verdict.extras["error"]


@needs_sandbox
class TestVerdicts:
    def test_honest_function(self):
        verdict = judge("import sys\nprint('noise'); print('noise', file=sys.stderr)\ndef add(a, b): return a + b")
        assert (verdict.status, verdict.score) == (Status.SCORED, 1.0), verdict

    def test_fraction_and_threshold(self):
        half = "def add(a, b): return 3"
        assert judge(half).score == 0.0
        assert judge(half, score="fraction").score == 0.5
        assert judge(half, score="fraction", threshold=0.8).score == 0.0

    def test_programs(self):
        assert judge("print(int(input()) * 2)", ECHO).score == 1.0
        assert judge("print(6)", ECHO, score="fraction").score == 0.5

    @pytest.mark.parametrize(
        "source",
        [
            "def add(a, b): return float(a + b)",
            "def add(a, b): return True",
            "import os; os._exit(0)",
            "raise SystemExit(0)",
            "print('[0, 3]')\nprint('[1, 10]')",
            "class E(int):\n    def __eq__(s, o): return True\ndef add(a, b): return E(1)",
            "class E:\n    def __eq__(s, o): return True\ndef add(a, b): return E()",
            "import json\njson.dumps = lambda *a, **k: '[0, 0]'\ndef add(a, b): return 0",
            "import sys; sys.excepthook = lambda *a: None\ndef add(a, b): return 1 / 0",
            "import os\ndef add(a, b):\n    os.write(3, b'[0, 3]\\n[0, 3]\\n')\n    return a + b - 1",
            "import os, sys; os.execv('/usr/bin/true', ['true'])",
        ],
    )
    def test_forgeries_earn_nothing(self, source):
        verdict = judge(source)
        assert verdict.score == 0.0, verdict

    def test_faults_are_told_apart(self):
        assert (
            judge(
                "def add(",
            ).status
            is Status.CRASH
        )
        assert judge("import time; time.sleep(60)", limits={"wall_s": 2.0}).status is Status.TIMEOUT
        assert judge("while True: pass", limits={"wall_s": 30.0, "cpu_s": 1}).status is Status.RESOURCE
        assert judge("while True: print('x' * 10000)").status is Status.RESOURCE
        assert judge("x = bytearray(1 << 30)").status is Status.CRASH


@needs_sandbox
class TestThreats:
    def test_expected_values_are_nowhere_inside(self):
        source = (
            "import glob, sys, os\n"
            "seen = open('/proc/self/cmdline', 'rb').read() + open('/proc/self/environ', 'rb').read()\n"
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
        source = f"import os\nprint(os.path.exists({str(canary)!r}), os.path.exists('/etc/passwd'), dict(os.environ))"
        said = run(source).stdout
        assert said.startswith(b"False False")
        assert b"canary-text" not in said

    def test_nothing_outside_its_folder_can_be_written(self):
        source = (
            "import os\nfor f in ('/x', '/usr/x', '/dev/x', '/root/x', os.path.dirname(os.__file__) + '/x'):\n"
            "    try: open(f, 'w'); print('wrote', f)\n    except OSError: pass\n"
            "open('/tmp/x', 'w').write('1'); print('ok')"
        )
        assert run(source).stdout == b"ok\n"
        assert run("import os; print(os.listdir('/tmp'))").stdout == b"[]\n"  # jobs do not see each other's files

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

    def test_privileges_are_refused(self):
        source = (
            "import ctypes, os\nc = ctypes.CDLL(None)\n"
            "print(c.unshare(0x10000000), c.mount(b'a', b'/tmp', b'tmpfs', 0, None))\n"
            "print([l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapEff', 'NoNewPrivs'))])\n"
            "import resource\n"
            "try: resource.setrlimit(resource.RLIMIT_CPU, (100, 100)); print('raised')\n"
            "except (OSError, ValueError): pass"
        )
        assert run(source).stdout == b"-1 -1\n['0000000000000000', '1']\n"

    def test_a_daemon_dies_with_its_program(self):
        name = f"braid-daemon-{os.getpid()}"
        source = (
            "import os, sys, time\n"
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
            f"        os.execv(sys.executable, [{name!r}, '-c', 'import time; time.sleep(300)'])\n    os._exit(0)\n"
            "time.sleep(0.5); print('ok')"
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
        outcome = run(source, wall_s=3.0, num_processes=16)
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


def assert_gone(name):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        if not any(line.startswith(name) for line in listing.splitlines()):
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} is still running")
