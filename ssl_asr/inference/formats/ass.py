"""Advanced SubStation Alpha (ASS) subtitles, with the time of each word as a karaoke tag."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ssl_asr.inference.formats.cues import Cue, Timed, joined
from ssl_asr.types import Milliseconds

Centiseconds = int

# ASS has no escapes that every reader takes. Characters of the same look and width are shown instead.
_ESCAPES = str.maketrans({"{": "❴", "}": "❵", "\\": "⧵"})
_FIELDS = (
    "Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, "
    "StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, "
    "Encoding"
)
_WHITE, _YELLOW = "&H00FFFFFF", "&H0000FFFF"
_HEAD = """[Script Info]
ScriptType: v4.00+
WrapStyle: 0
ScaledBorderAndShadow: yes
PlayResX: 1920
PlayResY: 1080

[V4+ Styles]
Format: {fields}
Style: Default,Arial,64,{spoken},{coming},&H00000000,&H80000000,0,0,0,0,100,100,0,0,1,3,1,2,96,96,64,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def ass(cues: Sequence[Cue], *, highlight: bool = False) -> str:
    r"""Cues as ASS. Before each word is a tag ``{\kN}``: N centiseconds until the next word, or until the cue's end.

    Braces and backslashes of a text become U+2774, U+2775 and U+29F5, which look alike.

    Args:
        cues: In the order of time.
        highlight: Words change from white to yellow when they are spoken. Otherwise, the tags are not visible.
    """
    lines = [_HEAD.format(fields=_FIELDS, spoken=_YELLOW if highlight else _WHITE, coming=_WHITE)]
    # End of the last cue: exact, and rounded.
    exact, free = 0, 0
    for cue in cues:
        start = max(_round(cue.start), free if cue.start >= exact else 0)
        end = max(_round(cue.end), start + 1)
        exact, free = cue.end, end
        lines.append(f"Dialogue: 0,{_clock(start)},{_clock(end)},Default,,0,0,0,,{_text(cue, start, end)}\n")
    return "".join(lines)


def _text(cue: Cue, start: Centiseconds, end: Centiseconds) -> str:
    """Lines with the tag of each word."""
    starts = [min(max(_round(word.start), start), end) for word in cue.words]
    starts[0] = start
    last = min(max(_round(cue.words[-1].end), starts[-1]), end)
    lengths = iter([after - before for before, after in pairwise([*starts, last])])
    return "\\N".join(joined([_tagged(word, next(lengths)) for word in line]) for line in cue.lines)


def _tagged(word: Timed, length: Centiseconds) -> Timed:
    return replace(word, text=f"{{\\k{length}}}{word.text.translate(_ESCAPES)}")


def _round(milliseconds: Milliseconds) -> Centiseconds:
    return (milliseconds + 5) // 10


def _clock(centiseconds: Centiseconds) -> str:
    hours, rest = divmod(centiseconds, 360_000)
    minutes, rest = divmod(rest, 6000)
    return f"{hours}:{minutes:02}:{rest // 100:02}.{rest % 100:02}"
