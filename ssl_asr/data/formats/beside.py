"""A folder of audio with a transcript beside each file: ``.TextGrid``, ``.srt``, ``.vtt``, ``.lab`` or ``.txt``."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_asr.console import shortened
from ssl_asr.data.folders import is_audio_name, search
from ssl_asr.data.formats.rows import Found, ReadOptions, Row, Segment, name_below, split_name
from ssl_asr.data.formats.subtitles import read_subtitles
from ssl_asr.data.formats.textgrid import read_textgrid, segments_of
from ssl_asr.data.formats.texts import read_transcript
from ssl_asr.errors import ConfigError, ManifestError, UserError

# Suffixes of transcripts. If a recording has several, the first of these is read.
SUFFIXES = (".textgrid", ".srt", ".vtt", ".lab", ".txt")
# Texts that lie beside audio and are no transcripts.
_ABOUT = ("readme", "license", "licence", "copying", "attribution", "notice", "changelog", "about", "speakers")
_SPLITS = ("train", "dev", "valid", "validation", "val", "test")


def has_audio(folder: Path) -> bool:
    """Whether a folder has audio files, in the folder itself or below it."""
    return any(map(is_audio_name, _files(folder)))


def is_folder_with_transcripts(folder: Path) -> bool:
    """Whether a folder has audio files with transcripts beside them, in the folder itself or below it."""
    stems = set()
    for path in _files(folder):
        if is_audio_name(path):
            stems |= {str(path.with_suffix("")), str(path)}
    return any(path.suffix.lower() in SUFFIXES and str(path.with_suffix("")) in stems for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())


def _homes(files: Sequence[Path]) -> list[Path]:
    """The folders of files, each once."""
    return list(dict.fromkeys(path.parent for path in files))


def read_folder(folder: Path, options: ReadOptions) -> Found:
    """Rows of a folder. Ids are paths below the folder, so that equal names in different folders stay apart.

    The first folder of a path is the split if it is named train, dev, valid, validation, val or test.

    Raises:
        ConfigError: The speaker is neither left out nor the name of a folder.
    """
    if options.columns.get("speaker", "folder") != "folder":
        what = f"is '{options.columns['speaker']}', and audio beside transcripts has no columns"
        raise ConfigError("columns.speaker", what, "write columns.speaker=folder for the name of a file's folder")
    found = Found()
    inside = search(folder)
    found.skips += inside.skips
    transcripts: dict[str, list[Path]] = {}
    # Folders behind symbolic links are searched for audio too.
    for path in dict.fromkeys([*_files(folder), *(each for home in _homes(inside.audio) for each in home.iterdir())]):
        if path.suffix.lower() in SUFFIXES:
            transcripts.setdefault(str(path.with_suffix("")), []).append(path)
    used: dict[Path, Path] = {}
    several: list[str] = []
    for audio in inside.audio:
        keys = dict.fromkeys((str(audio.with_suffix("")), str(audio)))
        beside = [path for key in keys for path in transcripts.get(key, [])]
        if not beside and not options.require_text:
            _add(found, folder, audio, None, options)
            continue
        if not beside:
            expected = ", ".join(audio.with_suffix(suffix).name for suffix in (".txt", ".TextGrid", ".srt"))
            found.skip(name_below(audio, folder), "no_transcript", f"no transcript beside {audio}, such as {expected}")
            continue
        beside.sort(key=lambda path: SUFFIXES.index(path.suffix.lower()))
        if len(beside) > 1:
            several.append(f"{beside[0].relative_to(folder)} of {len(beside)}")
        used |= dict.fromkeys(beside[1:], audio)
        if (other := used.setdefault(beside[0], audio)) != audio:
            found.skip(audio.relative_to(folder).as_posix(), "duplicate", f"its transcript is that of {other}")
            continue
        _add(found, folder, audio, beside[0], options)
    if several:
        found.note(f"{len(several)} recordings have several transcripts, of which one is read: {shortened(several, 3)}")
    _name_unused(found, folder, [path for paths in transcripts.values() for path in paths if path not in used])
    return found


def _name_unused(found: Found, folder: Path, unused: Sequence[Path]) -> None:
    """Skip transcripts without audio. Texts about the corpus are counted in a note."""
    about: Counter[str] = Counter()
    for path in unused:
        if path.stem.lower().startswith(_ABOUT):
            about[path.name] += 1
        else:
            found.skip(path.relative_to(folder).as_posix(), "no_audio", f"no audio file beside {path}")
    if about:
        found.note(f"{folder} also has {', '.join(about)}")


def _add(found: Found, folder: Path, audio: Path, transcript: Path | None, options: ReadOptions) -> None:
    """Add the rows of one recording."""
    name = name_below(audio, folder)
    parts = audio.relative_to(folder).parts
    split = split_name(parts[0].lower()) if len(parts) > 1 and parts[0].lower() in _SPLITS else "all"
    tags: dict[str, Any] = {}
    if options.columns.get("speaker") == "folder" and audio.parent != folder:
        tags["speaker"] = audio.parent.name
    try:
        segments = None if transcript is None else _segments(found, transcript, options)
        text = "" if segments is not None or transcript is None else read_transcript(transcript)
    except UserError as error:
        found.skip_error(name, "bad_transcript", error)
        return
    whole = Row(id=name, audio=str(audio), text=text, split=split, tags=tags, where=str(transcript or audio))
    if segments is None:
        found.rows.append(whole)
    elif options.segments == "keep":
        kept = [{"start": s.start, "end": s.end, "text": s.text} for s in segments if s.text]
        text = " ".join(segment.text for segment in segments if segment.text)
        found.rows.append(replace(whole, text=text, tags={**tags, "segments": kept}))
    else:
        for segment in segments:
            _add_segment(found, whole, segment)


def _add_segment(found: Found, whole: Row, segment: Segment) -> None:
    """Add the row of a segment of a recording."""
    own = f"{whole.id}@{segment.start:.3f}-{segment.end:.3f}"
    if segment.end <= segment.start:
        found.skip(own, "bad_times", f"ends at {segment.end:g} s, and starts at {segment.start:g} s", whole.where)
        return
    tags = whole.tags if segment.speaker is None else {**whole.tags, "speaker": segment.speaker}
    duration = round(segment.end - segment.start, 6)
    found.rows.append(replace(whole, id=own, text=segment.text, offset=segment.start, duration=duration, tags=tags))


def _segments(found: Found, path: Path, options: ReadOptions) -> list[Segment] | None:
    """The segments of a transcript with times, or None for a plain one."""
    suffix = path.suffix.lower()
    if suffix == ".textgrid":
        try:
            segments, how = segments_of(read_textgrid(path), options.columns.get("tier"))
        except ValueError as error:
            raise error if isinstance(error, UserError) else ManifestError(str(path), str(error)) from None
        found.note(f"TextGrid: {how}")
        return segments
    if suffix in (".srt", ".vtt"):
        segments, faults = read_subtitles(path)
        for fault in faults:
            found.skip(f"{path}: {fault.partition(':')[0]}", "bad_times", fault, str(path))
        return segments
    return None
