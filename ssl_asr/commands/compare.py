"""``ssl-asr compare FIRST SECOND …``: test which of two or more systems is better on the same utterances."""

from itertools import chain
from pathlib import Path

from ssl_asr.config.tools import CompareConfig
from ssl_asr.errors import overwrites
from ssl_asr.textfiles import overwritten, to_json, written_whole


def compare(config: CompareConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Compare, and return the difference in WER of the first split, of the second system minus the first."""
    from ssl_asr.console import make_console
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.metrics.comparison import compare_two, shared_splits
    from ssl_asr.metrics.ranking import compare_several
    from ssl_asr.metrics.report import read_predictions
    from ssl_asr.metrics.systems import system_names

    console = make_console() if config.verbose else None
    normalizers = get_normalizers(config.normalizers)
    named = [("first", config.first), ("second", config.second), *(("others", other) for other in config.others)]
    splits = shared_splits([(key, Path(path)) for key, path in named])
    if config.output is not None and overwritten([Path(config.output)], chain(*splits.values())):
        raise overwrites(config.output)
    names = system_names([Path(path) for _, path in named])
    records, differences = {}, []
    for split, files in splits.items():
        systems = [read_predictions(path) for path in files]
        if len(systems) == 2:
            found = compare_two(split, systems, names, normalizers, console, worst=config.worst)
        else:
            found = compare_several(split, systems, names, normalizers, console)
        records[split], difference = found
        differences.append(difference)
    if config.output is not None:
        with written_whole(Path(config.output)) as file:
            file.write(to_json(records, indent=1) + "\n")
    return differences[0]
