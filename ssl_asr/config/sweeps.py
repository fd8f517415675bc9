"""The jobs of a sweep: what became of each, as a table, and as ``sweep.csv`` beside Hydra's ``multirun.yaml``.

Jobs may run in other processes and on other machines, so each leaves a note in its folder.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from ssl_asr.console import TitledTable
from ssl_asr.errors import ManifestError, UserError
from ssl_asr.textfiles import from_json, written_whole

Status = Literal["done", "failed", "interrupted", "running"]
_NOTE = "job.json"
_COLORS = {"done": "green", "failed": "red", "interrupted": "yellow", "running": "yellow"}
# The sweep of this process.
_FOLDERS: list[Path] = []


@dataclass(kw_only=True)
class Note:
    """What a job says about itself.

    Attributes:
        number: Place in the sweep, from 0.
        overrides: Overrides of the job.
        status: ``running`` until it ends. A job that is killed stays so.
        score: What the sweep compares: the best dev score of a training. None without.
        measure: Name of the score.
        error: Why it failed, or "".
    """

    number: int
    overrides: list[str]
    status: Status = "running"
    score: float | None = None
    measure: str = "score"
    error: str = ""


class SweepFolder(Callback):
    """Hydra's callback that tells this process the folder of its sweep. Notes of an earlier sweep are removed."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the folder."""
        folder = Path(str(config.hydra.sweep.dir))
        _FOLDERS[:] = [folder]
        for note in folder.rglob(_NOTE):
            note.unlink()


@contextmanager
def noted(folder: Path, number: int, overrides: Sequence[str], *, writes: bool) -> Iterator[Note]:
    """Keep the note of a job in its folder. The block sets ``score``, and ``error`` if it handles an error itself.

    Args:
        folder: Folder of the job.
        number: See `Note`.
        overrides: See `Note`.
        writes: Whether this process writes. Of the processes of a job, the first one does.
    """
    note = Note(number=number, overrides=list(overrides))
    _write(note, folder, writes=writes)
    note.status = "failed"
    try:
        yield note
        note.status = "failed" if note.error else "done"
    except (KeyboardInterrupt, SystemExit):
        note.status = "interrupted"
        raise
    except BaseException as error:
        note.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        _write(note, folder, writes=writes)


def _write(note: Note, folder: Path, *, writes: bool) -> None:
    if writes:
        with written_whole(folder / _NOTE) as file:
            file.write(json.dumps(asdict(note), ensure_ascii=False) + "\n")


def report_sweep() -> int:
    """Print and write the table of the jobs of this process's sweep, if it had one.

    Returns:
        The number of failed jobs.
    """
    if not _FOLDERS:
        return 0
    folder = _FOLDERS.pop()
    jobs = read_jobs(folder)
    if not jobs:
        return 0
    shared = shared_overrides([note for _, note in jobs])
    score = jobs[0][1].measure
    rows = [(note, " ".join(o for o in note.overrides if o not in shared), job) for job, note in jobs]
    _print(rows, score, folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", "status", score, "overrides", "folder", "error"])
    for note, swept, job in rows:
        shown = "" if note.score is None else note.score
        writer.writerow([note.number, note.status, shown, swept, job.relative_to(folder), note.error])
    with written_whole(folder / "sweep.csv") as file:
        file.write(text.getvalue())
    return sum(note.status == "failed" for note, _, _ in rows)


def read_jobs(folder: Path) -> list[tuple[Path, Note]]:
    """The folders of the jobs in a folder of a sweep, in their order, each with its note. Empty if it has none.

    Raises:
        ManifestError: A note cannot be read.
    """
    found = []
    for path in folder.rglob(_NOTE):
        row = from_json(path.read_bytes(), str(path), error=ManifestError, remedy="remove the file")
        try:
            found.append((path.parent, Note(**row)))
        except TypeError as error:
            raise ManifestError(str(path), f"is no note of a job: {error}", "remove the file") from None
    return sorted(found, key=lambda job: job[1].number)


def shared_overrides(notes: Sequence[Note]) -> set[str]:
    """The overrides that all jobs have. Empty for a single job."""
    return set.intersection(*(set(note.overrides) for note in notes)) if len(notes) > 1 else set()


def _print(rows: list[tuple[Note, str, Path]], score: str, folder: Path) -> None:
    scores = [note.score for note, _, _ in rows if note.score is not None]
    table = TitledTable(f"Sweep in {folder}")
    for column in ("job", "overrides", "status"):
        table.add_column(column, overflow="fold")
    table.add_column(score, justify="right")
    table.add_column("folder", overflow="fold")
    for note, swept, job in rows:
        is_best = note.score is not None and note.score == min(scores)
        number = Text("" if note.score is None else f"{note.score:.4g}", style="bold" if is_best else "")
        status = Text(note.status if not note.error else f"{note.status}: {note.error}", style=_COLORS[note.status])
        table.add_row(str(note.number), Text(swept), status, number, Text(str(job.relative_to(folder))))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
