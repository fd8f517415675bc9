"""Shows a parity check on the console."""

from pathlib import Path

from rich.console import Console

from ssl_asr.config.exporting import SIDECAR
from ssl_asr.console import TitledTable
from ssl_asr.export.parity import Comparison, Parity
from ssl_asr.export.sidecar import folder_bytes
from ssl_asr.metrics.report import Score, colored_diff

# Differences that are shown. The sidecar has all of them.
_SHOWN = 20


def show_parity(parity: Parity, name: str, folder: Path, console: Console) -> None:
    """Print a row for each comparison, and the alignment of texts that differ. Of two numbers, the first is ours.

    Args:
        parity: What was compared.
        name: Name of the format.
        folder: The exported files.
        console: Where it is printed.
    """
    size = folder_bytes(folder) / 1e6
    table = TitledTable(f"ssl_asr and {name} ({size:,.1f} MB), one utterance at a time")
    names = list(parity.comparisons[0].scores)
    numbers = ["same text", "change %", *(f"WER % {one}" for one in names), "x real time"]
    for column in ("window", *numbers):
        table.add_column(column, justify="left" if column == "window" else "right")
    for one in parity.comparisons:
        speeds = " / ".join(f"{one.audio_s / max(1e-9, seconds):.1f}" for seconds in one.seconds)
        scores = [f"{_percent(ours)} / {_percent(theirs)}" for ours, theirs in one.scores.values()]
        same = f"{one.utterances - len(one.differences):,} of {one.utterances:,}"
        table.add_row(one.window or "", same, f"{100 * one.change:.2f}", *scores, speeds)
    if parity.own:
        table.add_row("real, ssl_asr only", "", "", *(_percent(parity.own[one]) for one in names), "")
    console.print(table)
    if parity.times is not None:
        times = parity.times
        console.print(
            f"Word times: {times.within:,} of {len(times.distances):,} words of {times.utterances:,} utterances start "
            f"within {times.limit_s:g} s of each other; words after a pause are not compared",
            highlight=False,
        )
    for one in parity.comparisons:
        _show_differences(one, name, console)


def _percent(score: Score) -> str:
    return f"{100 * score.wer:.2f}"


def _show_differences(comparison: Comparison, name: str, console: Console) -> None:
    if not comparison.differences:
        return
    window = "" if comparison.window is None else f", window={comparison.window}"
    table = TitledTable(f"Texts that differ{window}")
    table.add_column("id", no_wrap=True)
    table.add_column(f"from ssl_asr to {name}")
    for one in comparison.differences[:_SHOWN]:
        table.add_row(one.id, colored_diff(one.ours, one.theirs))
    console.print(table)
    more = len(comparison.differences) - _SHOWN
    if more > 0:
        console.print(f"{more:,} more are in {SIDECAR}")
