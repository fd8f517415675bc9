"""SubRip (SRT) and WebVTT subtitles."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ssl_asr.inference.formats.cues import Cue, Timed, joined
from ssl_asr.inference.formats.text import WORD_JOINER
from ssl_asr.types import Milliseconds

_VTT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# What a reader of SRT takes for an arrow, a tag such as <i>, an override such as {\an8}, or a time. SRT has no escapes.
_SRT_MARKUP = re.compile(r"-(?=->)|<(?=\s*/?\s*[A-Za-z])|\{(?=\\)|[0-9](?=:[0-9]{1,2}:[0-9]{1,2}[.,][0-9])")

Escape = Callable[[str], str]
State = tuple[Milliseconds, Milliseconds, list[str]]


def srt(cues: Sequence[Cue], *, highlight: bool = False) -> str:
    """Cues as SRT.

    Characters that readers take for markup are separated by U+2060, which is not visible. So is a number alone on a
    second line, which is no number of a cue.

    Args:
        cues: In the order of time.
        highlight: One cue for each word, in which that word is underlined.
    """
    blocks = []
    for number, (start, end, lines) in enumerate(_states(cues, _srt_text, highlight=highlight), start=1):
        first, *rest = lines
        safe = [first, *(f"{WORD_JOINER}{line}" if line.isdigit() else line for line in rest)]
        blocks.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n" + "".join(f"{one}\n" for one in safe))
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue], *, highlight: bool = False) -> str:
    """Cues as WebVTT, with ``&``, ``<`` and ``>`` escaped. For the arguments see `srt`."""
    blocks = ["WEBVTT\n"]
    for start, end, lines in _states(cues, _vtt_text, highlight=highlight):
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n" + "".join(f"{line}\n" for line in lines))
    return "\n".join(blocks)


def _srt_text(text: str) -> str:
    return _SRT_MARKUP.sub(lambda found: f"{found[0]}{WORD_JOINER}", text)


def _vtt_text(text: str) -> str:
    return text.translate(_VTT)


def _states(cues: Sequence[Cue], escape: Escape, *, highlight: bool) -> Iterator[State]:
    """Start, end and lines of what is shown: each cue, or else a cue for each of its words and pauses."""
    for cue in cues:
        plain = [escape(text) for text in cue.texts]
        at = cue.start
        for word in cue.words if highlight else ():
            start, end = min(word.start, cue.end), min(word.end, cue.end)
            if at < start:
                yield at, start, plain
            if start < end:
                yield start, end, [_underlined(line, word, escape) for line in cue.lines]
            at = max(at, end)
        if at < cue.end:
            yield at, cue.end, plain


def _underlined(line: Sequence[Timed], chosen: Timed, escape: Escape) -> str:
    """Text of a line. The chosen word is underlined."""
    marks = [("<u>", "</u>") if word is chosen else ("", "") for word in line]
    return joined(
        [replace(word, text=f"{u}{escape(word.text)}{end}") for word, (u, end) in zip(line, marks, strict=True)]
    )


def _clock(milliseconds: Milliseconds, point: str) -> str:
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
