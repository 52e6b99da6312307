"""The tokenizer and the folder of a graph in one process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.renderer import Renderer
from tests.actors.fakes import save_character_tokenizer


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> Renderer:
    return Renderer(str(save_character_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where possible: what is tested is the order of writes, and a disk's fsync takes milliseconds."""
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="braid-test-", dir=shared if os.access(shared, os.W_OK) else None))
    yield made
    shutil.rmtree(made)
