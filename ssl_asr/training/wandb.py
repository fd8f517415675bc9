"""Weights & Biases (W&B): one W&B run per run folder, with tables, audio, pictures and checkpoints.

No other module imports wandb.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb
from lightning.pytorch.loggers import WandbLogger

from ssl_asr.metrics.report import Score, html_diff
from ssl_asr.training.media import Row, score_table
from ssl_asr.types import SAMPLE_RATE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssl_asr.training.loggers import WandbLog

_ID_FILE = "wandb_run_id.txt"


def has_key() -> bool:
    """Returns whether W&B has an API key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        # Newer releases warn that this attribute is old. Its successor is missing in earlier ones.
        with redirect_stderr(io.StringIO()):
            return bool(wandb.api.api_key)
    except (wandb.errors.Error, OSError):
        return False


def default_entity() -> str:
    """Returns the user or team that W&B uses if none is named."""
    return str(wandb.Api().default_entity)


def run_id(folder: Path) -> str:
    """Returns the W&B id of a run folder. It is created once, so a resumed run continues the same W&B run.

    An agent of a W&B sweep gives the id of each of its runs.
    """
    file = folder / _ID_FILE
    if not file.is_file():
        given = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text((given or secrets.token_hex(4)) + "\n")
    return file.read_text().strip()


def make_wandb_logger(options: WandbLog, *, folder: Path, name: str, config: dict[str, Any]) -> WandbLogger:
    """Builds the logger of a run folder.

    A W&B run that is still open is finished first, so each job of a sweep has a separate W&B run.

    Args:
        options: WandbLog, settings.
        folder: Folder of the run.
        name: str, name of the run.
        config: Config of the run as plain data. ``run`` in it has ``group``, ``job_type`` and ``tags``, which options
            of the logger precede.
    """
    job = config.get("run", {})
    wandb.finish()
    is_offline = options.offline if options.offline is not None else not has_key()
    if is_offline and options.offline is None and os.environ.get("WANDB_MODE") is None:
        print("W&B: no API key found, logging offline. Upload the run later with `wandb sync`.")
    logger = WandbLogger(
        name=name,
        save_dir=str(folder),
        project=options.project,
        entity=options.entity,
        group=options.group or job.get("group"),
        job_type=job.get("job_type"),
        tags=[*options.tags, *(tag for tag in job.get("tags", []) if tag not in options.tags)],
        id=run_id(folder),
        resume="allow",
        offline=is_offline,
        # Lightning sets WANDB_MODE, which wandb reads too early if it has been asked for a key.
        mode="offline" if is_offline else None,
        config=config,
        # The command prints what matters. W&B repeats every number at the end.
        settings=wandb.Settings(silent=True),
        log_model=False,
    )
    # Lightning's default, about which W&B warns.
    logger._wandb_init.pop("anonymous", None)
    return logger


def finish(*, failed: bool) -> None:
    """Marks the open W&B run as finished or failed, if there is one."""
    if wandb.run is not None:
        wandb.finish(exit_code=1 if failed else 0)


class WandbWriter:
    """A `MediaWriter` for W&B.

    Args:
        logger: WandbLogger of the run.
    """

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger

    def _log(self, values: dict[str, Any], step: int) -> None:
        self._logger.experiment.log({**values, "trainer/global_step": step})

    def utterances(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Writes a table. Its diffs are colored."""
        columns: list[str | int] = ["id", "audio", "reference", "hypothesis", "diff", "sub", "ins", "del", "wer"]
        table = wandb.Table(columns=columns)
        for row in rows:
            waveform_T, edits = row.waveform_T(), row.edits
            audio = None if waveform_T is None else wandb.Audio(waveform_T.numpy(), sample_rate=SAMPLE_RATE)
            diff = wandb.Html(f'<div style="font-family:sans-serif">{html_diff(row.ref, row.hyp)}</div>', inject=False)
            counts = (edits.sub, edits.ins, edits.dele, edits.rate)
            table.add_data(row.prediction.id, audio, row.ref, row.hyp, diff, *counts)
        self._log({name: table}, step)

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Writes a picture."""
        self._log({name: wandb.Image(figure)}, step)

    def scores(self, name: str, scores: Mapping[str, Sequence[Score]], step: int) -> None:
        """Writes a table."""
        columns, rows = score_table(scores)
        self._log({name: wandb.Table(columns=[*columns], data=rows)}, step)

    def summary(self, values: Mapping[str, str]) -> None:
        """Writes texts to the summary of the run."""
        self._logger.experiment.summary.update(dict(values))

    def checkpoint(self, path: Path, files: Sequence[Path]) -> None:
        """Keeps a checkpoint as an artifact of type ``model``, with the aliases ``latest`` and its name."""
        run = self._logger.experiment
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        for file in (path, *files):
            artifact.add_file(str(file), name=file.name)
        run.log_artifact(artifact, aliases=["latest", path.stem])
