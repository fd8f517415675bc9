"""A CSV logger that continues its file, so that a resumed run keeps the rows of its first part."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from ssl_asr.console import notify
from ssl_asr.errors import CheckpointError
from ssl_asr.metrics.curves import Curves, parse_metrics
from ssl_asr.textfiles import naming, written_whole


class _ContinuedWriter(ExperimentWriter):
    """Appends to an existing ``metrics.csv``, which Lightning's own writer deletes."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    self.metrics_keys = next(csv.reader(file), [])
            except (ValueError, csv.Error):
                _set_aside(path)

    def save(self) -> None:
        """Append recorded metrics. Errors of the file system name the file."""
        with naming(Path(self.metrics_file_path)):
            super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Add columns. The file is replaced as a whole, so that no row is lost if the process is killed."""
        path = Path(self.metrics_file_path)
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        _write(path, fieldnames, rows)


class ContinuedCsvLogger(CSVLogger):
    """Lightning's `CSVLogger`. If the file exists, new rows are appended to it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> _ContinuedWriter:
        """The writer of the file."""
        if not isinstance(self._experiment, _ContinuedWriter):
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment


def read_curves(folder: Path) -> Curves:
    """What a run logged, by name, such as ``train/loss``: pairs of the number of updates and the value.

    Args:
        folder: Folder of the run.

    Raises:
        CheckpointError: The run has no ``metrics/metrics.csv``.
        ManifestError: The file has no column ``step``.
    """
    path = folder / "metrics" / "metrics.csv"
    if not path.is_file():
        raise CheckpointError(str(folder), "has no metrics/metrics.csv", "give the folder of a run with logger=csv")
    return parse_metrics(path)


def keep_metrics(folder: Path, update: int) -> None:
    """Prepare ``metrics/metrics.csv`` for a run that continues after ``update`` updates.

    Rows of later updates are logged again. The file with these rows is kept as ``metrics-before-resume-N.csv``.

    Args:
        folder: Folder of the run.
        update: Number of updates at the checkpoint.
    """
    path = folder / "metrics" / "metrics.csv"
    if not path.is_file():
        return
    try:
        # A killed process may have left an incomplete last line.
        whole, ending, cut = path.read_text(encoding="utf-8").rpartition("\n")
        reader = csv.DictReader(io.StringIO(whole + ending), restkey="", strict=True)
        header, rows = list(reader.fieldnames or []), list(reader)
        if header and "step" not in header:
            raise KeyError("step")
        # The row of update n, and of the validation after it, has step n - 1.
        kept = [row for row in rows if int(row["step"]) < update]
    except (ValueError, KeyError, TypeError, csv.Error):
        _set_aside(path)
        return
    if len(kept) == len(rows) and not cut:
        return
    path.rename(_unused(path.parent))
    if kept:
        _write(path, header, kept)


def _set_aside(path: Path) -> None:
    """Rename a file that is no table of metrics, so that a run goes on without it."""
    aside = _unused(path.parent)
    path.rename(aside)
    notify(f"{path}: is damaged. It is now {aside.name}, and a new file begins")


def _write(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    with written_whole(path) as file:
        writer = csv.DictWriter(file, fieldnames=header, extrasaction="ignore", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


def _unused(folder: Path) -> Path:
    number = 1
    while (path := folder / f"metrics-before-resume-{number}.csv").exists():
        number += 1
    return path
