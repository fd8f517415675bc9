"""Weights & Biases: one run one id, the config as data, a table at each validation. The only place that imports it."""

import os
import secrets
from pathlib import Path
from typing import Any

import lightning as L
import wandb
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from ssl_asr.data.audio import read_waveform
from ssl_asr.errors import AudioError
from ssl_asr.metrics.edit import word_edits
from ssl_asr.metrics.report import Prediction, plain_diff
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, Utterance

_ID_FILE = "wandb_run_id.txt"


def has_key() -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.api.api_key)
    except (wandb.errors.Error, OSError):
        return False


def run_id(folder: Path) -> str:
    """The run's id, made once a run folder, so that a resumed run goes on as the same one."""
    file = folder / _ID_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4) + "\n")
    return file.read_text().strip()


def make_wandb_logger(
    *,
    folder: Path,
    name: str,
    config: dict[str, Any],
    project: str,
    entity: str | None,
    group: str | None,
    tags: list[str],
    offline: bool | None,
) -> WandbLogger:
    """A logger whose run is this folder's alone; jobs of a sweep in one process get runs of their own."""
    wandb.finish()
    is_offline = offline if offline is not None else not has_key()
    if is_offline and offline is None and os.environ.get("WANDB_MODE") is None:
        print("W&B: no key found, logging offline (`wandb sync` sends it later)")
    return WandbLogger(
        name=name,
        save_dir=str(folder),
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        id=run_id(folder),
        resume="allow",
        offline=is_offline,
        config=config,
        log_model=False,
    )


def finish(*, failed: bool) -> None:
    """End the run, if there is one, as finished or failed."""
    if wandb.run is not None:
        wandb.finish(exit_code=1 if failed else 0)


class ValidationTable(Callback):
    """Logs a table with audio, reference, hypothesis and edits at each validation: the worst utterances first.

    Args:
        logger: of the run.
        audio_samples: how many rows.
    """

    def __init__(self, *, logger: WandbLogger, audio_samples: int) -> None:
        self.logger, self.audio_samples = logger, audio_samples

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather and log."""
        assert isinstance(pl_module, ASRModule)
        predictions = pl_module.gathered_predictions("dev")
        if not trainer.is_global_zero or not predictions:
            return
        normalize = next(iter(pl_module.normalizers.values()))
        rows = []
        for prediction in predictions:
            ref, hyp = (normalize(text, prediction.lang) for text in (prediction.ref, prediction.hyp))
            rows.append((word_edits(ref, hyp), ref, hyp, prediction))
        rows.sort(key=lambda row: (-row[0].errors, row[3].id))
        table = wandb.Table(columns=["id", "audio", "reference", "hypothesis", "edits", "sub", "ins", "del", "wer"])
        for edits, ref, hyp, prediction in rows[: self.audio_samples]:
            counts = (edits.sub, edits.ins, edits.dele, edits.rate)
            table.add_data(prediction.id, _audio(prediction), ref, hyp, plain_diff(ref, hyp), *counts)
        step = {"trainer/global_step": trainer.fit_loop.epoch_loop._batches_that_stepped}
        self.logger.experiment.log({"val/predictions": table, **step})


def _audio(prediction: Prediction) -> Any:
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
