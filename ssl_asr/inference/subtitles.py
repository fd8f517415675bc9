"""Write transcripts: text, JSON, subtitles (SRT, WebVTT, ASS, TSV), NIST's CTM, and Praat's TextGrid.

Every format is a view of the same segments and words, see `ssl_asr.inference.formats`.
"""

from collections.abc import Sequence
from pathlib import Path

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.errors import ConfigError
from ssl_asr.inference.formats.ass import ass
from ssl_asr.inference.formats.ctm import ctm
from ssl_asr.inference.formats.cues import DEFAULT_STYLE, cues_of
from ssl_asr.inference.formats.srt_vtt import srt, vtt
from ssl_asr.inference.formats.tables import jsonl, text, tsv, whisper_json
from ssl_asr.inference.formats.textgrid import textgrid
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import written_whole

FORMATS = ("text", "jsonl", "json", "srt", "vtt", "ass", "tsv", "ctm", "textgrid")
# Formats with times.
TIMED = ("json", "srt", "vtt", "ass", "tsv", "ctm", "textgrid")
_PLAIN = {"text": text, "jsonl": jsonl, "json": whisper_json, "ctm": ctm, "textgrid": textgrid}
_CUES = {"srt": srt, "vtt": vtt, "ass": ass}
# Formats with one file for each recording.
_FILE_EACH = {
    "json": ".json",
    "srt": ".srt",
    "vtt": ".vtt",
    "ass": ".ass",
    "tsv": ".tsv",
    "textgrid": ".TextGrid",
}
_BY_SUFFIX = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".json": "json",
    ".ctm": "ctm",
    ".srt": "srt",
    ".vtt": "vtt",
    ".ass": "ass",
    ".tsv": "tsv",
    ".textgrid": "textgrid",
}


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


def write(path: Path, rows: Sequence[Prediction], kind: str, style: SubtitleStyle = DEFAULT_STYLE) -> None:
    """Write transcripts. Subtitles and TextGrids get one file for each recording. A file is never partly written.

    Args:
        path: A file, or a folder for several recordings in a format with one file for each.
        rows: Transcripts. Parts of one recording are joined in the order of their offsets.
        kind: One of `FORMATS`.
        style: See `render`.

    Raises:
        ConfigError: The format needs a folder and ``path`` is a file.
    """
    if kind not in _FILE_EACH:
        _put(path, render(rows, kind, style))
        return
    by_audio: dict[str, list[Prediction]] = {}
    for row in sorted(rows, key=lambda row: row.offset):
        by_audio.setdefault(row.audio_filepath, []).append(row)
    if path.suffix.lower() in _BY_SUFFIX:
        if len(by_audio) != 1:
            what = f"{path} is one file, but there are {len(by_audio)} recordings"
            raise ConfigError("output", what, f"give a folder, and format={kind}")
        _put(path, render(rows, kind, style))
        return
    stems = [Path(audio).stem for audio in by_audio]
    for audio, own in by_audio.items():
        stem = Path(audio).stem
        # The folder's name tells files of the same name apart.
        name = stem if stems.count(stem) == 1 else f"{Path(audio).parent.name}_{stem}"
        _put(path / f"{name}{_FILE_EACH[kind]}", render(own, kind, style))


def _put(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write(text)


def render(rows: Sequence[Prediction], kind: str, style: SubtitleStyle = DEFAULT_STYLE) -> str:
    """Transcripts in a format, as text.

    Args:
        rows: Transcripts, of one recording for ``json`` and the formats with cues.
        kind: One of `FORMATS`.
        style: Limits of a cue, and whether words are highlighted.
    """
    if kind in _PLAIN:
        return _PLAIN[kind](rows)
    cues = cues_of(rows, style)
    return tsv(cues) if kind == "tsv" else _CUES[kind](cues, highlight=style.highlight_words)
