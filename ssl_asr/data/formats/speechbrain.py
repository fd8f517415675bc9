"""SpeechBrain's CSV and JSON, with times of parts in samples, as its readers of audio have them."""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssl_asr.data.folders import is_file, status_of
from ssl_asr.data.formats.columns import GUESSES, Reader, guess, guessed
from ssl_asr.data.formats.manifests import Target
from ssl_asr.data.formats.rows import Found, ReadOptions, Row, split_name
from ssl_asr.data.formats.tables import read_records
from ssl_asr.data.media import open_source
from ssl_asr.data.remote import MediaError
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import from_json, to_json, written_whole
from ssl_asr.types import Hertz

_ROOTS = ("{data_root}", "{data_folder}", "$data_root", "$data_folder")
_MOST_BYTES = 1 << 30


def is_speechbrain_csv(path: Path) -> bool:
    """Whether a table has the columns ``ID``, ``duration`` and ``wav``."""
    if not path.is_file() or path.suffix.lower() != ".csv":
        return False
    try:
        records = read_records(path)
    except ManifestError:
        return False
    return bool(records) and {"ID", "duration", "wav"} <= {name.strip() for name in records[0][1]}


def is_speechbrain_json(path: Path) -> bool:
    """Whether a file is a JSON object of records with ``wav``."""
    if not path.is_file() or path.suffix.lower() != ".json":
        return False
    try:
        records = _load(path)
    except ManifestError:
        return False
    first = next(iter(records.values()), None)
    return isinstance(first, dict) and "wav" in first


def _load(path: Path) -> dict[str, Any]:
    status = status_of(path)
    if status is None or status.st_size > _MOST_BYTES:
        raise ManifestError(str(path), "is larger than 1 GiB", "split it")
    remedy = "write one JSON object of records by id"
    data = path.read_bytes().replace(b"\n", b" ")
    records = from_json(data, str(path), error=ManifestError, remedy=remedy)
    if not isinstance(records, dict):
        raise ManifestError(str(path), "is not a JSON object", remedy)
    return records


def read_speechbrain_csv(path: Path, options: ReadOptions) -> Found:
    """Rows of a table with ``ID``, ``duration``, ``wav`` and a text. ``start`` and ``stop`` are numbers of samples."""
    records = read_records(path)
    header = [name.strip() for name in records[0][1]]
    found = Found()
    plain = []
    for number, fields in records[1:]:
        where = f"{path}:{number}"
        if len(fields) == len(header):
            plain.append((where, dict(zip(header, fields, strict=True))))
        else:
            found.skip(where, "bad_row", f"has {len(fields)} fields, and the table has {len(header)} columns", where)
    _add_all(found, path, plain, header, options)
    return found


def read_speechbrain_json(path: Path, options: ReadOptions) -> Found:
    """Rows of a JSON object of records by id. ``wav`` is a path, or ``{file, start, stop}`` in samples."""
    found = Found()
    plain = []
    keys: dict[str, None] = {"ID": None}
    for name, record in _load(path).items():
        where = f"{path}:{name}"
        if not isinstance(record, dict):
            found.skip(name, "bad_row", "is not a JSON object", where)
            continue
        wav = record["wav"] if isinstance(record.get("wav"), dict) else {}
        parts = {"wav": wav.get("file"), "start": wav.get("start"), "stop": wav.get("stop")}
        flat = {"ID": name, **record, **{key: value for key, value in parts.items() if value is not None}}
        keys |= dict.fromkeys(flat)
        plain.append((where, flat))
    _add_all(found, path, plain, list(keys), options)
    return found


def _add_all(
    found: Found, path: Path, records: Sequence[tuple[str, dict[str, Any]]], header: Sequence[str], options: ReadOptions
) -> None:
    given = {key: name for key, name in options.columns.items() if key in GUESSES}
    columns = guess([name for name in header if name not in ("start", "stop")], {"id": "ID", **given}, str(path))
    columns |= {"offset": "<offset>", "end": "<end>"}
    if "offset" in header:
        columns["offset"] = "offset"
    found.note(guessed({key: name for key, name in columns.items() if "<" not in name}, given, str(path)))
    reader = Reader(path.parent, columns, options, split_name(path.stem))
    for where, record in records:
        wav = str(record.get(columns["audio"]) or "")
        for root in _ROOTS:
            wav = wav.replace(f"{root}/", "").replace(root, ".")
        try:
            times = _times(record, reader.audio_file(wav), columns["offset"] == "offset") if wav else {}
        except (ValueError, TypeError, OverflowError, MediaError) as error:
            found.skip(str(record["ID"]), "bad_times", str(error), where)
            continue
        plain = {key: value for key, value in record.items() if key not in ("start", "stop")}
        reader.add(found, {**plain, columns["audio"]: wav, **times}, where)


def _times(record: Mapping[str, Any], audio: Path, has_offset: bool) -> dict[str, Any]:
    """Offset and end in seconds of a record with ``start`` and ``stop`` in samples."""
    if has_offset or record.get("start") in (None, "") or not is_file(audio):
        return {}
    rate = _rate(str(audio))
    times: dict[str, Any] = {"<offset>": int(record["start"]) / rate}
    if record.get("stop") not in (None, "") and not record.get("duration") and not record.get("length"):
        times["<end>"] = int(record["stop"]) / rate
    return times


@lru_cache(maxsize=1024)
def _rate(path: str) -> Hertz:
    source = open_source(path)
    try:
        return source.rate
    finally:
        source.close()


# Writing -----------------------------------------------------------------------------------------------------------


def _record(row: Row, target: Target) -> dict[str, Any]:
    """A record. The offset is written too, since a number of samples may round it."""
    assert row.duration is not None
    path = str(target.home / target.place(row.audio))
    tags = {key: value for key, value in row.tags.items() if key not in ("speaker", "lang")}
    record: dict[str, Any] = {"duration": row.duration, "wav": path}
    if row.offset:
        rate = _rate(row.audio)
        start = round(row.offset * rate)
        record |= {"start": start, "stop": start + round(row.duration * rate), "offset": row.offset}
    record |= {"spk_id": row.speaker} if row.speaker else {}
    record |= {"language": row.tags["lang"]} if row.tags.get("lang") else {}
    record |= {"channel": row.channel} if row.channel is not None else {}
    return {**record, "wrd": row.text, **tags}


def write_speechbrain_json(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write ``SPLIT.json``, with absolute paths."""
    records = {}
    for row in rows:
        record = _record(row, target)
        if "start" in record:
            wav = {"file": record["wav"], "start": record.pop("start"), "stop": record.pop("stop")}
            record["wav"] = wav
        records[row.id] = record
    with written_whole(target.folder / f"{split}.json") as file:
        file.write(to_json(records, indent=1) + "\n")
    return []


def write_speechbrain_csv(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write ``SPLIT.csv``, with absolute paths. All values become text."""
    records = [{"ID": row.id, **_record(row, target)} for row in rows]
    header = list(dict.fromkeys(key for record in records for key in record))
    with written_whole(target.folder / f"{split}.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for record in records:
            writer.writerow([_cell(record.get(key, "")) for key in header])
    text = {key for row in rows for key, value in row.tags.items() if not isinstance(value, str)}
    return [f"speechbrain_csv: these keys become text: {', '.join(sorted(text))}"] if text else []


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
