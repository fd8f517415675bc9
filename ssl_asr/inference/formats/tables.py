"""Transcripts as lines of text, JSON Lines, JSON and tab-separated values."""

import re
from collections.abc import Sequence
from typing import Any

from ssl_asr.data.languages import is_spaced
from ssl_asr.inference.formats.cues import Cue
from ssl_asr.inference.formats.segments import segments_in
from ssl_asr.inference.formats.text import clean
from ssl_asr.inference.formats.timeline import rows_language, tracks
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import to_json
from ssl_asr.types import Segment

# Keys of a record that are left out if they are empty.
_OPTIONAL = ("words", "segments", "alternatives", "detected", "detected_probability", "no_speech")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def record(row: Prediction) -> dict[str, object]:
    """A transcript as JSON-like data."""
    keys = ("id", "audio_filepath", "offset", "duration")
    made: dict[str, object] = {key: getattr(row, key) for key in keys}
    made |= {key: value for key in ("channel", "lang", "task") if (value := getattr(row, key)) is not None}
    made |= {"text": row.hyp, "score": row.score}
    whole = row.record()
    return made | {key: whole[key] for key in _OPTIONAL if key in whole}


def text(rows: Sequence[Prediction]) -> str:
    r"""A line ``path<TAB>text`` for each row.

    Line breaks and tabs of a text become spaces. A path is written with ``\n``, ``\t`` and so on in their place.
    """
    return "".join(f"{_path(row.audio_filepath)}\t{clean(row.hyp)}\n" for row in rows)


def jsonl(rows: Sequence[Prediction]) -> str:
    """A JSON object for each row, on a line each. See `record`."""
    return "".join(f"{to_json(record(row))}\n" for row in rows)


def whisper_json(rows: Sequence[Prediction]) -> str:
    """The rows of one recording as one JSON object, with the keys that OpenAI's whisper writes.

    ``text``, ``language`` (None if it is not known) and ``segments``, each with ``id``, ``start``, ``end``, ``text``
    and, if words have times, ``words``: ``word`` (with the space before it), ``start``, ``end``, ``probability``.
    Segments of several channels are in the order of time, and have ``channel``, from 0.
    """
    found = tracks(rows)
    several = len({track.channel for track in found}) > 1
    placed = [(segment, track.channel if several else None) for track in found for segment in segments_in(track)]
    placed.sort(key=lambda one: one[0].start)
    lang = rows_language(rows)
    segments = [_segment(number, segment, channel) for number, (segment, channel) in enumerate(placed)]
    space = " " if is_spaced(lang) else ""
    text = "".join(
        segment.text if segment.words and not segment.words[0].spaced else f"{space}{segment.text}"
        for segment, _ in placed
    )
    return to_json({"text": text.strip(), "segments": segments, "language": lang}) + "\n"


def tsv(cues: Sequence[Cue]) -> str:
    """Cues as ``start<TAB>end<TAB>text`` with times in milliseconds, below a line with these names."""
    return "start\tend\ttext\n" + "".join(f"{cue.start}\t{cue.end}\t{cue.text}\n" for cue in cues)


def _segment(number: int, segment: Segment, channel: int | None) -> dict[str, Any]:
    made: dict[str, Any] = {"id": number, "start": _seconds(segment.start), "end": _seconds(segment.end)}
    made["text"] = segment.text
    if channel is not None:
        made["channel"] = channel
    if segment.words:
        made["words"] = [
            {
                "word": f" {word.text}" if word.spaced else word.text,
                "start": _seconds(word.start),
                "end": _seconds(word.end),
                "probability": round(word.confidence, 4),
            }
            for word in segment.words
        ]
    return made


def _seconds(seconds: float) -> float:
    return round(seconds, 3)


def _path(path: str) -> str:
    """A path on one line, in characters that UTF-8 can encode."""
    escaped = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], path)
    return escaped.encode("utf-8", "backslashreplace").decode()
