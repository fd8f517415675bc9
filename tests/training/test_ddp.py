"""Two processes on one machine give what one gives."""

import json

import torch

from ssl_asr.training.checkpointing import read_checkpoint
from tests.training.toy_runs import toy_overrides


def _train(run_command, folder, *overrides):
    done = run_command("train", *overrides, f"run_dir={folder}", "verbose=false", env={"TORCH_CPP_LOG_LEVEL": "ERROR"})
    assert done.returncode == 0, done.stderr[-3000:]
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def test_two_ranks_train_and_score_as_one(run_command, toy_checkpoints, toy_corpus, tmp_path):
    """Ranks see the same epoch plan in pairs of batches: one process that accumulates those pairs is the same run."""
    overrides = [
        *toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus),
        "freeze=false",
        "head.dropout=0.0",
        "data.max_batch_s=1.6",
        "optimizers.pretrained.lr=0.003",
        "optimizers.pretrained.eps=1e-3",
        "optimizers.new.eps=1e-3",
        "trainer.max_epochs=1",
        "++backbone.normalize_waveform=true",
    ]
    two = _train(run_command, tmp_path / "two", *overrides, "trainer.devices=2", "trainer.strategy=ddp")
    one = _train(run_command, tmp_path / "one", *overrides, "trainer.accumulate_grad_batches=2")
    assert two["global_step"] == one["global_step"] > 2
    predictions = []
    for folder in ("two", "one"):
        rows = [json.loads(line) for line in open(tmp_path / folder / "predictions" / "test.jsonl")]
        predictions.append([row["id"] for row in rows])
        results = json.loads((tmp_path / folder / "results.json").read_text())
        assert results["test"]["scores"]["lower"]["utterances"] == len(rows) == 5
    assert predictions[0] == predictions[1], "each id once, whatever the number of ranks"
    worst = max(
        float((two["state_dict"][name] - value).abs().max())
        for name, value in one["state_dict"].items()
        if torch.is_floating_point(value)
    )
    assert worst < 2e-3, worst
