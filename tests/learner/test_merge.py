import pytest
import torch
from safetensors.torch import load_file, save_file

from learner.merge import MergeError, mean_of, merge_models, ram_of
from orchestrator.cli import main


def model(folder, **tensors):
    folder.mkdir()
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_ram_keeps_the_whole_of_what_one_model_changed_and_a_mean_a_third():
    base = torch.zeros(6)
    models = [torch.tensor([0.3 if i // 2 == j else 0.0 for i in range(6)]) for j in range(3)]
    assert torch.allclose(ram_of(base, models), torch.full((6,), 0.3))
    assert torch.allclose(mean_of(models), torch.full((6,), 0.1))


def test_ram_averages_what_several_changed_and_ignores_what_hardly_moved():
    base = torch.tensor([1.0, 1.0, 1.0])
    models = [torch.tensor([1.2, 1.0, 1.0 + 5e-6]), torch.tensor([1.4, 1.5, 1.0])]
    assert torch.allclose(ram_of(base, models), torch.tensor([1.3, 1.5, 1.0]), rtol=0, atol=1e-7)
    assert torch.equal(ram_of(base, [models[0]]), torch.tensor([1.2, 1.0, 1.0]))


def test_a_merged_folder_holds_weights_and_configuration(tmp_path, capsys):
    a, b = model(tmp_path / "a", w=[0.0, 2.0]), model(tmp_path / "b", w=[1.0, 4.0])
    assert main(["merge", str(a), str(b), "--into", str(tmp_path / "c")]) == 0
    assert load_file(tmp_path / "c" / "model.safetensors")["w"].tolist() == [0.5, 3.0]
    assert (tmp_path / "c" / "config.json").exists()
    assert main(["merge", str(a), str(b), "--into", str(tmp_path / "c")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(tmp_path):
    a, b = model(tmp_path / "a", w=[0.0, 2.0]), model(tmp_path / "b", w=[1.0])
    with pytest.raises(MergeError, match=r"differ in name or shape, e\.g\. w"):
        merge_models([a, b], tmp_path / "c", method="mean")
    with pytest.raises(MergeError, match="at least two"):
        merge_models([a], tmp_path / "c", method="mean")
    with pytest.raises(MergeError, match="needs a base"):
        merge_models([a, a], tmp_path / "c", method="ram")
    assert not (tmp_path / "c").exists()
