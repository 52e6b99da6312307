import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a second thread in each would only be in the way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from actors.model_store import fetch_model


@pytest.fixture(scope="session")
def tiny_model_path() -> Path:
    """The pre-trained tiny model; generated once per machine (a minute or two) and kept in the model cache."""
    return fetch_model("tiny")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Generates the model before the first test, so that no test's time limit has to allow for it."""
    if not session.config.option.collectonly and any(
        "tiny_model_path" in getattr(item, "fixturenames", ()) for item in session.items
    ):
        fetch_model("tiny")
