"""Turns a report of pip into requirements with hashes, so that nobody between the index and us can change a package.

    pip install --dry-run --ignore-installed --no-deps --report report.json -r deploy/requirements-cpu.txt
    python deploy/hash_requirements.py report.json > deploy/requirements-cpu-hashed.txt

The hashes are of the files pip chose there: they hold for that platform and version of Python. torch is left out: its
file depends on the index it comes from.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

LEFT_OUT = ("torch",)


def hashed(report: dict[str, Any]) -> list[str]:
    """One requirement a line, by name.

    Raises:
        KeyError: a package has no SHA-256; an index without hashes proves nothing.
    """
    lines = []
    for item in report["install"]:
        name, version = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(), item["metadata"]["version"]
        if name not in LEFT_OUT:
            lines.append(f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}")
    return sorted(lines)


if __name__ == "__main__":
    python = ".".join(platform.python_version_tuple()[:2])
    where = f"{platform.system()} {platform.machine()} and Python {python}"
    print(f"# deploy/requirements-cpu.txt with the SHA-256 of each file, for {where}.")
    print("# Written by deploy/hash_requirements.py; installed with `pip install --no-deps --require-hashes -r`.")
    print("\n".join(hashed(json.loads(Path(sys.argv[1]).read_text()))))
