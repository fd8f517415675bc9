"""Render transcripts: text, JSON, subtitles (SRT, WebVTT, ASS, TSV), NIST's CTM, and Praat's TextGrid.

Every format is a view of the same segments and words, see `ssl_asr.inference.formats`.
"""

from collections.abc import Sequence

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.formats.ass import ass
from ssl_asr.inference.formats.ctm import ctm
from ssl_asr.inference.formats.cues import DEFAULT_STYLE, Cue, cues_of
from ssl_asr.inference.formats.srt_vtt import srt, vtt
from ssl_asr.inference.formats.tables import jsonl, text, tsv, whisper_json
from ssl_asr.inference.formats.textgrid import textgrid
from ssl_asr.metrics.report import Prediction

FORMATS = ("text", "jsonl", "json", "srt", "vtt", "ass", "tsv", "ctm", "textgrid")
# Formats with times.
TIMED = ("json", "srt", "vtt", "ass", "tsv", "ctm", "textgrid")
_PLAIN = {"text": text, "jsonl": jsonl, "json": whisper_json, "ctm": ctm, "textgrid": textgrid}
_CUES = {"srt": srt, "vtt": vtt, "ass": ass}
WITH_CUES = frozenset(_CUES) | {"tsv"}


def render(
    rows: Sequence[Prediction], kind: str, style: SubtitleStyle = DEFAULT_STYLE, *, cues: Sequence[Cue] | None = None
) -> str:
    """Transcripts in a format, as text.

    Args:
        rows: Transcripts, of one recording for ``json`` and the formats with cues.
        kind: One of `FORMATS`.
        style: Limits of a cue, and whether words are highlighted.
        cues: The rows' cues, if they are known. Several formats have the same.
    """
    if kind in _PLAIN:
        return _PLAIN[kind](rows)
    cues = cues_of(rows, style) if cues is None else cues
    return tsv(cues) if kind == "tsv" else _CUES[kind](cues, highlight=style.highlight_words)
