"""Praat's TextGrid."""

from collections.abc import Sequence

from ssl_asr.inference.formats.segments import segments_in
from ssl_asr.inference.formats.timeline import Track, on_grid, tracks
from ssl_asr.inference.names import recording_names
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Milliseconds, Segment, Word

Interval = tuple[Milliseconds, Milliseconds, str]

# Praat shows an interval of this length when zoomed in. A word without length gets it if there is room.
_LEAST_MS: Milliseconds = 20


def textgrid(rows: Sequence[Prediction]) -> str:
    """Rows in Praat's long text format: tiers ``words`` and ``segments``, with empty intervals in pauses.

    Each channel, each recording, and utterances that overlap have tiers of their own, with the channel from 1 and the
    name in front: ``talk - channel 2 - words``. Times are in whole milliseconds. No word is left out.
    """
    found = tracks(rows)
    names = {(row.audio_filepath, row.channel): name for row, name in zip(rows, recording_names(rows), strict=True)}
    tiers: list[tuple[str, list[Interval]]] = []
    for track, prefix in zip(found, _prefixes(found, names), strict=True):
        tiers.append((f"{prefix}words", _intervals(track, track.words())))
        tiers.append((f"{prefix}segments", _intervals(track, segments_in(track))))
    tiers = tiers or [("words", []), ("segments", [])]
    ends = [end for _, intervals in tiers for _, end, _ in intervals]
    end = max(1, *ends, *(round(1000 * track.end) for track in found))
    return _grid([(name, _filled(intervals, end)) for name, intervals in tiers], end)


def _prefixes(found: Sequence[Track], names: dict[tuple[str, int | None], str]) -> list[str]:
    """What tells the tiers of tracks apart. Empty for a single track."""
    several = len({track.path for track in found}) > 1
    made: list[str] = []
    for track in found:
        parts = [names[track.path, track.channel]] if several else []
        own = [other for other in found if other.path == track.path]
        if len({other.channel for other in own}) > 1 and track.channel is not None:
            parts.append(f"channel {track.channel + 1}")
        prefix = "".join(f"{part} - " for part in parts)
        number = 2
        while prefix in made:
            prefix = "".join(f"{part} - " for part in [*parts, f"overlap {number}"])
            number += 1
        made.append(prefix)
    return made


def _intervals(track: Track, spans: Sequence[Word | Segment]) -> list[Interval]:
    times = on_grid([(span.start, span.end) for span in spans], 1000, least=_LEAST_MS, until=track.end)
    return [(start, end, span.text) for span, (start, end) in zip(spans, times, strict=True)]


def _filled(intervals: Sequence[Interval], end: Milliseconds) -> list[Interval]:
    """Intervals with empty ones between them, from 0 to ``end``."""
    found: list[Interval] = []
    at = 0
    for interval in [*intervals, (end, end, "")]:
        if interval[0] > at:
            found.append((at, interval[0], ""))
        if interval[1] > interval[0]:
            found.append(interval)
        at = interval[1]
    return found


def _grid(tiers: Sequence[tuple[str, list[Interval]]], end: Milliseconds) -> str:
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {_seconds(end)}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for place, (name, intervals) in enumerate(tiers, start=1):
        lines += [
            f"    item [{place}]:",
            '        class = "IntervalTier"',
            f"        name = {_quoted(name)}",
            "        xmin = 0",
            f"        xmax = {_seconds(end)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for number, (start, stop, text) in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{number}]:",
                f"            xmin = {_seconds(start)}",
                f"            xmax = {_seconds(stop)}",
                f"            text = {_quoted(text)}",
            ]
    return "\n".join(lines) + "\n"


def _seconds(milliseconds: Milliseconds) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03}"


def _quoted(text: str) -> str:
    """Text in quotation marks, which are doubled inside."""
    return '"' + text.replace('"', '""') + '"'
