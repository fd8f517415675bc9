"""``ssl-asr compare ONE OTHER``: whether one system is better than another, or only luckier."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.textfiles import written_whole

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.metrics.report import Prediction
    from ssl_asr.metrics.significance import Comparison


def compare(config: dict[str, Any], folder: Path) -> float | None:  # noqa: ARG001
    """Compare as the resolved config says; returns the difference in WER of the first split."""
    from ssl_asr.console import make_console
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.metrics.report import read_predictions
    from ssl_asr.metrics.significance import compare as compare_predictions

    console = make_console() if config["verbose"] else None
    results: dict[str, dict[str, Comparison]] = {}
    for split, paths in _pairs(Path(config["first"]), Path(config["second"])).items():
        first, second = (read_predictions(path) for path in paths)
        by_name = get_normalizers(config["normalizers"])
        results[split] = {name: compare_predictions(first, second, each) for name, each in by_name.items()}
        if console is not None:
            _show(split, results[split], console)
            _show_changes(first, second, by_name[config["normalizers"][0]], config["worst"], console)
    if config["output"] is not None:
        whole = {split: {name: asdict(one) for name, one in rows.items()} for split, rows in results.items()}
        with written_whole(Path(config["output"])) as file:
            file.write(json.dumps(whole, indent=1) + "\n")
    return next(iter(next(iter(results.values())).values())).difference


def _pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """Files of predictions to compare, by split.

    Raises:
        ConfigError, ManifestError: there are none.
    """
    found = []
    for key, path in (("first", first), ("second", second)):
        if path.is_file():
            found.append({"predictions": path})
            continue
        files = {file.stem: file for file in sorted((path / "predictions").glob("*.jsonl"))}
        if not files:
            raise ConfigError(key, f"{path} is no predictions.jsonl and holds no predictions/", "a run's folder")
        found.append(files)
    one, other = found
    if len(one) == len(other) == 1:
        return {next(iter(one)): (next(iter(one.values())), next(iter(other.values())))}
    both = {name: (one[name], other[name]) for name in one if name in other}
    if not both:
        raise ManifestError(str(first), f"has {', '.join(one)}, and the other {', '.join(other)}", "name two files")
    # Dev is for choosing; where there is anything else, that is what counts.
    return {name: pair for name, pair in both.items() if name != "dev"} or both


def _show(split: str, rows: "dict[str, Comparison]", console: "Console") -> None:
    from rich.table import Table

    table = Table(title=f"{split}: the second against the first", title_justify="left")
    columns = ("normalizer", "first WER %", "second WER %", "difference", "95 % interval", "second better", "p")
    for column in (*columns, "right in first only", "in second only"):
        table.add_column(column, justify="left" if column == "normalizer" else "right")
    for name, one in rows.items():
        table.add_row(
            name,
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


def _show_changes(
    first: "list[Prediction]", second: "list[Prediction]", normalize: Any, count: int, console: "Console"
) -> None:
    """The utterances whose errors changed most, as both wrote them."""
    from rich.table import Table

    from ssl_asr.metrics.edit import word_edits
    from ssl_asr.metrics.report import colored_diff

    others = {prediction.id: prediction for prediction in second}
    table = Table(title="Changed most", title_justify="left")
    for column in ("id", "errors", "first", "second"):
        table.add_column(column)
    rows = []
    for one in first:
        texts = [normalize(text, one.lang) for text in (one.ref, one.hyp, others[one.id].hyp)]
        errors = [word_edits(texts[0], text).errors for text in texts[1:]]
        rows.append((-abs(errors[1] - errors[0]), one.id, errors, texts))
    for change, utterance_id, errors, (ref, hyp, other) in sorted(rows)[:count]:
        if change < 0:
            counts = f"{errors[0]} → {errors[1]}"
            table.add_row(utterance_id, counts, colored_diff(ref, hyp), colored_diff(ref, other))
    if table.row_count:
        console.print(table)
