"""Which column of a table, or key of a record, is the audio, the text, the speaker, and so on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_asr.data.formats.rows import (
    NO_SPLIT,
    Found,
    ReadOptions,
    Row,
    located,
    name_below,
    seconds_of,
    split_name,
)
from ssl_asr.data.manifest_lines import is_allowed
from ssl_asr.errors import ConfigError

# Names that columns have in known corpora and toolkits, the most specific first.
GUESSES: dict[str, tuple[str, ...]] = {
    "audio": (
        *("audio_filepath", "audio_file", "audio_path", "audio_filename", "audio", "wav_filename", "wav_path", "wav"),
        *(
            "file_name",
            "filename",
            "filepath",
            "file_path",
            "path",
            "file",
            "clip",
            "recording",
            "sound",
            "flac",
            "mp3",
        ),
    ),
    "text": (
        *("text", "sentence", "transcript", "transcription", "normalized_text", "raw_text", "raw_transcription", "wrd"),
        *("words", "txt", "utterance", "reference", "ref", "caption", "label"),
    ),
    "id": ("id", "utt_id", "utterance_id", "uttid", "utt", "uid", "segment_id", "audio_id"),
    "speaker": ("speaker", "speaker_id", "spk_id", "spk", "speaker_name", "client_id", "reader"),
    "lang": ("lang", "language", "locale"),
    "offset": ("offset", "start", "start_time", "begin", "start_s"),
    "end": ("end", "end_time", "stop", "end_s"),
    "duration": ("duration", "length", "dur", "duration_s"),
    "split": ("split", "subset", "partition"),
    "channel": ("channel",),
}
KEYS = tuple(GUESSES)
# Keys of a manifest that a row has by other columns.
_OWN = frozenset({"audio_filepath", "text", "id", "offset", "duration", "channel", "speaker", "lang"})
# Folders beside a table that its audio may lie in.
_FOLDERS = ("clips", "audio", "wavs", "wav")


def guess(header: Sequence[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """The column of each key.

    Args:
        header: Names of all columns.
        given: Columns by key, which are not guessed.
        where: Path of the table, for errors.

    Raises:
        ConfigError: A given column does not exist, or there is no column of audio or text.
    """
    lower = {name.strip().lower(): name for name in reversed(header)}
    found: dict[str, str] = {}
    for key, names in GUESSES.items():
        if key in given:
            if given[key] not in header:
                what = f"{where} has no column '{given[key]}': it has {', '.join(header)}"
                raise ConfigError(f"columns.{key}", what, "give the name of a column")
            found[key] = given[key]
            continue
        name = next((lower[each] for each in names if each in lower), None)
        if name is not None and name not in given.values():
            found[key] = name
    for key in ("audio", "text"):
        if key not in found:
            what = f"no column of {where} looks like the {key}: it has {', '.join(header)}"
            raise ConfigError(f"columns.{key}", what, f"write columns.{key}=NAME, with the name of a column")
    return found


def guessed(columns: Mapping[str, str], given: Mapping[str, str], where: str) -> str:
    """A note of the columns that are read, guesses first."""
    named = [f"{key}={name}" + (" (given)" if key in given else "") for key, name in columns.items()]
    return f"{where}: columns {', '.join(named)}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes rows of records, whatever file they come from.

    Attributes:
        folder: Folder of the file.
        columns: Name of the column of each key.
        options: How sources are read.
        split: Split of records that name none.
    """

    folder: Path
    columns: Mapping[str, str]
    options: ReadOptions
    split: str = NO_SPLIT

    def audio_file(self, path: str) -> Path:
        """The file of a path in a record."""
        folders = [self.folder] if self.options.audio_dir is None else [self.options.audio_dir]
        return located(path, [*folders, *(folder / name for folder in folders for name in _FOLDERS)])

    def add(self, found: Found, record: Mapping[str, Any], where: str) -> None:
        """Add the row of a record, or a skip."""
        values = {key: record.get(name) for key, name in self.columns.items()}
        audio = str(values.get("audio") or "").strip()
        name = str(values.get("id") or "").strip()
        if not audio:
            found.skip(name or where, "no_audio", f"column '{self.columns['audio']}' is empty", where)
            return
        path = self.audio_file(audio)
        try:
            offset, duration = _times(values)
            channel = _channel(values.get("channel"))
        except ValueError as error:
            found.skip(name or audio, "bad_times", str(error), where)
            return
        below = self.folder if self.options.audio_dir is None else self.options.audio_dir
        own = name_below(path, below) + (f"@{offset:g}" if offset else "")
        text = values.get("text")
        tags = self._tags(found, record)
        tags |= {key: str(values[key]) for key in ("speaker", "lang") if values.get(key) not in (None, "")}
        split = split_name(str(values.get("split") or "").strip()) if values.get("split") else self.split
        found.rows.append(
            Row(
                id=name or own,
                audio=str(path),
                text="" if text is None else str(text).strip(),
                split=split,
                offset=offset,
                duration=duration,
                channel=channel,
                tags=tags,
                where=where,
            )
        )

    def _tags(self, found: Found, record: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all other columns. A column that is named like a key of a manifest gets ``_column`` at its end."""
        tags: dict[str, Any] = {}
        for key, value in record.items():
            if key in self.columns.values() or value is None or value == "":
                continue
            if not _is_json(value):
                found.note(f"column '{key}' has values that are no JSON, and is left out")
            elif key in _OWN or not is_allowed(key, value):
                tags[f"{key}_column"] = value
            else:
                tags[key] = value
        return tags


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _times(values: Mapping[str, Any]) -> tuple[float, float | None]:
    """Offset and duration, in seconds.

    Raises:
        ValueError: They are not numbers of seconds, or the end comes before the start.
    """
    given = {key: None if values.get(key) is None else str(values[key]) for key in ("offset", "end", "duration")}
    offset = seconds_of(given["offset"], "offset") or 0.0
    end, duration = seconds_of(given["end"], "end"), seconds_of(given["duration"], "duration")
    if duration is None and end is not None:
        duration = round(end - offset, 6)
    if duration is not None and duration <= 0:
        raise ValueError(f"ends at {offset + duration:g} s, and starts at {offset:g} s")
    return offset, duration


def _channel(value: Any) -> int | None:
    if value is None or str(value).strip() == "":
        return None
    if not str(value).strip().isdigit():
        raise ValueError(f"channel is {value!r}, expected a number from 0")
    return int(value)
