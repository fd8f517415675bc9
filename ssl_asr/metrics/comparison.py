"""Tables that compare two systems on the same utterances."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from ssl_asr.metrics.edit import word_edits
from ssl_asr.metrics.report import Prediction, colored_diff
from ssl_asr.metrics.significance import Comparison
from ssl_asr.types import Normalizer


def print_comparisons(split: str, rows: Mapping[str, Comparison], console: Console) -> None:
    """Print a row for each normalizer: WERs, their difference with its interval, and significance."""
    table = Table(title=f"{split}: the second against the first", title_justify="left")
    columns = ("normalizer", "unit", "first WER %", "second WER %", "difference", "95 % interval", "second better", "p")
    for column in (*columns, "right in first only", "in second only"):
        table.add_column(column, justify="left" if column in ("normalizer", "unit") else "right")
    for name, one in rows.items():
        table.add_row(
            name,
            one.wer_unit,
            f"{100 * one.first.rate:.2f}",
            f"{100 * one.second.rate:.2f}",
            f"{100 * one.difference:+.2f}",
            f"{100 * one.low:+.2f} to {100 * one.high:+.2f}",
            f"{100 * one.better:.1f} %",
            f"{one.p:.4f}",
            f"{one.first_only:,}",
            f"{one.second_only:,}",
        )
    console.print(table)


def print_changes(
    first: Sequence[Prediction], second: Sequence[Prediction], normalize: Normalizer, count: int, console: Console
) -> None:
    """Print the utterances whose errors changed most, with both hypotheses."""
    others = {prediction.id: prediction for prediction in second}
    table = Table(title="Changed most", title_justify="left")
    for column in ("id", "errors", "first", "second"):
        table.add_column(column)
    rows = []
    for one in first:
        # Of several references, each system may be closest to another one.
        pairs = [one.pair(normalize), replace(others[one.id], lang=one.lang).pair(normalize)]
        errors = [word_edits(*pair).errors for pair in pairs]
        rows.append((-abs(errors[1] - errors[0]), one.id, errors, pairs))
    for change, utterance_id, errors, (first_pair, second_pair) in sorted(rows)[:count]:
        if change < 0:
            counts = f"{errors[0]} → {errors[1]}"
            table.add_row(utterance_id, counts, colored_diff(*first_pair), colored_diff(*second_pair))
    if table.row_count:
        console.print(table)
