"""Search of a folder for recordings, with an account of everything else in it."""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ssl_asr.data.audio import AUDIO_SUFFIXES
from ssl_asr.types import Skip

# Further suffixes of recordings. Such a file is opened like the others, and named if it cannot be read.
_MORE_NAMES = """
3g2 3ga 3gp 8svx aa aac aax ac3 aif aifc aiff alac amr ape au avi awb caf dct ds2 dsf dss dts dvf eac3 flv g722 gsm
latm loas m2ts m4a m4b m4r m4v mka mkv mmf mov mp1 mp2 mp4 mpc mpeg mpg msv mts nist nsp nut oma pcm ra ram raw rf64
rm sd2 shn snd sox sph spx tak thd tta vob voc vox w64 wave weba webm wma wmv wv wve
"""
_MORE_SUFFIXES = {f".{name}" for name in _MORE_NAMES.split()}
# Ends of names of files that are not complete or not in use, such as talk.wav.part.
_SET_ASIDE = (".part", ".partial", ".crdownload", ".download", ".tmp", ".bak", ".old", ".orig")
# First bytes of files with audio, after an offset.
_MAGIC = (
    (8, b"WAVE"),
    (0, b"fLaC"),
    (0, b"OggS"),
    (0, b"ID3"),
    (0, b"NIST_1A"),
    (0, b".snd"),
    (0, b"caff"),
    (8, b"AIFF"),
    (8, b"AIFC"),
    *((4, b"ftyp" + brand) for brand in (b"M4", b"mp4", b"iso", b"3g", b"qt", b"dash", b"avc1")),
    (0, b"#!AMR"),
    (0, b"ajkg"),
    (0, b"\x1aE\xdf\xa3"),  # Matroska and WebM
    (0, b"FLV\x01"),
    (0, b"wvpk"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # ASF: WMA and WMV
    *((0, b"\xff" + layer) for layer in (b"\xfa", b"\xfb", b"\xf2", b"\xf3")),  # MP3 without tags
    *((0, b"\xff" + layer) for layer in (b"\xf0", b"\xf1", b"\xf8", b"\xf9")),  # AAC
)


def status_of(path: Path) -> os.stat_result | None:
    """What the file system says about a path, or None if there is nothing or it may not be seen."""
    try:
        return path.stat()
    except (OSError, ValueError):
        # A name with a NUL character is a ValueError.
        return None


def is_file(path: Path) -> bool:
    """Whether a path is a regular file, or a link to one."""
    status = status_of(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, or a link to one."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link, wherever it leads."""
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError:
        return False


@dataclass(slots=True)
class Found:
    """Contents of a folder and of the folders in it.

    Attributes:
        audio: Files with a suffix of audio, in order of their names.
        skips: Recordings that are passed over, and folders that cannot be opened.
        notes: Everything else: manifests, numbers of other files by suffix, links that lead back.
        manifests: Files that list recordings.
    """

    audio: list[Path] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    manifests: list[Path] = field(default_factory=list)


def search(folder: Path) -> Found:
    """Search a folder and the folders in it, also through symbolic links.

    Hidden files and folders (``.name``) are passed over. A file whose name is not that of audio is passed over too,
    and is named if its first bytes are those of audio.
    """
    found = Found()
    others: Counter[str] = Counter()
    for path, hidden in _files(folder, found, frozenset(), hidden=False):
        if is_audio_name(path):
            if hidden:
                found.skips.append(_passed_over(path, "hidden", "hidden files are not searched: name the file"))
            else:
                found.audio.append(path)
        elif not hidden and is_manifest(path):
            found.manifests.append(path)
            found.notes.append(printable(f"{path} is a manifest: name it to transcribe its recordings"))
        elif not hidden and _is_set_aside(path):
            found.skips.append(_passed_over(path, "suffix", f"{path.suffix} is not a suffix of audio: rename the file"))
        elif not hidden and holds_audio(path):
            what = f"holds audio, and its suffix is '{path.suffix}': name the file, or rename it"
            found.skips.append(_passed_over(path, "suffix", what))
        else:
            others[path.suffix.lower() or "without suffix"] += 1
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        found.notes.append(printable(f"{folder} also has other files: {counts}"))
    return found


def _files(
    folder: Path, found: Found, above: frozenset[tuple[int, int]], *, hidden: bool
) -> Iterator[tuple[Path, bool]]:
    """Files of a folder and of the folders in it, in order of their names, and whether they are hidden.

    Args:
        folder: The folder.
        found: Gets skips and notes about folders.
        above: Device and inode of each folder that leads here, to stop at a link that leads back.
        hidden: Whether the folder is hidden.
    """
    try:
        status = folder.stat()
        paths = sorted(folder.iterdir())
    except OSError as error:
        found.skips.append(_passed_over(folder, "unreadable", f"the folder cannot be opened: {error.strerror}"))
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        found.notes.append(printable(f"{folder} is a symbolic link to a folder above it: not searched again"))
        return
    for path in paths:
        is_hidden = hidden or path.name.startswith(".")
        if is_folder(path):
            yield from _files(path, found, above | {here}, hidden=is_hidden)
        else:
            yield path, is_hidden


def _passed_over(path: Path, reason: str, detail: str) -> Skip:
    return Skip(printable(str(path)), "", reason, printable(detail))


def printable(name: str) -> str:
    """A name as Unicode text. Bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_audio_name(path: Path) -> bool:
    """Whether the suffix of a name is one of audio or video, in any case."""
    suffix = path.suffix.lower()
    return suffix in AUDIO_SUFFIXES or suffix in _MORE_SUFFIXES


def _is_set_aside(path: Path) -> bool:
    return path.suffix.lower() in _SET_ASIDE and is_audio_name(path.with_suffix(""))


def holds_audio(path: Path) -> bool:
    """Whether the first bytes of a file are those of an audio format. False if the file cannot be read."""
    head = _head(path, 16)
    return any(head[at : at + len(magic)] == magic for at, magic in _MAGIC)


def is_manifest(path: Path) -> bool:
    """Whether the first line of a ``.jsonl`` or ``.json`` file is that of a manifest, and not of transcripts."""
    if path.suffix.lower() not in (".jsonl", ".json"):
        return False
    try:
        row = json.loads(_head(path, 1 << 20).lstrip(b"\xef\xbb\xbf").strip().partition(b"\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "audio_filepath" in row and not {"score", "hyp", "segments"} & set(row)


def _head(path: Path, count: int) -> bytes:
    """The first bytes of a regular file, or no bytes."""
    if not is_file(path):
        return b""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
