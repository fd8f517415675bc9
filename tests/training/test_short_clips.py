"""Batches of very short clips and of silence train: masks that do not fit are left out, and gradients are finite."""

import json

import numpy as np
import pytest
import soundfile
import torch

from tests.training.toy_runs import build, toy_overrides


@pytest.fixture(params=[0.1, 0.0], ids=["noise", "silence"])
def short_corpus(request, tmp_path):
    """Clips of 0.2 s, so that each has fewer frames than a mask of 10."""
    rows = []
    for number in range(6):
        name = f"{number}.wav"
        soundfile.write(tmp_path / name, request.param * np.random.default_rng(number).standard_normal(3200), 16000)
        rows.append({"audio_filepath": name, "duration": 0.2, "text": "ab"[: 1 + number % 2], "id": name})
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dict.fromkeys(("train", "dev", "test"), path)


@pytest.mark.parametrize(
    ("name", "task", "augment"),
    [
        ("wav2vec2_group", "ctc", "spec_augment"),
        ("hubert_layer", "ctc", "spec_augment"),
        ("whisper", "seq2seq", "spec_augment_mel"),
    ],
)
def test_clips_shorter_than_a_mask_train(toy_checkpoints, short_corpus, tmp_path, name, task, augment):
    overrides = toy_overrides(toy_checkpoints[name], short_corpus, task)
    more = ["freeze=false", f"augment={augment}", "data.allow_duplicate_ids=true", "data.max_batch_s=1"]
    # Silent files are all alike.
    more.append("data.max_leakage=1")
    run = build(tmp_path / "run", *overrides, *more)
    run.module.train()
    for indices in run.data.train_sampler(0).batches:
        batch = run.data.train_batch(indices)
        assert int(batch.lengths_B.max()) == 3200
        loss = run.module.loss(batch)
        assert torch.isfinite(loss.total)
        loss.total.backward()
    gradients = [p.grad for p in run.module.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
