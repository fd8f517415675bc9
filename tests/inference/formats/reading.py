"""Reads written formats back, with the libraries made for them, and checks what every format must hold."""

import html
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pysubs2
import srt
import webvtt
from praatio import textgrid

from ssl_asr.inference.formats.text import WORD_JOINER, width
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import text_of

LOOK_ALIKES = str.maketrans("{}\\", "❴❵⧵")


def row_of(words, **changes):
    """A transcript of words."""
    end = max((word.end for word in words), default=0.0)
    given = {
        "id": "u",
        "ref": "",
        "hyp": text_of(words),
        "score": 0.0,
        "duration": end,
        "audio_filepath": "/talks/a.wav",
    }
    return Prediction(**(given | {"words": list(words)} | changes))


def read_srt(text):
    """(start in ms, end in ms, lines) of each cue."""
    found = list(srt.parse(text))
    assert [cue.index for cue in found] == list(range(1, len(found) + 1))
    cues = [(_ms(cue.start), _ms(cue.end), cue.content.replace(WORD_JOINER, "").split("\n")) for cue in found]
    again = pysubs2.SSAFile.from_string(text, format_="srt") if text else []
    assert [(event.start, event.end) for event in again] == [cue[:2] for cue in cues]
    return cues


def read_vtt(text):
    """(start in ms, end in ms, lines) of each cue."""
    found = webvtt.from_string(text)
    return [(_clock_ms(cue.start), _clock_ms(cue.end), html.unescape(cue.text).split("\n")) for cue in found]


def read_ass(text):
    """(start in ms, end in ms, lines) of each cue. The karaoke tags fill the cue at most."""
    found = pysubs2.SSAFile.from_string(text, format_="ass")
    for event in found:
        tags = pysubs2.SSAEvent.OVERRIDE_SEQUENCE.findall(event.text)
        assert sum(int(tag.removeprefix("{\\k").removesuffix("}")) for tag in tags) * 10 <= event.duration
    return [(event.start, event.end, event.plaintext.split("\n")) for event in found]


def read_tsv(text):
    """(start in ms, end in ms, lines) of each cue, all lines in one."""
    head, *lines = text.split("\n")[:-1]
    assert head == "start\tend\ttext"
    cells = [line.split("\t") for line in lines]
    assert all(len(row) == 3 for row in cells)
    return [(int(start), int(end), [text]) for start, end, text in cells]


READERS = {"srt": read_srt, "vtt": read_vtt, "ass": read_ass, "tsv": read_tsv}


def read_ctm(text):
    """(name, channel, start, end, word) of each line, checked by the rules of sclite. Times are in hundredths."""
    rows = []
    for line in text.split("\n")[:-1]:
        assert not line.startswith(";;")
        name, channel, start, duration, word, confidence = line.split(" ")
        assert len(line.split()) == 6
        assert 0 <= float(confidence) <= 1
        first, length = round(float(start) * 100), round(float(duration) * 100)
        assert length > 0
        rows.append((name, int(channel) if channel.isdigit() else channel, first, first + length, word))
    assert rows == sorted(rows, key=lambda row: (row[0], float("inf") if row[1] == "mix" else row[1], row[2]))
    return rows


def read_textgrid(text):
    """{tier: [(start, end, label) in seconds]}, without empty intervals."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.TextGrid"
        path.write_text(text, encoding="utf-8")
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
    found = {}
    for name in grid.tierNames:
        entries = grid.getTier(name).entries
        assert entries[0].start == 0
        assert entries[-1].end == grid.maxTimestamp
        assert all(before.end == after.start for before, after in pairwise(entries))
        assert all(entry.start < entry.end for entry in entries)
        found[name] = [(entry.start, entry.end, entry.label) for entry in entries if entry.label]
    return found


def check_cues(cues, style, *, one_line=False):
    """Order, positive length, and the limits of a style."""
    for start, end, lines in cues:
        assert 0 <= start < end <= start + 1000 * style.max_cue_s
        if not one_line:
            assert len(lines) <= style.max_line_count
            assert max(width(line) for line in lines) <= style.max_line_width, lines
            assert max(len(line) for line in lines) <= style.max_line_width, lines
    assert all(before[1] <= after[0] for before, after in pairwise(cues))


def texts_of(rows, style):
    """The text that each format holds, as its library reads it."""
    found = {
        kind: " ".join(line for _, _, lines in read(render(rows, kind, style)) for line in lines)
        for kind, read in READERS.items()
    }
    found["ctm"] = " ".join(row[4] for row in read_ctm(render(rows, "ctm")))
    found["textgrid"] = " ".join(label for _, _, label in read_textgrid(render(rows, "textgrid"))["words"])
    whole = json.loads(render(rows, "json"))
    found["json"] = "".join(word["word"] for segment in whole["segments"] for word in segment["words"]).strip()
    assert whole["text"].split() == found["json"].split()
    return found


def _ms(delta):
    return round(delta.total_seconds() * 1000)


def _clock_ms(text):
    hours, minutes, seconds = text.split(":")
    return round((int(hours) * 3600 + int(minutes) * 60) * 1000 + float(seconds) * 1000)
