"""TensorBoard: utterances, pictures and tables in the tabs of text, audio and images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_asr.metrics.report import Score, plain_diff
from ssl_asr.training.media import Row, score_table
from ssl_asr.types import SAMPLE_RATE

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger
    from matplotlib.figure import Figure


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown. Bars in cells do not end them."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


class TensorBoardWriter:
    """A `MediaWriter` for TensorBoard. Audio is written once for each utterance, since it stays the same.

    Args:
        logger: The logger of the run.
    """

    def __init__(self, logger: "TensorBoardLogger") -> None:
        self._logger = logger
        self._heard: set[str] = set()

    @property
    def _board(self) -> Any:
        return self._logger.experiment

    def utterances(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Write a table as text, and the audio of new utterances."""
        cells = [
            (row.prediction.id, plain_diff(row.ref, row.hyp), row.edits.errors, f"{100 * row.edits.rate:.2f}")
            for row in rows
        ]
        self._board.add_text(name, _markdown(["id", "diff", "errors", "WER %"], cells), step)
        for row in rows:
            waveform_T = None if row.prediction.id in self._heard else row.waveform_T()
            if waveform_T is not None:
                self._heard.add(row.prediction.id)
                self._board.add_audio(f"{name}/{row.prediction.id}", waveform_T[None], step, SAMPLE_RATE)

    def figure(self, name: str, figure: "Figure", step: int) -> None:
        """Write a picture."""
        self._board.add_figure(name, figure, step)

    def scores(self, name: str, scores: Mapping[str, Sequence[Score]], step: int) -> None:
        """Write a table as text."""
        self._board.add_text(name, _markdown(*score_table(scores)), step)

    def summary(self, values: Mapping[str, str]) -> None:
        """Write each text under its name."""
        for name, value in values.items():
            self._board.add_text(name, value)

    def checkpoint(self, path: Path, files: Sequence[Path]) -> None:
        """Nothing: TensorBoard has no place for files."""
