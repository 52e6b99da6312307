import pytest

from rewards import sandbox
from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.code import code, last_block
from tests.rewards.sandboxed import ECHO, TESTS, judge, needs_sandbox


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
