"""Weights & Biases (W&B): one W&B run per run folder, and a table of utterances at each validation.

No other module imports wandb.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import wandb
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from ssl_asr.data.audio import read_waveform
from ssl_asr.errors import AudioError
from ssl_asr.metrics.edit import wer_unit, word_edits
from ssl_asr.metrics.report import Prediction, plain_diff
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, Utterance

if TYPE_CHECKING:
    from ssl_asr.training.loggers import WandbLog

_ID_FILE = "wandb_run_id.txt"


def has_key() -> bool:
    """Returns whether W&B has an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.api.api_key)
    except (wandb.errors.Error, OSError):
        return False


def run_id(folder: Path) -> str:
    """Returns the W&B id of a run folder. It is created once, so a resumed run continues the same W&B run."""
    file = folder / _ID_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4) + "\n")
    return file.read_text().strip()


def make_wandb_logger(options: WandbLog, *, folder: Path, name: str, config: dict[str, Any]) -> WandbLogger:
    """Builds the logger of a run folder.

    A W&B run that is still open is finished first, so each job of a sweep has a separate W&B run.

    Args:
        options: WandbLog, settings.
        folder: Folder of the run.
        name: str, name of the run.
        config: Config of the run as plain data.
    """
    wandb.finish()
    is_offline = options.offline if options.offline is not None else not has_key()
    if is_offline and options.offline is None and os.environ.get("WANDB_MODE") is None:
        print("W&B: no API key found, logging offline. Upload the run later with `wandb sync`.")
    return WandbLogger(
        name=name,
        save_dir=str(folder),
        project=options.project,
        entity=options.entity,
        group=options.group,
        tags=options.tags,
        id=run_id(folder),
        resume="allow",
        offline=is_offline,
        # Lightning sets WANDB_MODE, which wandb reads too early if it has been asked for a key.
        mode="offline" if is_offline else None,
        config=config,
        log_model=False,
    )


def finish(*, failed: bool) -> None:
    """Marks the open W&B run as finished or failed, if there is one."""
    if wandb.run is not None:
        wandb.finish(exit_code=1 if failed else 0)


class ValidationTable(Callback):
    """Logs a table at each validation: audio, reference, hypothesis and edits of the utterances with the most errors.

    The summary of the W&B run names what the WER counts, as ``val/wer_unit``: see `ssl_asr.metrics.edit`.

    Args:
        logger: WandbLogger of the run.
        audio_samples: int, number of rows.
    """

    def __init__(self, *, logger: WandbLogger, audio_samples: int) -> None:
        self.logger, self.audio_samples = logger, audio_samples

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers the predictions of all ranks and logs the table."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, ASRModule)
        predictions = pl_module.gather_dev_predictions()
        if not trainer.is_global_zero or not predictions:
            return
        normalize = next(iter(pl_module.normalizers.values()))
        rows = []
        for prediction in predictions:
            ref, hyp = prediction.pair(normalize)
            rows.append((word_edits(ref, hyp), ref, hyp, prediction))
        rows.sort(key=lambda row: (-row[0].errors, row[3].id))
        table = wandb.Table(columns=["id", "audio", "reference", "hypothesis", "edits", "sub", "ins", "del", "wer"])
        for edits, ref, hyp, prediction in rows[: self.audio_samples]:
            counts = (edits.sub, edits.ins, edits.dele, edits.rate)
            table.add_data(prediction.id, _audio(prediction), ref, hyp, plain_diff(ref, hyp), *counts)
        step = {"trainer/global_step": trainer.fit_loop.epoch_loop._batches_that_stepped}
        self.logger.experiment.log({"val/predictions": table, **step})
        self.logger.experiment.summary["val/wer_unit"] = wer_unit((ref, hyp) for _, ref, hyp, _ in rows)


def _audio(prediction: Prediction) -> wandb.Audio | None:
    """Returns the audio of an utterance, None if it cannot be read."""
    utterance = Utterance(
        id=prediction.id,
        audio_filepath=prediction.audio_filepath,
        duration=prediction.duration,
        offset=prediction.offset,
    )
    try:
        return wandb.Audio(read_waveform(utterance).numpy(), sample_rate=SAMPLE_RATE)
    except AudioError:
        return None
