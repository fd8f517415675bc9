"""``ssl-asr compare ONE OTHER``: test whether one system is better than another on the same utterances."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.tools import CompareConfig
from ssl_asr.errors import ConfigError, ManifestError, overwrites
from ssl_asr.textfiles import overwritten, to_json, written_whole

if TYPE_CHECKING:
    from ssl_asr.metrics.significance import Comparison


def compare(config: CompareConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Compare, and return the difference in WER of the first split."""
    from ssl_asr.console import make_console
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.metrics.comparison import print_changes, print_comparisons
    from ssl_asr.metrics.report import read_predictions
    from ssl_asr.metrics.significance import compare as compare_predictions

    console = make_console() if config.verbose else None
    normalizers = get_normalizers(config.normalizers)
    results: dict[str, dict[str, Comparison]] = {}
    pairs = _pairs(Path(config.first), Path(config.second))
    if config.output is not None and overwritten([Path(config.output)], chain(*pairs.values())):
        raise overwrites(config.output)
    for split, paths in pairs.items():
        first, second = (read_predictions(path) for path in paths)
        results[split] = {name: compare_predictions(first, second, each) for name, each in normalizers.items()}
        if console is not None:
            print_comparisons(split, results[split], console)
            print_changes(first, second, normalizers[config.normalizers[0]], config.worst, console)
        else:
            for name, one in results[split].items():
                print(f"{split}: {one} ({name})")
    if config.output is not None:
        whole = {split: {name: one.as_dict() for name, one in rows.items()} for split, rows in results.items()}
        with written_whole(Path(config.output)) as file:
            file.write(to_json(whole, indent=1) + "\n")
    return next(iter(next(iter(results.values())).values())).difference


def _pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    """The two files of predictions of each split.

    Raises:
        ConfigError, ManifestError: There is none.
    """
    found = []
    for key, path in (("first", first), ("second", second)):
        if path.is_file():
            found.append({"predictions": path})
            continue
        files = {file.stem: file for file in sorted((path / "predictions").glob("*.jsonl"))}
        if not files:
            raise ConfigError(
                key, f"{path} is neither a predictions.jsonl nor a folder with predictions/", "give a run's folder"
            )
        found.append(files)
    one, other = found
    if len(one) == len(other) == 1:
        return {next(iter(one)): (next(iter(one.values())), next(iter(other.values())))}
    both = {name: (one[name], other[name]) for name in one if name in other}
    if not both:
        raise ManifestError(str(first), f"has {', '.join(one)}, and the other {', '.join(other)}", "name two files")
    # The dev split chose the checkpoint: it is compared only if there is no other split.
    return {name: pair for name, pair in both.items() if name != "dev"} or both
