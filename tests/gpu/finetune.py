"""Fine-tune Whisper tiny.en on AN4, and time it: WER, seconds per epoch, share of the time spent waiting for data.

    python -m tests.gpu.finetune --checkpoint openai/whisper-tiny.en --data ../shared/data
    python -m tests.gpu.finetune --tiny       (a toy model on noise: checks that it runs)

The first batch of the run is timed by itself. It includes the first use of the GPU, some 15 s.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lightning.pytorch.callbacks import Callback

from ssl_asr.data.text import get_normalizers
from ssl_asr.inference.batches import transcribe_splits
from ssl_asr.metrics.report import score_predictions
from ssl_asr.training.checkpoint_files import read_checkpoint
from ssl_asr.types import SAMPLE_RATE
from tests.gpu.rows import add_row
from tests.toys import save_checkpoint
from tests.training.toy_runs import build


class EpochTimer(Callback):
    """Times the training batches of each epoch, and the waiting for the data loader before each of them.

    Validation is not counted.
    """

    def __init__(self) -> None:
        self.first_batch_s = 0.0
        self.epochs: list[dict[str, float]] = []
        self._idle_since = 0.0
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start an epoch."""
        self.epochs.append({"batches": 0, "train_s": 0.0, "wait_s": 0.0})
        self._idle_since = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        """End of the waiting for a batch."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """End of a batch, with all its work on the GPU."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended, epoch = time.perf_counter(), self.epochs[-1]
        if len(self.epochs) == 1 and epoch["batches"] == 0 and self.first_batch_s == 0.0:
            self.first_batch_s = ended - self._idle_since
        else:
            epoch["batches"] += 1
            epoch["train_s"] += ended - self._idle_since
            epoch["wait_s"] += self._started - self._idle_since
        self._idle_since = ended

    def on_validation_end(self, *_: Any) -> None:
        """Validation does not count as waiting."""
        self._idle_since = time.perf_counter()


def toy_overrides(folder: Path) -> list[str]:
    """A toy Whisper and two seconds of noise per split."""
    save_checkpoint("whisper", folder / "checkpoint")
    draw, overrides = np.random.default_rng(0), []
    for split in ("train", "dev", "test"):
        rows = []
        for number in range(4):
            path = folder / f"{split}{number}.wav"
            soundfile.write(path, 0.1 * draw.standard_normal(SAMPLE_RATE // 2), SAMPLE_RATE)
            row = {"audio_filepath": path.name, "duration": 0.5, "text": "cab", "id": f"{split}{number}"}
            rows.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
        overrides.append(f"data.{split}={folder / f'{split}.jsonl'}")
    source = f"backbone.source={folder / 'checkpoint'}"
    small = ["data.max_batch_size=2", "data.num_workers=0", "trainer.max_epochs=2", "decoder.max_tokens_per_s=3"]
    return [*overrides, source, *small]


def finetune(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train, test the best checkpoint, and return the figures."""
    run = build(folder, "experiment=an4_whisper", "freeze=false", "seed=6", "logger=none", *overrides)
    timer = EpochTimer()
    run.trainer.callbacks.append(timer)
    run.trainer.fit(run.module, datamodule=run.data)
    run.module.load_state_dict(read_checkpoint(folder / "checkpoints" / "best.ckpt")["state_dict"])
    [predictions] = transcribe_splits(run.trainer, run.module, run.data).predictions.values()
    wer = {
        name: round(100 * score_predictions(predictions, name, normalize).wer, 2)
        for name, normalize in get_normalizers(["lower", "whisper_english"]).items()
    }
    epochs = [
        {
            "batches": epoch["batches"],
            "s": round(epoch["train_s"], 2),
            "loader_wait_percent": round(100 * epoch["wait_s"] / max(1e-9, epoch["train_s"]), 1),
        }
        for epoch in timer.epochs
    ]
    return {"wer": wer, "first_batch_s": round(timer.first_batch_s, 2), "epochs": epochs}


def main() -> None:
    """Train twice on a GPU: in bf16, and in fp16 with its gradient scaler."""
    parser = argparse.ArgumentParser(description="Fine-tune Whisper tiny.en on AN4, and time it.")
    parser.add_argument("--tiny", action="store_true", help="a toy model on noise: checks that it runs")
    parser.add_argument("--checkpoint", default="openai/whisper-tiny.en", help="folder or name of Whisper tiny.en")
    parser.add_argument("--data", default=os.environ.get("SSL_ASR_DATA"), help="folder that holds en_an4")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    for precision in ("bf16-mixed", "16-mixed") if cuda else ("32-true",):
        folder = Path(tempfile.mkdtemp())
        if arguments.tiny:
            overrides = toy_overrides(folder)
        else:
            if arguments.data is not None:
                os.environ["SSL_ASR_DATA"] = arguments.data
            overrides = [f"backbone.source={arguments.checkpoint}"]
        overrides += [f"trainer={'gpu' if cuda else 'cpu'}", f"trainer.precision={precision}"]
        add_row({"precision": precision, **finetune(overrides, folder)})


if __name__ == "__main__":
    main()
