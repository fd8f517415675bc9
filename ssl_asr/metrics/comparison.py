"""Two systems on the same utterances: their files, and tables that compare them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ssl_asr.console import TitledTable, notify
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.metrics.edit import word_edits
from ssl_asr.metrics.report import Prediction, colored_diff
from ssl_asr.metrics.significance import TEST, Comparison, compare, shown_p
from ssl_asr.types import Normalizer

# Columns of a console for the name of a figure, and for a figure.
_LABEL_WIDTH, _FIGURE_WIDTH = 28, 22


def shared_splits(systems: Sequence[tuple[str, Path]]) -> dict[str, list[Path]]:
    """The files of predictions of each split that all systems have. The dev split is left out if there is another.

    The dev split chose the checkpoints. If each system has one file, the files are one split, whatever their names are.

    Args:
        systems: For each system the key that names it, and a file of predictions or a folder with ``predictions/``.

    Raises:
        ConfigError, ManifestError: There are no predictions, or no common split.
    """
    found = []
    for key, path in systems:
        files = {"predictions": path} if path.is_file() else prediction_files(path)
        if not files:
            what = f"{path} is neither a predictions.jsonl nor a folder with predictions/"
            raise ConfigError(key, what, "give a run's folder")
        found.append(files)
    if all(len(files) == 1 for files in found):
        return {next(iter(found[0])): [next(iter(files.values())) for files in found]}
    shared = {name: [files[name] for files in found] for name in found[0] if all(name in files for files in found)}
    if not shared:
        if len(found) > 2:
            listed = "; ".join(
                f"{path} has {', '.join(files)}" for (_, path), files in zip(systems, found, strict=True)
            )
            raise ManifestError("compare", f"no split is in all: {listed}", "name files of predictions")
        what = f"has {', '.join(found[0])}, and the other {', '.join(found[1])}"
        raise ManifestError(str(systems[0][1]), what, "name two files")
    compared = {name: files for name, files in shared.items() if name != "dev"} or shared
    left_out = sorted({name for files in found for name in files} - {*compared, "dev"})
    if left_out:
        notify(f"not compared, since not all systems have it: {', '.join(left_out)}")
    return compared


def prediction_files(folder: Path) -> dict[str, Path]:
    """The files of predictions of a run or an evaluation, by split."""
    return {file.stem: file for file in sorted((folder / "predictions").glob("*.jsonl"))}


def compare_two(
    split: str,
    systems: Sequence[Sequence[Prediction]],
    names: Sequence[str],
    normalizers: Mapping[str, Normalizer],
    console: Console | None,
    *,
    worst: int,
) -> tuple[dict[str, Any], float]:
    """Compare two systems on a split, and print tables, or one line for each normalizer if there is no console.

    Args:
        split: Name of the split.
        systems: Predictions of both systems.
        names: Names of both systems.
        normalizers: Text normalizers by name.
        console: Where tables are printed.
        worst: Number of shown utterances whose errors changed most.

    Returns:
        Plain data for JSON, and the difference in WER under the first normalizer.
    """
    first, second = systems
    found = {name: compare(first, second, each) for name, each in normalizers.items()}
    if console is not None:
        print_comparisons(split, found, names, console)
        print_changes(first, second, names, next(iter(normalizers.values())), worst, console)
    else:
        for name, one in found.items():
            print(f"{split}, {' and '.join(names)}: {one} ({name})")
    records = {name: {"names": [*names], **one.as_dict()} for name, one in found.items()}
    return records, next(iter(found.values())).difference


def print_comparisons(split: str, found: Mapping[str, Comparison], names: Sequence[str], console: Console) -> None:
    """Print a column for each normalizer: WERs, their difference with its interval, and significance."""
    first, second = names
    columns = [[name, *_figures(one)] for name, one in found.items()]
    at_once = max(1, (console.width - _LABEL_WIDTH) // _FIGURE_WIDTH)
    for start in range(0, len(columns), at_once):
        table = TitledTable(f"{split}: {second} against {first}")
        shown = columns[start : start + at_once]
        table.add_column("")
        for column in shown:
            table.add_column(column[0], justify="right", no_wrap=True)
        labels = [f"WER % of {first}", f"WER % of {second}", "unit of the WER", "difference", "95 % interval"]
        labels += [f"probability that {second} is better", "p", f"right in {first} only", f"right in {second} only"]
        for label, *figures in zip(labels, *(column[1:] for column in shown), strict=True):
            table.add_row(Text(label), *figures)
        console.print(table)
    console.print(f"interval and probability: paired bootstrap over utterances; p: {TEST}", highlight=False)


def _figures(one: Comparison) -> list[str]:
    return [
        f"{100 * one.first.rate:.2f}",
        f"{100 * one.second.rate:.2f}",
        one.wer_unit,
        f"{100 * one.difference:+.2f}",
        f"{100 * one.low:+.2f} to {100 * one.high:+.2f}",
        f"{100 * one.better:.1f} %",
        shown_p(one.p),
        f"{one.first_only:,}",
        f"{one.second_only:,}",
    ]


def print_changes(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    names: Sequence[str],
    normalize: Normalizer,
    count: int,
    console: Console,
) -> None:
    """Print the utterances whose errors changed most, with both hypotheses."""
    others = {prediction.id: prediction for prediction in second}
    table = TitledTable("Changed most")
    for column in ("id", "errors", *names):
        table.add_column(Text(column))
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
