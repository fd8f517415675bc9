"""Logger options: CSV, TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ssl_asr.config.run_folder import is_first
from ssl_asr.errors import ConfigError, optional_import
from ssl_asr.textfiles import written_whole
from ssl_asr.types import NonNegativeInt

if TYPE_CHECKING:
    # Imported where loggers are built, so that a command line is checked without Lightning.
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import CSVLogger, Logger


class LoggerConfig(Protocol):
    """A ``logger`` option: a frozen dataclass that builds Lightning loggers.

    To add a logger, write an option that returns any of Lightning's loggers, or a logger of your package:

        >>> from dataclasses import dataclass
        >>> from pathlib import Path
        >>> from lightning.pytorch.loggers import Logger
        >>> class Printer(Logger):
        ...     name, version = "printer", 0
        ...     def log_hyperparams(self, params): ...
        ...     def log_metrics(self, metrics, step=None):
        ...         print(f"{step}: {metrics}")
        >>> @dataclass(frozen=True, kw_only=True)
        ... class PrintLog:
        ...     def build(self, *, folder, name, config):
        ...         return [Printer()], []
        >>> [logger], callbacks = PrintLog().build(folder=Path("."), name="run", config={})
        >>> logger.log_metrics({"val/wer": 0.05}, step=100)
        100: {'val/wer': 0.05}

    The YAML file ``logger/print.yaml`` names the class in ``_target_``. The logger is then selected with
    ``logger=print``.
    """

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Logger], list[Callback]]:
        """Builds the loggers.

        Args:
            folder: Folder of the run.
            name: str, name of the run.
            config: Config of the run as plain data, to be logged. Its key ``run`` has the command, versions, the git
                commit, and the group, job type and tags that the run has by itself: `ssl_asr.build.job.job_record`.

        Returns:
            The loggers, and the callbacks that they need.

        Raises:
            ConfigError: If a package is missing.
        """


def _csv(folder: Path, config: dict[str, Any]) -> CSVLogger:
    from ssl_asr.training.csv_log import ContinuedCsvLogger

    logger = ContinuedCsvLogger(save_dir=folder, name="", version="metrics")
    logger.log_hyperparams(config)
    return logger


@dataclass(frozen=True, kw_only=True)
class CsvLog:
    """Metrics in ``metrics/metrics.csv`` in the run's folder."""

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Logger], list[Callback]]:
        """Builds the CSV logger."""
        return [_csv(folder, config)], []


@dataclass(frozen=True, kw_only=True)
class NoLog:
    """No metrics are logged. Results and predictions are still written."""

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Logger], list[Callback]]:
        """Returns no logger."""
        return [], []


@dataclass(frozen=True, kw_only=True)
class TensorBoardLog:
    """TensorBoard event files in ``tensorboard/``, and ``metrics/metrics.csv``.

    Attributes:
        audio_samples: int, utterances of each validation's table, with their audio.
    """

    audio_samples: NonNegativeInt = 16

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Logger], list[Callback]]:
        """Builds both loggers.

        Raises:
            ConfigError: If tensorboard is not installed.
        """
        from lightning.pytorch.loggers import TensorBoardLogger

        from ssl_asr.training.media import MediaLog
        from ssl_asr.training.tensorboard import TensorBoardWriter

        with optional_import("logger=tensorboard", "tensorboard", "tensorboard", "logger=csv"):
            board = TensorBoardLogger(save_dir=folder, name="", version="tensorboard")
        board.log_hyperparams(config)
        media = MediaLog([TensorBoardWriter(board)], count=self.audio_samples, log_model=False)
        return [_csv(folder, config), board], [media]


@dataclass(frozen=True, kw_only=True)
class MlflowLog:
    """An MLflow run with numbers, config and tags, and ``metrics/metrics.csv``.

    Attributes:
        experiment: str, MLflow experiment.
        tracking_uri: str, server or database. None takes MLFLOW_TRACKING_URI, or else ``mlflow.db`` in the current
            folder.
    """

    experiment: str
    tracking_uri: str | None

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Logger], list[Callback]]:
        """Builds both loggers. A resumed run continues its MLflow run.

        Raises:
            ConfigError: If mlflow is not installed.
        """
        from lightning.pytorch.loggers import MLFlowLogger

        known = folder / "mlflow_run_id.txt"
        run = config.get("run", {})
        tags = {key: str(run[key]) for key in ("command", "git") if run.get(key) is not None}
        with optional_import("logger=mlflow", "mlflow-skinny", "mlflow", "logger=csv"):
            logger = MLFlowLogger(
                experiment_name=self.experiment,
                run_name=name,
                tracking_uri=self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db",
                tags=tags,
                run_id=known.read_text(encoding="utf-8").strip() if known.is_file() else None,
            )
        logger.log_hyperparams(config)
        if is_first() and logger.run_id is not None:
            with written_whole(known) as file:
                file.write(f"{logger.run_id}\n")
        return [_csv(folder, config), logger], []


@dataclass(frozen=True, kw_only=True)
class WandbLog:
    """A W&B run with tables, audio and pictures, and ``metrics/metrics.csv``.

    Attributes:
        project: str, W&B project.
        entity: str, W&B user or team; None for the default one.
        group: str, W&B group of related runs; None for the folder of the sweep, and for no group outside of a sweep.
        tags: list of str, labels. The backbone and the task are added.
        offline: bool, write to the run's folder only. None does so if no API key is found.
        audio_samples: int, rows of each validation's table. Each row has the audio of an utterance.
        log_model: bool, upload the best checkpoint as an artifact when the run is done.
    """

    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    offline: bool | None
    audio_samples: NonNegativeInt
    log_model: bool = False

    def build(self, *, folder: Path, name: str, config: dict[str, Any]) -> tuple[list[Logger], list[Callback]]:
        """Builds both loggers, and the callback that logs tables, audio and pictures."""
        from ssl_asr.training.media import MediaLog
        from ssl_asr.training.wandb import WandbWriter, make_wandb_logger

        self.check()
        logger = make_wandb_logger(self, folder=folder, name=name, config=config)
        media = MediaLog([WandbWriter(logger)], count=self.audio_samples, log_model=self.log_model)
        return [_csv(folder, config), logger], [media]

    def check(self) -> None:
        """Refuse to log online without an API key, which wandb would ask for or fail on later.

        Raises:
            ConfigError: There is no key, and ``offline`` is false.
        """
        from ssl_asr.training.wandb import has_key

        if self.offline is False and os.environ.get("WANDB_MODE", "online") == "online" and not has_key():
            remedy = "run wandb login, or set WANDB_API_KEY, or use logger.offline=true"
            raise ConfigError("logger.offline", "is false, and there is no API key for W&B", remedy)

    def finish(self, *, failed: bool) -> None:
        """End the W&B run as finished or failed."""
        from ssl_asr.training.wandb import finish

        finish(failed=failed)


def finish_run(option: LoggerConfig, *, failed: bool) -> None:
    """End the run of a logger option that has a ``finish`` method, after the tests."""
    finish = getattr(option, "finish", None)
    if finish is not None:
        finish(failed=failed)
