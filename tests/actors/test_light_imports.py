"""A box that computes no gradient starts without the packages that do."""

import subprocess
import sys


def test_processes_of_a_run_are_defined_without_torch():
    code = "import sys, actors.spawn; print(sorted({'torch', 'transformers', 'vllm', 'datasets'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.strip() == "[]"
