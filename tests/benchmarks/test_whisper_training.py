"""Fine-tuning Whisper against a plain Hugging Face ``Seq2SeqTrainer``: same model, data, batch and labels, one run.

make bench        (BENCH_BATCHES=53 for the whole epoch; needs SSL_ASR_DATA and tens of minutes on two cores)
"""

import json
import math
import os
import time

import numpy as np
import pytest
import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from ssl_asr.build import build_training
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.tokenizer import WhisperTokenizer
from tests.training.toy_runs import config_of

BATCHES = int(os.environ.get("BENCH_BATCHES", "4"))
BATCH_SIZE = 16


class _Rows(torch.utils.data.Dataset):
    """Utterances as the Hugging Face recipe prepares them: 30 s of log-mel and labels, made when asked for."""

    def __init__(self, manifest, tokenizer):
        self.manifest, self.tokenizer, self.extractor = manifest, tokenizer, WhisperFeatureExtractor()

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, index):
        utterance = self.manifest[index]
        waveform = read_waveform(utterance).numpy()
        features = self.extractor(waveform, sampling_rate=16000).input_features[0]
        # The recipe's labels: the prompt but its start, the text, the end.
        labels = self.tokenizer.prompt(utterance)[1:] + self.tokenizer.encode(utterance)
        return {"input_features": features, "labels": labels}


def _collate(rows):
    width = max(len(row["labels"]) for row in rows)
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
    return {"input_features": torch.tensor(np.stack([row["input_features"] for row in rows])), "labels": labels}


def _peer(folder, checkpoint, manifest):
    tokenizer = WhisperTokenizer.from_folder(checkpoint, language=None, task="transcribe", normalizer="none")
    model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=2e-5,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        dataloader_num_workers=2,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=_Rows(manifest, tokenizer), data_collator=_collate
    )
    begin = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begin


def _ours(folder, checkpoint, path, window):
    config = config_of(
        "backbone=whisper_tiny_en",
        f"backbone.source={checkpoint}",
        f"backbone.window={window}",
        f"data.train={path}",
        # The budget is not to bind: the peer counts utterances.
        "data.max_batch_s=1000",
        f"data.max_batch_size={BATCH_SIZE}",
        "data.num_workers=2",
        "freeze=false",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "logger=none",
    )
    run = build_training(config, folder, None)
    run.trainer.checkpoint_callbacks.clear()
    begin = time.perf_counter()
    run.trainer.fit(run.module, datamodule=run.data)
    seconds = time.perf_counter() - begin
    assert run.trainer.global_step == math.ceil(len(run.data.selections["train"].kept) / BATCH_SIZE)
    return seconds


@pytest.mark.benchmark
def test_an_epoch_against_seq2seq_trainer(data_root, whisper_tiny_en, tmp_path):
    """Prints seconds and ratios; asserts only that all trained on the same utterances."""
    whole = read_manifest(data_root / "en_an4" / "train.jsonl")
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(whole))[: BATCHES * BATCH_SIZE]
    rows = []
    for i in chosen:
        u = whole[int(i)]
        rows.append({"id": u.id, "audio_filepath": u.audio_filepath, "duration": u.duration, "text": u.text})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = read_manifest(path)
    assert len(manifest) == len(chosen)
    seconds = {
        "ours, real frames + 0.5 to 1.5 s": _ours(tmp_path / "a", whisper_tiny_en, path, "real"),
        "ours, 30 s": _ours(tmp_path / "b", whisper_tiny_en, path, "30s"),
        "Seq2SeqTrainer, 30 s": _peer(tmp_path / "c", whisper_tiny_en, manifest),
    }
    peer = seconds["Seq2SeqTrainer, 30 s"]
    print(f"\n{len(chosen)} utterances of {len(whole)}, batch {BATCH_SIZE}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        epoch = value * len(whole) / len(chosen)
        print(f"{name:34} {value:7.1f} s   an epoch {epoch:7.0f} s   {peer / value:5.1f} times Seq2SeqTrainer")
