"""Kaldi's data folders: ``wav.scp``, ``text``, and optionally ``segments``, ``utt2spk``, ``utt2dur``, ``utt2lang``."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from ssl_asr.data.formats.manifests import Target
from ssl_asr.data.formats.rows import NO_SPLIT, Found, ReadOptions, Row, full_path, located
from ssl_asr.errors import ManifestError, raise_all
from ssl_asr.textfiles import read_lines, shown, written_whole

_ARCHIVE = re.compile(r".*\.ark(:\d+)?(\[.*\])?")


def is_kaldi(folder: Path) -> bool:
    """Whether a folder is a data folder, or has data folders in it."""
    return bool(_data_folders(folder))


def _data_folders(folder: Path) -> list[Path]:
    if (folder / "wav.scp").is_file():
        return [folder]
    return [path.parent for path in sorted(folder.glob("*/wav.scp"))]


def read_kaldi(folder: Path, options: ReadOptions) -> Found:
    """Rows of a data folder, or of each data folder in a folder. The name of a folder is the split.

    Paths in ``wav.scp`` are absolute, or relative to the data folder, a folder above it, or the working directory.

    Raises:
        ManifestError, UserErrors: ``wav.scp`` has pipes, which would run programs; or a file has an invalid line.
    """
    found = Found()
    folders = _data_folders(folder)
    for each in folders:
        split = NO_SPLIT if each == folder and folder.name in ("", "data") else each.resolve().name
        _read(found, each, split, options)
    return found


def _read(found: Found, folder: Path, split: str, options: ReadOptions) -> None:
    audio = _audio(found, folder, options)
    texts = _table(folder / "text")
    maps = {name: _table(folder / name) for name in ("utt2spk", "utt2dur", "utt2lang", "spk2gender")}
    parts = _segments(folder, audio)
    named = {recording for recording, _, _ in parts.values()}
    for name, (recording, start, length) in parts.items():
        where = f"{folder / 'text'}:{texts[name][0]}" if name in texts else str(folder / "text")
        if recording not in audio:
            found.skip(name, "no_audio", f"wav.scp has no recording '{recording}'", str(folder / "segments"))
            continue
        if name not in texts:
            found.skip(name, "no_text", "has no line in text", where)
            continue
        given = {key: table[name][1] for key, table in maps.items() if name in table}
        tags = _tags(name, given, maps["spk2gender"])
        seconds = length if length is not None else _positive(given.get("utt2dur"), folder / "utt2dur", name)
        row = Row(
            id=name,
            audio=audio[recording],
            text=texts[name][1],
            split=split,
            offset=start,
            duration=seconds,
            tags=tags,
            where=where,
        )
        found.rows.append(row)
    for name, (number, _) in texts.items():
        if name not in parts:
            found.skip(name, "no_audio", "has a text and no audio", f"{folder / 'text'}:{number}")
    for name in audio.keys() - named:
        found.skip(name, "no_text", "a recording without a segment", str(folder / "segments"))


def _tags(name: str, given: Mapping[str, str], genders: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    tags = {}
    speaker = given.get("utt2spk")
    # Kaldi names the utterance where the speaker is not known.
    if speaker and speaker != name:
        tags["speaker"] = speaker
        if speaker in genders:
            tags["gender"] = genders[speaker][1]
    if given.get("utt2lang"):
        tags["lang"] = given["utt2lang"]
    return tags


def _audio(found: Found, folder: Path, options: ReadOptions) -> dict[str, str]:
    """The file of each recording."""
    errors = []
    files: dict[str, str] = {}
    above = [folder, *list(folder.resolve().parents)[:2], Path()]
    folders = above if options.audio_dir is None else [options.audio_dir]
    path = folder / "wav.scp"
    for name, (number, value) in _table(path).items():
        where = f"{path}:{number}"
        if value.endswith("|") or value.startswith("|"):
            what = f"'{name}' is a pipe, which would run a program: {shown(value)}"
            remedy = "write the audio to files first, with wav-copy or by running the commands, and name the files"
            errors.append(ManifestError(where, what, remedy))
        elif _ARCHIVE.fullmatch(value):
            found.skip(name, "archive", f"is in an archive of Kaldi, {value}: copy it to a file with wav-copy", where)
        elif not value:
            found.skip(name, "no_audio", "has no path", where)
        else:
            files[name] = str(located(value, folders))
    raise_all(errors)
    return files


def _segments(folder: Path, audio: Mapping[str, str]) -> dict[str, tuple[str, float, float | None]]:
    """Recording, offset and duration of each utterance. Without a file ``segments``, each recording is an utterance."""
    path = folder / "segments"
    if not path.is_file():
        return {name: (name, 0.0, None) for name in audio}
    parts: dict[str, tuple[str, float, float | None]] = {}
    errors = []
    for name, (number, value) in _table(path).items():
        fields = value.split()
        try:
            recording, start, end = fields[0], Decimal(fields[1]), Decimal(fields[2])
            if not (0 <= start < 10**9 and (end == -1 or start < end < 10**9)):
                raise ValueError(value)
        except (ValueError, ArithmeticError, IndexError):
            what = f"'{name}' is {shown(value)}, expected RECORDING START END with 0 <= START < END"
            errors.append(ManifestError(f"{path}:{number}", what, "correct the times"))
            continue
        parts[name] = (recording, float(start), None if end == -1 else float(end - start))
    raise_all(errors)
    return parts


def _table(path: Path) -> dict[str, tuple[int, str]]:
    """The lines of a file by their first word: number of the line, and the rest of it. No lines if there is no file.

    Raises:
        ManifestError, UserErrors: A first word is repeated.
    """
    if not path.is_file():
        return {}
    found: dict[str, tuple[int, str]] = {}
    errors = []
    for number, line in read_lines(path, error=ManifestError, remedy="save the file as UTF-8"):
        if not line.strip():
            continue
        name, _, rest = line.strip().replace("\t", " ").partition(" ")
        if name in found:
            what = f"'{name}' is already at line {found[name][0]}"
            errors.append(ManifestError(f"{path}:{number}", what, "give each line a name of its own"))
        found.setdefault(name, (number, rest.strip()))
    raise_all(errors)
    return found


def _positive(value: str | None, path: Path, name: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise ManifestError(str(path), f"'{name}' has {shown(value)}, expected a number of seconds", "correct it")
    return number


# Writing -----------------------------------------------------------------------------------------------------------


def write_kaldi(target: Target, split: str, rows: Sequence[Row]) -> list[str]:
    """Write the data folder ``SPLIT``, with paths that are absolute. Returns notes of what Kaldi's files cannot hold.

    ``segments`` is written if an utterance is a part of a file.
    """
    folder = target.folder / split
    folder.mkdir()
    notes: list[str] = []
    names = _kaldi_names(rows, notes)
    whole = all(row.whole for row in rows) and len({row.audio for row in rows}) == len(rows)
    recordings = {row.audio: name if whole else "" for row, name in zip(rows, names, strict=True)}
    if not whole:
        width = len(str(len(recordings)))
        recordings = {audio: f"{split}-rec{i:0{width}}" for i, audio in enumerate(recordings, start=1)}
    lines: dict[str, list[str]] = {name: [] for name in ("text", "utt2spk", "utt2dur", "utt2lang", "segments")}
    speakers: dict[str, list[str]] = {}
    genders: dict[str, str] = {}
    for row, name in zip(rows, names, strict=True):
        assert row.duration is not None
        speaker = "_".join((row.speaker or name).split())
        speakers.setdefault(speaker, []).append(name)
        if row.tags.get("gender"):
            genders[speaker] = str(row.tags["gender"])
        lines["text"].append(f"{name} {' '.join(row.text.split())}".rstrip())
        lines["utt2spk"].append(f"{name} {speaker}")
        lines["utt2dur"].append(f"{name} {row.duration!r}")
        if row.tags.get("lang"):
            lines["utt2lang"].append(f"{name} {row.tags['lang']}")
        # The sum of two floats could be rounded, so that the duration could not be read again as it was.
        end = Decimal(repr(row.offset)) + Decimal(repr(row.duration))
        lines["segments"].append(f"{name} {recordings[row.audio]} {row.offset!r} {end}")
    lines["wav.scp"] = [f"{name} {full_path(audio)}" for audio, name in recordings.items()]
    lines["spk2utt"] = [f"{speaker} {' '.join(sorted(own))}" for speaker, own in speakers.items()]
    lines["spk2gender"] = [f"{speaker} {gender}" for speaker, gender in genders.items()]
    if whole:
        del lines["segments"]
    for name, texts in lines.items():
        if texts:
            with written_whole(folder / name) as file:
                # Kaldi's programs need lines in the order of their bytes.
                file.writelines(f"{line}\n" for line in sorted(texts, key=lambda line: line.encode()))
    _note_lost(rows, notes)
    return notes


def _kaldi_names(rows: Sequence[Row], notes: list[str]) -> list[str]:
    """Ids without spaces, which Kaldi's files cannot hold.

    Raises:
        ManifestError: Two ids become one.
    """
    names = ["_".join(row.id.split()) for row in rows]
    changed = sum(name != row.id for name, row in zip(names, rows, strict=True))
    if changed:
        notes.append(f"kaldi: {changed} ids have spaces, which are written as _")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ManifestError(twice, "is the id of two utterances without spaces", "give them other ids")
    return names


def _note_lost(rows: Sequence[Row], notes: list[str]) -> None:
    lost = {key for row in rows for key in row.tags} - {"speaker", "lang", "gender"}
    lost |= {"channel"} if any(row.channel is not None for row in rows) else set()
    if lost:
        notes.append(f"kaldi: these keys have no file and are left out: {', '.join(sorted(lost))}")
