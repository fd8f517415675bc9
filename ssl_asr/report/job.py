"""The work of ``ssl-asr report``: read runs, score them, and write the page."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from ssl_asr.config.tools import ReportConfig
from ssl_asr.console import tracked
from ssl_asr.errors import ConfigError, overwrites
from ssl_asr.report.errors import Detail
from ssl_asr.report.page import PageOptions, report_page
from ssl_asr.report.runs import find_runs
from ssl_asr.report.scored import Scored, known_normalizers, score
from ssl_asr.report.sounds import Sounds
from ssl_asr.report.stored import stored_section
from ssl_asr.textfiles import overwritten, written_whole

T = TypeVar("T")


def write_report(config: ReportConfig, console: Console | None) -> list[Scored]:
    """Write the page, and return the runs with their scores.

    Args:
        config: The configuration.
        console: Where progress is shown. None shows none.

    Raises:
        ConfigError: A name is no run, no run has a split that is named, or the page would replace an input.
    """
    output = Path(config.output)
    runs = find_runs(config.runs)
    read = [path for run in runs for path in ([run.path] if run.path.is_file() else run.path.rglob("*"))]
    # An earlier report may be in the folder of its run.
    if overwritten([output], (path for path in read if path.suffix != ".html")):
        raise overwrites(output)
    normalizers = config.normalizers or known_normalizers(runs)
    shown = _shown(runs, "Scoring", console)
    scored = [score(run, normalizers, config.splits) for run in shown]
    for split in config.splits or ():
        if not any(split in one.scores for one in scored):
            known = sorted({name for run in runs for name in run.splits})
            raise ConfigError("splits", f"no run has {split}", f"the runs have {', '.join(known) or 'no predictions'}")
    sounds = Sounds(config.audio, config.audio_mb, output)
    options = PageOptions(
        detail=Detail(by=config.by, confusions=config.confusions, worst=config.worst),
        details=config.details,
        draw=_draws(config, sounds),
        links=config.audio == "link",
    )
    text = report_page(scored, options, sounds)
    with written_whole(output) as file:
        # Names of files may have bytes that are not UTF-8.
        file.write(text.encode(errors="replace").decode())
    return scored


def _draws(config: ReportConfig, sounds: Sounds) -> Callable[[Scored], str]:
    """How pictures of a run are made. Torch and Lightning are imported for a model only."""

    def draw(one: Scored) -> str:
        if not config.pictures:
            return stored_section(one.run)
        from ssl_asr.report.drawn import drawn_section

        return drawn_section(one, sounds, config.extensions)

    return draw


def _shown(items: Iterable[T], title: str, console: Console | None) -> Iterable[T]:
    return tracked(list(items), title, console=console, shown=console is not None)
