"""Transcripts as people and other programs want them: text, JSON Lines, subtitles, CTM and Praat's TextGrid."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_asr.errors import ConfigError
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import written_whole
from ssl_asr.types import Seconds, Segment, Word

FORMATS = ("text", "jsonl", "srt", "vtt", "ctm", "textgrid")
# Those that say when words were said.
TIMED = ("srt", "vtt", "ctm", "textgrid")
# Those of which each recording has a file of its own.
_APART = {"srt": ".srt", "vtt": ".vtt", "textgrid": ".TextGrid"}
_BY_SUFFIX = {".txt": "text", ".jsonl": "jsonl", ".ctm": "ctm", ".srt": "srt", ".vtt": "vtt", ".textgrid": "textgrid"}

# A subtitle stays so short that it can be read, and ends where there is a pause.
_CUE_CHARACTERS = 84
_CUE_S: Seconds = 6.0
_PAUSE_S: Seconds = 0.8


def format_of(output: str | None, asked: str | None) -> str:
    """The format asked for, or the one an output's name ends in.

    Raises:
        ConfigError: neither says it.
    """
    if asked is not None:
        return asked
    if output is None:
        return "text"
    suffix = Path(output).suffix.lower()
    if suffix not in _BY_SUFFIX:
        what = f"{output} does not say in which format"
        raise ConfigError("output", what, f"a name that ends in {' '.join(_BY_SUFFIX)}, or format={'|'.join(FORMATS)}")
    return _BY_SUFFIX[suffix]


_ALSO = ("words", "segments", "alternatives", "detected")


def record(row: Prediction) -> dict[str, object]:
    """A transcript as plain data."""
    keys = ("id", "audio_filepath", "offset", "duration")
    made: dict[str, object] = {key: getattr(row, key) for key in keys} | {"text": row.hyp, "score": row.score}
    whole = row.record()
    return made | {key: whole[key] for key in _ALSO if key in whole}


def write(path: Path, rows: Sequence[Prediction], kind: str) -> None:
    """Write transcripts, each file whole or not at all; subtitles and TextGrids as a file for each recording.

    Args:
        path: a file; for several recordings in a format of one file each, a folder.
        rows: in order; those of one recording are joined in the order of their offsets.
        kind: one of `FORMATS`.

    Raises:
        ConfigError: a file is named where a folder is needed.
    """
    if kind not in _APART:
        _put(path, render(rows, kind))
        return
    by_audio: dict[str, list[Prediction]] = {}
    for row in sorted(rows, key=lambda row: row.offset):
        by_audio.setdefault(row.audio_filepath, []).append(row)
    if path.suffix.lower() in _BY_SUFFIX:
        if len(by_audio) != 1:
            what = f"{path} is one file, and there are {len(by_audio)} recordings"
            raise ConfigError("output", what, f"a folder, and format={kind}")
        _put(path, render(rows, kind))
        return
    stems = [Path(audio).stem for audio in by_audio]
    for audio, own in by_audio.items():
        stem = Path(audio).stem
        # Recordings of one name from several folders keep apart by the name of their folder.
        name = stem if stems.count(stem) == 1 else f"{Path(audio).parent.name}_{stem}"
        _put(path / f"{name}{_APART[kind]}", render(own, kind))


def _put(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write(text)


def render(rows: Sequence[Prediction], kind: str) -> str:
    """Transcripts as text of that format."""
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
    """The words with times in the recording. Without words, the whole text stands as one word."""
    if words:
        return [word.later(row.offset) for word in words]
    return [Word(row.hyp, row.offset, row.offset + row.duration, 1.0)] if row.hyp else []


def _cues_of(row: Prediction) -> list[Segment]:
    """Subtitles of a transcript: its segments, or else its words joined."""
    if row.segments:
        return [segment.later(row.offset) for segment in row.segments]
    return cues(placed(row, row.words))


def _ctm(rows: Iterable[Prediction]) -> Iterable[str]:
    """Lines of NIST's format: recording, channel, start, duration, word, confidence."""
    for row in rows:
        name = Path(row.audio_filepath).stem
        for word in placed(row, row.words):
            yield f"{name} 1 {word.start:.2f} {word.end - word.start:.2f} {word.text} {word.confidence:.2f}\n"


def cues(words: Sequence[Word]) -> list[Segment]:
    """Words joined into subtitles."""
    joined: list[Segment] = []
    for word in words:
        if joined:
            last = joined[-1]
            text = f"{last.text} {word.text}"
            if len(text) <= _CUE_CHARACTERS and word.end - last.start <= _CUE_S and word.start - last.end <= _PAUSE_S:
                sure = min(last.confidence, word.confidence)
                joined[-1] = Segment(text, last.start, word.end, sure, (*last.words, word))
                continue
        joined.append(Segment(word.text, word.start, word.end, word.confidence, (word,)))
    return joined


def _subtitles(shown: Sequence[Segment], kind: str) -> str:
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
    """Praat's long text format, a tier of words with what lies between them empty."""
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
