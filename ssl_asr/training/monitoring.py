"""Numbers that every run logs besides losses and error rates, to whatever loggers it has.

    data/SPLIT_hours, data/SPLIT_utterances, data/SPLIT_dropped     at the start
    model/parameters, model/trainable                               at the start
    val/wer_low, val/wer_high, val/wer_best                         at each validation
    train/mfu                                                       at each epoch, on cards in `ssl_asr.training.flops`
    SPLIT/wer, SPLIT/cer, SPLIT/wer_low, SPLIT/wer_high, …          at the end, for each split that is scored

Losses, gradient norms, learning rates and error rates are logged where they are computed: `ssl_asr.training.updates`
and `ssl_asr.training.validation`. Figures of batches, speed and memory: `ssl_asr.training.callbacks`.
"""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from ssl_asr.data.filters import Selection
from ssl_asr.metrics.evaluation import Evaluation
from ssl_asr.metrics.report import Score, score_predictions
from ssl_asr.training.module import ASRModule

_HOUR_S = 3600


def logged_step(trainer: L.Trainer) -> int:
    """The step of the last update in loggers, from 0, see `UpdateLoop.on_train_batch_end`. Also valid after tests."""
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    # Lightning counts the last batch after its hooks.
    return step if trainer.state.fn == "fit" else max(0, step - 1)


def log_now(trainer: L.Trainer, figures: Mapping[str, float]) -> None:
    """Log numbers outside of Lightning's loops, with the step of the last update, as validations have it."""
    step = logged_step(trainer)
    epoch = max(0, trainer.current_epoch - int(not trainer.training))
    for logger in trainer.loggers:
        logger.log_metrics({**figures, "epoch": epoch}, step=step)


class RunFacts(Callback):
    """Logs hours and utterances of each split, and the number of parameters, when training starts.

    Args:
        selections: What was kept and dropped of each split.
    """

    def __init__(self, selections: Mapping[str, Selection]) -> None:
        self._selections = selections

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the numbers."""
        if trainer.is_global_zero:
            log_now(trainer, self._figures(pl_module))

    def _figures(self, module: L.LightningModule) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, one in self._selections.items():
            figures[f"data/{name}_hours"] = one.kept.total_s / _HOUR_S
            figures[f"data/{name}_utterances"] = len(one.kept)
            figures[f"data/{name}_dropped"] = len(one.skips)
        assert isinstance(module, ASRModule)
        rows = module.group_table()
        figures["model/parameters"] = sum(row.total for row in rows)
        figures["model/trainable"] = sum(row.trainable for row in rows)
        return figures


class DevScores(Callback):
    """Logs the 95 % interval of the dev WER and the lowest WER so far, and prints a line, at each validation.

    Args:
        console: Where the line is printed; None prints nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._best = math.inf
        self._score: Score | None = None

    def state_dict(self) -> dict[str, Any]:
        """The lowest WER, which a resumed run continues from."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the lowest WER of the run that is resumed."""
        self._best = state_dict["best"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the predictions of all ranks."""
        assert isinstance(pl_module, ASRModule)
        predictions = pl_module.gather_dev_predictions()
        self._score = None
        if trainer.sanity_checking or not trainer.is_global_zero or not predictions:
            return
        name, normalize = next(iter(pl_module.normalizers.items()))
        self._score = score = score_predictions(predictions, name, normalize)
        self._best = min(self._best, score.wer)
        for key, value in (("low", score.wer_low), ("high", score.wer_high), ("best", self._best)):
            pl_module.log(f"val/wer_{key}", value, rank_zero_only=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line, now that the losses of the validation are known."""
        if self._console is None or self._score is None:
            return
        found, score = trainer.callback_metrics, self._score
        losses = [("loss", "train/loss"), ("dev loss", "val/loss")]
        parts = [f"{name} {float(found[key]):.3f}" for name, key in losses if key in found]
        interval = f"{100 * score.wer_low:.2f} - {100 * score.wer_high:.2f}"
        parts.append(f"WER {100 * score.wer:.2f} % ({interval})")
        best = ", best" if score.wer <= self._best else ""
        where = f"Epoch {trainer.current_epoch + 1}, update {trainer.global_step}"
        self._console.print(f"{where}: {', '.join(parts)}{best}", highlight=False, soft_wrap=True)


def split_figures(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """The numbers of scored splits, for loggers. ``SPLIT/wer`` is that of the first normalizer."""
    figures: dict[str, float] = {}
    for split, evaluation in evaluations.items():
        for score in evaluation.scores:
            figures[f"{split}/wer/{score.normalizer}"] = score.wer
            figures[f"{split}/cer/{score.normalizer}"] = score.cer
        first = evaluation.scores[0]
        figures |= {
            f"{split}/wer": first.wer,
            f"{split}/cer": first.cer,
            f"{split}/wer_low": first.wer_low,
            f"{split}/wer_high": first.wer_high,
            f"{split}/sub": first.words.sub,
            f"{split}/ins": first.words.ins,
            f"{split}/del": first.words.dele,
            f"{split}/utterances_wrong": first.sentence_errors,
        }
    return figures
