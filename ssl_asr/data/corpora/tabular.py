"""Corpora that list their audio in tables: Common Voice, FLEURS, VoxPopuli and LJSpeech."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_asr.data.formats.columns import Reader
from ssl_asr.data.formats.rows import Found, ReadOptions, Row, split_name
from ssl_asr.data.formats.tables import Record, read_records, read_table

_SPLITS = ("train", "dev", "test")


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.readline(1 << 16).decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")


def _below(folder: Path, name: str) -> list[Path]:
    """Files of a name in a folder or up to three folders below it."""
    return sorted(path for depth in range(4) for path in folder.glob("/".join(["*"] * depth + [name])))


# Common Voice ------------------------------------------------------------------------------------------------------


def is_common_voice(folder: Path) -> bool:
    """Whether a folder, or one below it, has ``clips`` with ``train.tsv``, ``dev.tsv`` or ``test.tsv``."""
    return bool(_common_voice(folder))


def _common_voice(folder: Path) -> list[Path]:
    tables = [path for split in _SPLITS for path in _below(folder, f"{split}.tsv")]
    return [path for path in tables if (path.parent / "clips").is_dir() and "sentence" in _header(path)]


def read_common_voice(folder: Path, options: ReadOptions) -> Found:
    """Rows of train, dev and test. Other tables, which overlap with these, are named in a note."""
    found = Found()
    tables = _common_voice(folder)
    for path in tables:
        own = replace(options, columns={"audio": "path", "text": "sentence", "speaker": "client_id", **options.columns})
        # Sentences have single quotation marks, so no field is in quotation marks.
        part = read_table(path, own, quotes=False)
        part.rows = [replace(row, id=Path(row.audio).stem, split=split_name(path.stem)) for row in part.rows]
        found.extend(part)
    for home in dict.fromkeys(path.parent for path in tables):
        more = sorted(path.name for path in home.glob("*.tsv") if path not in tables and "sentence" in _header(path))
        if more:
            found.note(f"{home} also has {', '.join(more)}: give one of them as input to read it")
    return found


# VoxPopuli ---------------------------------------------------------------------------------------------------------


def is_voxpopuli(folder: Path) -> bool:
    """Whether a folder has ``asr_train.tsv``, ``asr_dev.tsv`` or ``asr_test.tsv``, at most three folders below it."""
    return bool(_voxpopuli(folder))


def _voxpopuli(folder: Path) -> list[Path]:
    return [path for split in _SPLITS for path in _below(folder, f"asr_{split}.tsv")]


def read_voxpopuli(folder: Path, options: ReadOptions) -> Found:
    """Rows of the transcribed part. The audio of ``ID`` is ``YEAR/ID.ogg`` beside the table."""
    found = Found()
    for path in _voxpopuli(folder):
        columns = {"id": "id", "audio": "<audio>", "text": "normalized_text", "speaker": "speaker_id", "lang": "lang"}
        reader = Reader(path.parent, columns, options, split_name(path.stem.removeprefix("asr_")))
        lang = path.parent.resolve().name
        for where, record in _records(found, path, read_records(path, quotes=False)):
            name = record.get("id", "")
            audio = {"<audio>": f"{name[:4]}/{name}.ogg", "lang": lang} if name else {}
            plain = {key: value for key, value in record.items() if key != "split" and value != "None"}
            reader.add(found, {**plain, **audio}, where)
    return found


def _records(found: Found, path: Path, records: list[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
    header = [name.strip() for name in records[0][1]] if records else []
    for number, fields in records[1:]:
        where = f"{path}:{number}"
        if len(fields) == len(header):
            yield where, dict(zip(header, fields, strict=True))
        else:
            found.skip(where, "bad_row", f"has {len(fields)} fields, and the table has {len(header)} columns", where)


# FLEURS ------------------------------------------------------------------------------------------------------------

_FLEURS = ("sentence", "file", "text_raw", "text", "characters", "samples", "gender")


def is_fleurs(folder: Path) -> bool:
    """Whether a folder has ``train.tsv``, ``dev.tsv`` or ``test.tsv`` with the seven columns of FLEURS."""
    return bool(_fleurs(folder))


def _fleurs(folder: Path) -> list[Path]:
    tables = [path for split in _SPLITS for path in _below(folder, f"{split}.tsv")]
    return [path for path in tables if len(head := _header(path)) == 7 and head[1].endswith(".wav")]


def read_fleurs(folder: Path) -> Found:
    """Rows of each table, which has no names of columns. Audio lies in ``audio/SPLIT`` or ``SPLIT`` beside it."""
    found = Found()
    for path in _fleurs(folder):
        split = split_name(path.stem)
        homes = [path.parent / "audio" / path.stem, path.parent / path.stem, path.parent / "audio", path.parent]
        home = next(each for each in homes if each.is_dir())
        lang = path.parent.resolve().name.partition("_")[0]
        for number, fields in read_records(path, quotes=False):
            where = f"{path}:{number}"
            if len(fields) != 7:
                found.skip(where, "bad_row", f"has {len(fields)} fields, and FLEURS has 7", where)
                continue
            record = dict(zip(_FLEURS, fields, strict=True))
            tags = {
                "text_raw": record["text_raw"],
                "gender": record["gender"].lower(),
                "sentence_id": record["sentence"],
            }
            tags |= {"lang": lang} if len(lang) in (2, 3) else {}
            row = Row(
                id=Path(record["file"]).stem,
                audio=str(home / record["file"]),
                text=record["text"].strip(),
                split=split,
                tags=tags,
                where=where,
            )
            found.rows.append(row)
    return found


# LJSpeech ----------------------------------------------------------------------------------------------------------


def is_ljspeech(folder: Path) -> bool:
    """Whether a folder, or one below it, has ``wavs`` and ``metadata.csv`` with fields between ``|``."""
    return bool(_ljspeech(folder))


def _ljspeech(folder: Path) -> list[Path]:
    tables = [*folder.glob("metadata.csv"), *folder.glob("*/metadata.csv")]
    return [path for path in tables if (path.parent / "wavs").is_dir() and _header(path)[0].count("|") in (1, 2)]


def read_ljspeech(folder: Path) -> Found:
    """Rows of ``ID|text|normalized text``. The text is the normalized one; ``text_raw`` keeps the other."""
    found = Found()
    for path in _ljspeech(folder):
        for number, fields in read_records(path, quotes=False, delimiter="|"):
            where = f"{path}:{number}"
            if len(fields) not in (2, 3):
                found.skip(where, "bad_row", f"has {len(fields)} fields, and LJSpeech has 2 or 3", where)
                continue
            name, raw, text = fields[0].strip(), fields[1].strip(), fields[-1].strip()
            tags = {"speaker": "LJ", "lang": "en"} if name.startswith("LJ") else {}
            tags |= {"text_raw": raw} if raw != text else {}
            audio = path.parent / "wavs" / f"{name}.wav"
            found.rows.append(Row(id=name, audio=str(audio), text=text, tags=tags, where=where))
    return found
