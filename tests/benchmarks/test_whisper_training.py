"""Training speed of Whisper against Hugging Face's ``Seq2SeqTrainer``: same model, data, batches and labels.

make bench-full      (BENCH_BATCHES=53 for a whole epoch; needs SSL_ASR_DATA and tens of minutes on two cores)
"""

import json
import math
import multiprocessing
import os
import resource
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from tests.training.toy_runs import build

BATCHES = int(os.environ.get("BENCH_BATCHES", "4"))
BATCH_SIZE = 16


class _Rows(torch.utils.data.Dataset):
    """Utterances as the Hugging Face recipe prepares them: 30 s of log-mel, and labels."""

    def __init__(self, manifest, tokenizer):
        self.manifest, self.tokenizer, self.extractor = manifest, tokenizer, WhisperFeatureExtractor()

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, index):
        utterance = self.manifest[index]
        waveform = read_waveform(utterance).numpy()
        features = self.extractor(waveform, sampling_rate=16000).input_features[0]
        # Labels of the recipe: the prompt without its first token, the text, the end token.
        labels = self.tokenizer.prompt(utterance)[1:] + self.tokenizer.encode(utterance)
        return {"input_features": features, "labels": labels}


def _collate(rows):
    width = max(len(row["labels"]) for row in rows)
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
    return {"input_features": torch.tensor(np.stack([row["input_features"] for row in rows])), "labels": labels}


@dataclass
class _Turns:
    """One trainer's side of taking turns, one batch each, so that load on the machine affects all trainers equally.

    The time of a batch runs from the start of the turn to the end of the update, data preparation included. No trainer
    works outside its turn, since all of them prepare data in the main process.
    """

    pipe: Connection
    seconds: list[float] = field(default_factory=list)
    began: float = 0.0

    def wait(self):
        self.pipe.recv()
        self.began = time.perf_counter()

    def done(self):
        self.seconds.append(time.perf_counter() - self.began)
        self.pipe.send(("batch", self.seconds[-1]))

    def finish(self):
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.pipe.send(("end", peak_gb))


def _run_peer(turns, folder, checkpoint, path):
    manifest = read_manifest(path)
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
        dataloader_num_workers=0,
        disable_tqdm=True,
    )

    class InTurns(TrainerCallback):
        def on_train_begin(self, *_, **__):
            turns.wait()

        def on_step_end(self, *_, **__):
            turns.done()
            turns.wait()

    rows = _Rows(manifest, tokenizer)
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=_collate, callbacks=[InTurns()]
    )
    trainer.train()
    assert trainer.state.global_step == math.ceil(len(manifest) / BATCH_SIZE)


def _run_ours(turns, folder, checkpoint, path, window):
    run = build(
        folder,
        "experiment=an4_whisper",
        f"backbone.source={checkpoint}",
        f"backbone.window={window}",
        f"data.train={path}",
        "data.dev=null",
        "data.test=null",
        # Large enough to never limit a batch: the other trainer counts utterances.
        "data.max_batch_s=1000",
        f"data.max_batch_size={BATCH_SIZE}",
        "data.num_workers=0",
        "freeze=false",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "logger=none",
    )

    class InTurns(L.Callback):
        def on_train_start(self, *_):
            turns.wait()

        def on_train_batch_end(self, *_):
            turns.done()
            turns.wait()

    run.trainer.callbacks.append(InTurns())
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step == math.ceil(len(run.data.selections["train"].kept) / BATCH_SIZE)


def _in_turns(pipe, run, *inputs):
    turns = _Turns(pipe)
    run(turns, *inputs)
    turns.finish()


@pytest.mark.benchmark
def test_epoch_time_against_seq2seq_trainer(data_root, whisper_tiny_en, tmp_path):
    """Prints seconds and ratios. Asserts only that all trainers see the same utterances."""
    whole = read_manifest(data_root / "en_an4" / "train.jsonl")
    rng = np.random.default_rng(0)
    chosen = sorted(rng.permutation(len(whole))[: BATCHES * BATCH_SIZE])
    rows = []
    for i in chosen:
        u = whole[int(i)]
        rows.append({"id": u.id, "audio_filepath": u.audio_filepath, "duration": u.duration, "text": u.text})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    peer = "Seq2SeqTrainer, 30 s"
    runners = {
        "ours, real frames + 0.2 to 1.0 s": (_run_ours, tmp_path / "a", whisper_tiny_en, path, "real"),
        "ours, 30 s": (_run_ours, tmp_path / "b", whisper_tiny_en, path, "30s"),
        peer: (_run_peer, tmp_path / "c", whisper_tiny_en, path),
    }
    seconds, peak_gb = _take_turns(runners, math.ceil(len(chosen) / BATCH_SIZE))
    print(f"\n{len(chosen)} utterances of {len(whole)}, batch {BATCH_SIZE}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        epoch, ratio = value * len(whole) / len(chosen), seconds[peer] / value
        print(f"{name:34} {value:7.1f} s, an epoch {epoch:6.0f} s, {ratio:5.2f} times {peer}, {peak_gb[name]:.1f} GB")


def _take_turns(runners, batches):
    """Seconds over all batches, and peak memory in GB, of each trainer. Each runs in its own process."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, (run, folder, *inputs) in runners.items():
        Path(folder).mkdir()
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_in_turns, args=(theirs, run, folder, *inputs), daemon=True))
        processes[-1].start()
        theirs.close()
    seconds = dict.fromkeys(runners, 0.0)
    for batch in range(batches):
        for name, pipe in pipes.items():
            pipe.send("next batch")
            kind, value = pipe.recv()
            assert kind == "batch"
            seconds[name] += value
        if batch % 10 == 0:
            said = ", ".join(f"{value:.0f} s" for value in seconds.values())
            print(f"{batch + 1} of {batches} batches: {said}", flush=True)
    peak_gb = {}
    for name, pipe in pipes.items():
        pipe.send("finish")
        kind, peak_gb[name] = pipe.recv()
        assert kind == "end"
    for process in processes:
        process.join()
    return seconds, peak_gb
