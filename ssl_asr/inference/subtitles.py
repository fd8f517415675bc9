"""Write transcripts: text, JSON Lines, SubRip and WebVTT subtitles, NIST's CTM, and Praat's TextGrid.

Every format is a view of the same segments and words.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_asr.errors import ConfigError
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import written_whole
from ssl_asr.types import Seconds, Segment, Word

FORMATS = ("text", "jsonl", "srt", "vtt", "ctm", "textgrid")
# Formats with times.
TIMED = ("srt", "vtt", "ctm", "textgrid")
# Formats with one file for each recording.
_FILE_EACH = {"srt": ".srt", "vtt": ".vtt", "textgrid": ".TextGrid"}
_BY_SUFFIX = {".txt": "text", ".jsonl": "jsonl", ".ctm": "ctm", ".srt": "srt", ".vtt": "vtt", ".textgrid": "textgrid"}

# A cue is short enough to read, and ends at a pause.
_CUE_CHARACTERS = 84
_CUE_S: Seconds = 6.0
_PAUSE_S: Seconds = 0.8


def format_of(output: str | None, asked: str | None) -> str:
    """The requested format, or else the format that the output's suffix names.

    Args:
        output: Path of the output, or None for standard output, which gets text.
        asked: One of `FORMATS`, or None.

    Raises:
        ConfigError: The suffix names no format.
    """
    if asked is not None:
        return asked
    if output is None:
        return "text"
    suffix = Path(output).suffix.lower()
    if suffix not in _BY_SUFFIX:
        what = f"the name {output} does not say which format to write"
        raise ConfigError("output", what, f"end it in {', '.join(_BY_SUFFIX)}, or give format={'|'.join(FORMATS)}")
    return _BY_SUFFIX[suffix]


# Keys of a record that are left out if they are empty.
_OPTIONAL = ("words", "segments", "alternatives", "detected", "detected_probability", "no_speech")


def record(row: Prediction) -> dict[str, object]:
    """A transcript as JSON-like data."""
    keys = ("id", "audio_filepath", "offset", "duration")
    made: dict[str, object] = {key: getattr(row, key) for key in keys} | {"text": row.hyp, "score": row.score}
    whole = row.record()
    return made | {key: whole[key] for key in _OPTIONAL if key in whole}


def write(path: Path, rows: Sequence[Prediction], kind: str) -> None:
    """Write transcripts. Subtitles and TextGrids get one file for each recording. A file is never partly written.

    Args:
        path: A file, or a folder for several recordings in a format with one file for each.
        rows: Transcripts. Parts of one recording are joined in the order of their offsets.
        kind: One of `FORMATS`.

    Raises:
        ConfigError: The format needs a folder and ``path`` is a file.
    """
    if kind not in _FILE_EACH:
        _put(path, render(rows, kind))
        return
    by_audio: dict[str, list[Prediction]] = {}
    for row in sorted(rows, key=lambda row: row.offset):
        by_audio.setdefault(row.audio_filepath, []).append(row)
    if path.suffix.lower() in _BY_SUFFIX:
        if len(by_audio) != 1:
            what = f"{path} is one file, but there are {len(by_audio)} recordings"
            raise ConfigError("output", what, f"give a folder, and format={kind}")
        _put(path, render(rows, kind))
        return
    stems = [Path(audio).stem for audio in by_audio]
    for audio, own in by_audio.items():
        stem = Path(audio).stem
        # The folder's name tells files of the same name apart.
        name = stem if stems.count(stem) == 1 else f"{Path(audio).parent.name}_{stem}"
        _put(path / f"{name}{_FILE_EACH[kind]}", render(own, kind))


def _put(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write(text)


def render(rows: Sequence[Prediction], kind: str) -> str:
    """Transcripts in a format, as text."""
    if kind == "text":
        return "".join(f"{row.audio_filepath}\t{row.hyp}\n" for row in rows)
    if kind == "jsonl":
        return "".join(json.dumps(record(row), ensure_ascii=False) + "\n" for row in rows)
    if kind == "ctm":
        return "".join(_ctm(rows))
    if kind == "textgrid":
        words = [word for row in rows for word in placed(row, row.words)]
        return _textgrid(words, max((row.offset + row.duration for row in rows), default=0.0))
    return _subtitles([cue for row in rows for cue in _cues_of(row)], kind)


def placed(row: Prediction, words: Sequence[Word]) -> list[Word]:
    """Words with times in the recording. A transcript without words is one word with the whole text."""
    if words:
        return [word.later(row.offset) for word in words]
    return [Word(row.hyp, row.offset, row.offset + row.duration, 1.0)] if row.hyp else []


def _cues_of(row: Prediction) -> list[Segment]:
    """Subtitles of a transcript: its segments, or else its words joined."""
    if row.segments:
        return [segment.later(row.offset) for segment in row.segments]
    return cues(placed(row, row.words))


def _ctm(rows: Iterable[Prediction]) -> Iterable[str]:
    """Lines of CTM: recording, channel, start, duration, word, confidence."""
    for row in rows:
        name = Path(row.audio_filepath).stem
        for word in placed(row, row.words):
            yield f"{name} 1 {word.start:.2f} {word.end - word.start:.2f} {word.text} {word.confidence:.2f}\n"


def cues(words: Sequence[Word]) -> list[Segment]:
    """Join words into cues of at most 84 characters and 6 seconds, split at pauses of more than 0.8 seconds."""
    joined: list[Segment] = []
    for word in words:
        if joined:
            last = joined[-1]
            text = f"{last.text} {word.text}"
            if len(text) <= _CUE_CHARACTERS and word.end - last.start <= _CUE_S and word.start - last.end <= _PAUSE_S:
                confidence = min(last.confidence, word.confidence)
                joined[-1] = Segment(text, last.start, word.end, confidence, (*last.words, word))
                continue
        joined.append(Segment(word.text, word.start, word.end, word.confidence, (word,)))
    return joined


def _subtitles(shown: Sequence[Segment], kind: str) -> str:
    """SubRip numbers its cues and has a comma in times; WebVTT has a head line."""
    blocks = []
    for number, cue in enumerate(shown, start=1):
        times = f"{_clock(cue.start, kind)} --> {_clock(cue.end, kind)}"
        blocks.append(f"{number}\n{times}\n{cue.text}\n" if kind == "srt" else f"{times}\n{cue.text}\n")
    head = ["WEBVTT\n"] if kind == "vtt" else []
    return "\n".join([*head, *blocks])


def _clock(seconds: Seconds, kind: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{',' if kind == 'srt' else '.'}{rest % 1000:03}"


def _textgrid(words: Sequence[Word], end: Seconds) -> str:
    """Praat's long text format: one tier of words, with empty intervals between them."""
    intervals: list[tuple[float, float, str]] = []
    at = 0.0
    for word in words:
        start, stop = max(word.start, at), max(word.end, at)
        if stop <= start:
            continue
        if start > at:
            intervals.append((at, start, ""))
        intervals.append((start, stop, word.text.replace('"', '""')))
        at = stop
    end = max(end, at)
    if end > at or not intervals:
        intervals.append((at, end, ""))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end:.3f}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        f"        xmax = {end:.3f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (start, stop, text) in enumerate(intervals, start=1):
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {start:.3f}",
            f"            xmax = {stop:.3f}",
            f'            text = "{text}"',
        ]
    return "\n".join(lines) + "\n"
