"""Transcribing many recordings: what is done is kept as it comes, so that an interrupted run goes on."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from ssl_asr.data.manifest import Manifest
from ssl_asr.errors import ConfigError
from ssl_asr.inference.batches import recognise
from ssl_asr.inference.long_recordings import LongForm
from ssl_asr.metrics.report import Prediction
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Seconds, Skip


@dataclass(frozen=True, slots=True)
class Transcribed:
    """Transcripts in the order of the input, what could not be read, and how fast it went.

    ``audio_s`` and ``busy_s`` are those of this run, reading and decoding included, loading the model not.
    """

    rows: list[Prediction]
    skips: list[Skip]
    audio_s: Seconds
    busy_s: Seconds

    @property
    def rtfx(self) -> float:
        """Seconds of audio a second, the inverse real-time factor of the Open ASR leaderboard."""
        return self.audio_s / max(1e-9, self.busy_s)


class Progress(Callback):
    """A file of transcripts that grows by every batch, and is gone when all are done.

    Args:
        path: the file.
        made_by: plain data that says what makes them; a file of something else is refused.

    Raises:
        ConfigError: the file is there and was made by something else.
    """

    def __init__(self, path: Path, made_by: dict[str, Any]) -> None:
        self.path = path
        self.digest = hashlib.sha256(json.dumps(made_by, sort_keys=True, default=str).encode()).hexdigest()
        self.done: dict[str, Prediction] = {}
        self._written = 0
        if path.is_file():
            self._read()

    def _head(self) -> str:
        return json.dumps({"made_by": self.digest})

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not lines or lines[0] != self._head():
            what = "holds transcripts that another model, or the same with other settings, was interrupted at"
            raise ConfigError(str(self.path), what, "go on with those settings, or delete the file")
        for line in lines[1:]:
            try:
                row = Prediction.from_record(json.loads(line))
            except (json.JSONDecodeError, TypeError):
                # The run was stopped in the middle of a line.
                break
            self.done[row.id] = row

    def begin(self) -> None:
        """Write what is there already anew: a line that was cut off goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", encoding="utf-8") as file:
            file.write(f"{self._head()}\n")
            file.writelines(json.dumps(row.record(), ensure_ascii=False) + "\n" for row in self.done.values())

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put down what the batch gave."""
        assert isinstance(pl_module, ASRModule)
        new = pl_module.predictions.get("input", [])[self._written :]
        self.add(new)
        self._written += len(new)

    def add(self, rows: Sequence[Prediction]) -> None:
        """Put down transcripts."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row.record(), ensure_ascii=False) + "\n" for row in rows)

    def finish(self) -> None:
        """All is done and kept elsewhere."""
        self.path.unlink(missing_ok=True)


def transcribe_manifest(
    module: ASRModule,
    manifest: Manifest,
    *,
    progress: Progress | None,
    long_form: LongForm,
    max_batch_s: float,
    num_workers: int,
    accelerator: str,
    precision: str,
    console: Console | None,
) -> Transcribed:
    """The transcripts of a manifest, read and decoded in batches of like length.

    Args:
        module: what transcribes.
        manifest: what.
        progress: where transcripts are kept as they come; None keeps none.
        long_form: how recordings are taken apart that are too long for one pass.
        max_batch_s, num_workers, accelerator, precision: see `ssl_asr.config.resolve.TranscribeConfig`.
        console: shows how far it has come, and how much was there already.
    """
    ids = [utterance.id for utterance in manifest]
    wanted = set(ids)
    done = {} if progress is None else {key: row for key, row in progress.done.items() if key in wanted}
    left = [i for i, one in enumerate(ids) if one not in done]
    if done and console is not None:
        console.print(f"{len(done)} of {len(ids)} were done before the run was interrupted")
    found: list[Prediction] = []
    skips: list[Skip] = []
    began = time.monotonic()
    if left:
        if progress is not None:
            progress.begin()
        predictions, skipped = recognise(
            module,
            {"input": manifest.select(left)},
            max_batch_s=max_batch_s,
            num_workers=num_workers,
            on_bad_audio="skip",
            max_skip_fraction=1.0,
            accelerator=accelerator,
            precision=precision,
            console=console,
            tables=False,
            long_form=long_form,
            on_long=(lambda _: None) if progress is None else (lambda row: progress.add([row])),
            callbacks=[] if progress is None else [progress],
        )
        found, skips = predictions["input"], skipped["input"]
    busy_s = time.monotonic() - began
    by_id = done | {row.id: row for row in found}
    rows = [by_id[one] for one in ids if one in by_id]
    return Transcribed(rows, skips, sum(row.duration for row in found), busy_s)


def made_by(config: dict[str, Any], module: ASRModule) -> dict[str, Any]:
    """What transcripts depend on, of a ``transcribe`` command."""
    idle = ("input", "output", "format", "max_batch_s", "num_workers", "accelerator", "verbose")
    settings = {key: value for key, value in config.items() if key not in idle}
    decoder = getattr(module, "decoder", None)
    return settings | {"decoder_used": None if decoder is None else asdict(decoder)}
