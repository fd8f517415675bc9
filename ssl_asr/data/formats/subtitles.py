"""SubRip (SRT) and WebVTT subtitles as transcripts with times."""

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_asr.data.formats.rows import Segment
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines
from ssl_asr.types import Seconds

_CLOCK = r"(?:(\d{1,5}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s.*)?")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
# Tags such as <i>, times of words, overrides such as {\an8}, and the word joiner that keeps a text from being markup.
_MARKUP = re.compile(r"</?[A-Za-z][^>]*>|<[\d:.]+>|\{\\[^}]*\}|\u2060")
_BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")


def read_subtitles(path: Path) -> tuple[list[Segment], list[str]]:
    """The cues of a file in the order of time, without markup, and what is wrong with cues that cannot be read.

    Raises:
        ManifestError: The file is not text, or has no cue.
    """
    lines = read_lines(path, error=ManifestError, remedy="save the file as UTF-8")
    is_vtt = path.suffix.lower() == ".vtt"
    cues: list[Segment] = []
    faults: list[str] = []
    for number, block in _blocks(lines):
        if is_vtt and block[0].startswith(_BLOCKS):
            continue
        at = next((i for i, line in enumerate(block) if "-->" in line), None)
        found = None if at is None else _TIMES.fullmatch(block[at])
        if at is None or found is None:
            faults.append(f"line {number}: no times such as 00:00:01,000 --> 00:00:02,500 in {block[0][:40]!r}")
            continue
        cues.append(_cue(found, block[at + 1 :], escapes=is_vtt))
    if not cues:
        raise ManifestError(str(path), "has no subtitle", "give SRT or WebVTT")
    return sorted(cues, key=lambda cue: (cue.start, cue.end)), faults


def _blocks(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Lines between blank lines, and the number of the first one. A line of times after a text starts a block too."""
    block: list[str] = []
    first = 0
    for number, line in lines:
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield first, block
            block = []
    if block:
        yield first, block


def _cue(times: re.Match[str], lines: Sequence[str], *, escapes: bool) -> Segment:
    text = " ".join(" ".join(lines).split())
    voice = _VOICE.search(text)
    text = " ".join(_MARKUP.sub("", text).split())
    start, end = _seconds(times.groups()[:4]), _seconds(times.groups()[4:])
    speaker = html.unescape(voice[1].strip()) if voice else None
    return Segment(start, end, html.unescape(text) if escapes else text, speaker)


def _seconds(clock: Sequence[str | None]) -> Seconds:
    hours, minutes, seconds, fraction = clock
    assert minutes is not None
    assert seconds is not None
    assert fraction is not None
    milliseconds = int(fraction.ljust(3, "0"))
    return (3_600_000 * int(hours or 0) + 60_000 * int(minutes) + 1000 * int(seconds) + milliseconds) / 1000
