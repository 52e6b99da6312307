from pathlib import Path

import pytest

from tests.learner.tiny_policy import save_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of the tiny random Llama; not written to."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))
