"""What a dashboard shows besides numbers: utterances with audio and diffs, pictures, tables and checkpoints.

`MediaLog` decides what is shown and when. A `MediaWriter` only writes it, for one service.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import silence
from ssl_asr.errors import AudioError
from ssl_asr.metrics.edit import Edits, wer_unit, word_edits
from ssl_asr.metrics.evaluation import Evaluation
from ssl_asr.metrics.report import Prediction, Score
from ssl_asr.training.module import ASRModule
from ssl_asr.training.monitoring import log_now, logged_step, split_figures
from ssl_asr.training.pictures import can_draw, draw
from ssl_asr.types import Batch, Normalizer, Tokenizer, Utterance

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

# Utterances of which pictures are drawn.
_DRAWN = 2


@dataclass(frozen=True, slots=True)
class Row:
    """An utterance as a dashboard shows it: its prediction, both texts as they are scored, and the edits."""

    prediction: Prediction
    ref: str
    hyp: str
    edits: Edits

    def waveform_T(self) -> "Tensor | None":
        """The audio, float32 at 16 kHz, or None if it cannot be read."""
        try:
            return read_waveform(self.prediction.utterance())
        except AudioError:
            return None


def rows_of(predictions: Sequence[Prediction], normalize: Normalizer) -> list[Row]:
    """The rows of predictions, in their order."""
    pairs = [(prediction, *prediction.pair(normalize)) for prediction in predictions]
    return [Row(prediction, ref, hyp, word_edits(ref, hyp)) for prediction, ref, hyp in pairs]


class MediaWriter(Protocol):
    """Writes what a run shows to one service. Names are as those of numbers: ``val/predictions``."""

    def utterances(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Write utterances with their audio, both texts, the diff, and the edits."""

    def figure(self, name: str, figure: "Figure", step: int) -> None:
        """Write a picture."""

    def scores(self, name: str, scores: Mapping[str, Sequence[Score]], step: int) -> None:
        """Write a table of the scores of each split."""

    def summary(self, values: Mapping[str, str]) -> None:
        """Write texts on the whole run."""

    def checkpoint(self, path: Path, files: Sequence[Path]) -> None:
        """Keep a checkpoint with further files of the run, if the service has a place for them."""


class MediaLog(Callback):
    """Gives writers the same utterances at each validation, and pictures of two of them.

    Utterances are evenly spaced in the dev set in order of id. Pictures need matplotlib.

    Args:
        writers: Where they are written.
        count: Number of utterances.
        log_model: Whether writers keep the best checkpoint.
    """

    def __init__(self, writers: Sequence[MediaWriter], *, count: int, log_model: bool) -> None:
        self._writers, self._count, self._log_model = writers, count, log_model
        self._shown: list[str] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather the predictions of all ranks, and write them on the first one."""
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, ASRModule)
        predictions = pl_module.gather_dev_predictions()
        if not predictions or self._count == 0:
            return
        if not self._shown:
            step = max(1, len(predictions) // self._count)
            self._shown = [prediction.id for prediction in predictions[::step][: self._count]]
        by_id = {prediction.id: prediction for prediction in predictions}
        shown = [by_id[name] for name in self._shown if name in by_id]
        figures = self._figures(pl_module, trainer, shown[:_DRAWN])
        if not trainer.is_global_zero:
            return
        update = logged_step(trainer)
        normalize = next(iter(pl_module.normalizers.values()))
        rows = rows_of(shown, normalize)
        unit = wer_unit(prediction.pair(normalize) for prediction in predictions)
        for writer in self._writers:
            writer.utterances("val/predictions", rows, update)
            writer.summary({"val/wer_unit": unit})
            for name, figure in figures.items():
                writer.figure(name, figure, update)

    @staticmethod
    def _figures(module: ASRModule, trainer: L.Trainer, shown: Sequence[Prediction]) -> "dict[str, Figure]":
        """Pictures of utterances, by names with their place. Every rank computes them, as sharded weights need."""
        if not can_draw():
            return {}
        figures = {}
        for place, prediction in enumerate(shown, start=1):
            kept = trainer.datamodule.selections["dev"].kept  # type: ignore[attr-defined]
            utterance = next(one for one in kept if one.id == prediction.id)
            try:
                batch = spoken_batch(utterance, module.tokenizer)
            except AudioError:
                continue
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for picture in module.pictures(batch.to(module.device)):
                    figures[f"val/{picture.kind}/{place}"] = draw(picture)
        return figures

    def log_results(self, trainer: L.Trainer, evaluations: Mapping[str, Evaluation], folder: Path) -> None:
        """Write the scores of all splits, their worst utterances, and the best checkpoint. On the first rank.

        Args:
            trainer: Trainer of the finished run.
            evaluations: Scores by split.
            folder: Folder of the run.
        """
        step = logged_step(trainer)
        for writer in self._writers:
            writer.scores("results", {name: one.scores for name, one in evaluations.items()}, step)
            for name, one in evaluations.items():
                writer.utterances(f"{name}/worst", self._worst(one), step)
            best = folder / "checkpoints" / "best.ckpt"
            path = best if best.is_file() else best.with_name("last.ckpt")
            if self._log_model and path.is_file():
                writer.checkpoint(path, [folder / "config.yaml", folder / "results.json"])

    def _worst(self, evaluation: Evaluation) -> list[Row]:
        from ssl_asr.data.text import get_normalizers

        normalize = next(iter(get_normalizers([evaluation.scores[0].normalizer]).values()))
        rows = rows_of(evaluation.predictions, normalize)
        return sorted(rows, key=lambda row: (-row.edits.errors, row.prediction.id))[: self._count]


def spoken_batch(utterance: Utterance, tokenizer: Tokenizer) -> Batch:
    """A batch of one utterance, to draw its pictures.

    Raises:
        AudioError: Its audio cannot be read.
    """
    batch = silence(utterance, tokenizer)
    batch.waveform_BT[0] = fitted(read_waveform(utterance), batch.waveform_BT.shape[1])
    return batch


def fitted(waveform_T: "Tensor", samples: int) -> "Tensor":
    """A waveform with a number of samples: cut, or with zeros at its end."""
    return torch.nn.functional.pad(waveform_T[:samples], (0, max(0, samples - len(waveform_T))))


def log_results(trainer: L.Trainer, evaluations: Mapping[str, Evaluation], folder: Path) -> None:
    """Log the scores of a finished run to all its loggers. Call it on the first rank."""
    log_now(trainer, split_figures(evaluations))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, MediaLog):
            callback.log_results(trainer, evaluations, folder)
    for logger in trainer.loggers:
        logger.save()


def score_table(scores: Mapping[str, Sequence[Score]]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of a table of scores, with error rates in percent."""
    columns = ["split", "normalizer", "WER %", "low %", "high %", "sub", "ins", "del", "units", "CER %", "utterances"]
    rows: list[list[object]] = []
    for split, each in scores.items():
        for one in each:
            rates = [round(100 * rate, 2) for rate in (one.wer, one.wer_low, one.wer_high)]
            words = [one.words.sub, one.words.ins, one.words.dele, one.words.ref]
            rows.append([split, one.normalizer, *rates, *words, round(100 * one.cer, 2), one.utterances])
    return columns, rows
