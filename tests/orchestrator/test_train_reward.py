import json

import torch

from learner.reward_model import RewardModel
from orchestrator.cli import main


def test_a_reward_model_from_a_file_of_pairs(tiny_model_path, tmp_path, capsys):
    torch.set_num_threads(1)
    sides = [{"chosen": f"It is {n + 2}.", "rejected": "I do not know it.", "source": "ab"[n % 2]} for n in range(20)]
    rows = [{"prompt": f"Calculate {n} + 2.", **side} for n, side in enumerate(sides)]
    pairs, target = tmp_path / "pairs.jsonl", tmp_path / "rm"
    pairs.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "x", "chosen": "a", "rejected": "a"}])))
    ask = ["train-reward", str(pairs), str(target), "--model", str(tiny_model_path), "--heldout", "0.2"]
    assert main([*ask, "--learning-rate", "3e-3", "--pairs-per-step", "8", "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert "16 pairs to train on, 4 held out, refused: {'equal': 1}" in out
    report = json.loads((target / "reward_report.json").read_text())
    assert report["accuracy"]["estimate"]["value"] == 1.0
    assert set(report["by_source"]) <= {"a", "b"}
    model = RewardModel.load(target)
    good, bad = (
        model.encode([{"role": "user", "content": rows[0]["prompt"]}], rows[0][s]) for s in ("chosen", "rejected")
    )
    assert model.scores([good])[0] > model.scores([bad])[0]
    assert main(ask) == 2
    assert "is not an empty folder" in capsys.readouterr().err
