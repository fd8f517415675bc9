"""Hugging Face's ``audiofolder``: audio files with ``metadata.jsonl`` or ``metadata.csv``, which name them."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import soundfile

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.files import name_of, opened
from ssl_asr.data.formats.columns import GUESSES, Reader, guess, guessed
from ssl_asr.data.formats.manifests import Target
from ssl_asr.data.formats.rows import NO_SPLIT, Found, ReadOptions, Row, split_name
from ssl_asr.data.formats.tables import read_table
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import from_json, read_lines, to_json, written_whole
from ssl_asr.types import SAMPLE_RATE, Utterance

_NAMES = ("metadata.jsonl", "metadata.csv")


def is_audiofolder(folder: Path) -> bool:
    """Whether a folder, or a folder in it, has ``metadata.jsonl`` or ``metadata.csv`` with a column ``file_name``."""
    return any("file_name" in _head(path) for path in _tables(folder))


def _tables(folder: Path) -> list[Path]:
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    return found or [path for name in _NAMES for path in sorted(folder.glob(f"*/{name}"))]


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.readline(1 << 16).decode(errors="replace")


def read_audiofolder(folder: Path, options: ReadOptions) -> Found:
    """Rows of each ``metadata`` file. The name of its folder is the split, if it is not the given folder."""
    found = Found()
    for table in _tables(folder):
        split = NO_SPLIT if table.parent == folder else split_name(table.parent.name)
        if table.suffix == ".csv":
            part = read_table(table, options)
            part.rows = [_with_split(row, split) for row in part.rows]
            found.extend(part)
        else:
            _read_lines(found, table, split, options)
    return found


def _with_split(row: Row, split: str) -> Row:
    from dataclasses import replace

    return replace(row, split=split) if row.split == NO_SPLIT else row


def _read_lines(found: Found, table: Path, split: str, options: ReadOptions) -> None:
    remedy = "write one JSON object per line"
    records = []
    for number, line in read_lines(table, error=ManifestError, remedy=remedy):
        where = f"{table}:{number}"
        if line.strip():
            record = from_json(line.encode(), where, error=ManifestError, remedy=remedy)
            if not isinstance(record, dict):
                raise ManifestError(where, f"is a JSON {type(record).__name__}", remedy)
            records.append((where, record))
    given = {key: name for key, name in options.columns.items() if key in GUESSES}
    columns = guess(list(dict.fromkeys(key for _, record in records for key in record)), given, str(table))
    found.note(guessed(columns, given, str(table)))
    reader = Reader(table.parent, columns, options, split)
    for where, record in records:
        reader.add(found, record, where)


def write_audiofolder(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write the folder ``SPLIT`` with ``metadata.jsonl`` and the audio, which has to lie in it.

    Whole files are linked (hard links) where the file system allows it, and copied where not. A part of a file, or one
    channel of it, is cut and written as FLAC, mono at 16 kHz.
    """
    folder = target.folder / split
    (folder / "data").mkdir(parents=True)
    cut = 0
    width = max(5, len(str(len(rows))))
    with written_whole(folder / "metadata.jsonl") as file:
        for number, row in enumerate(rows):
            is_part = not row.whole or row.channel is not None
            suffix = ".flac" if is_part else name_of(row.audio).suffix.lower()
            safe = re.sub(r"[^\w.-]+", "_", row.id)[:100]
            name = f"data/{number:0{width}}_{safe}{suffix}"
            if is_part:
                cut += 1
                _cut(row, folder / name)
            else:
                _link(row.audio, folder / name)
            left_out = {"audio_filepath", "offset", "channel"} if is_part else {"audio_filepath"}
            plain = {key: value for key, value in row.plain(str).items() if key not in left_out}
            file.write(to_json({"file_name": name, **plain}) + "\n")
    return [f"audiofolder: {cut} parts of recordings in {split} are cut and written at 16 kHz"] if cut else []


def _link(audio: str, target: Path) -> None:
    try:
        # A member of a tar is no file that can be linked.
        os.link(Path(audio).resolve(), target)
    except OSError:
        with opened(audio) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)


def _cut(row: Row, target: Path) -> None:
    assert row.duration is not None
    utterance = Utterance(row.id, row.audio, row.duration, offset=row.offset, channel=row.channel, where=row.where)
    soundfile.write(target, read_waveform(utterance).numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
