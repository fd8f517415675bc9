"""The ``logger`` options: CSV (always there), TensorBoard, W&B."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ssl_asr.errors import missing_extra


class LoggerConfig(Protocol):
    """A ``logger`` option."""

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Any], list[Callback]]:
        """Loggers and the callbacks they bring; ``config`` is logged as data."""


def _csv(folder: Path, config: dict[str, Any]) -> CSVLogger:
    logger = CSVLogger(save_dir=folder, name="", version="metrics")
    logger.log_hyperparams(config)
    return logger


@dataclass(frozen=True, kw_only=True)
class CsvLog:
    """``metrics/metrics.csv`` in the run's folder."""

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Any], list[Callback]]:
        """The one logger."""
        return [_csv(folder, config)], []


@dataclass(frozen=True, kw_only=True)
class NoLog:
    """Nothing is logged; results and predictions are written all the same."""

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Any], list[Callback]]:
        """No logger."""
        return [], []


@dataclass(frozen=True, kw_only=True)
class TensorBoardLog:
    """Event files for TensorBoard, and the CSV beside."""

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Any], list[Callback]]:
        """Both loggers."""
        try:
            board = TensorBoardLogger(save_dir=folder, name="", version="tensorboard")
        except ModuleNotFoundError:
            raise missing_extra("logger=tensorboard", "tensorboard", "tensorboard", "logger=csv") from None
        board.log_hyperparams(config)
        return [_csv(folder, config), board], []


@dataclass(frozen=True, kw_only=True)
class WandbLog:
    """A W&B run, offline where there is no key, and the CSV beside.

    Attributes:
        project: W&B's.
        entity: W&B's; null for the default one.
        group: runs to be seen together; null for none.
        tags: labels.
        offline: true writes locally only; null does so where no key is found.
        audio_samples: utterances with audio in each validation's table.
    """

    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    offline: bool | None
    audio_samples: int

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Any], list[Callback]]:
        """The loggers, and the callback that writes the table of each validation."""
        from ssl_asr.training.wandb import ValidationTable, make_wandb_logger

        logger = make_wandb_logger(
            folder=folder,
            name=name,
            config=config,
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=self.tags,
            offline=self.offline,
        )
        return [_csv(folder, config), logger], [ValidationTable(logger=logger, audio_samples=self.audio_samples)]
