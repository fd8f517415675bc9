"""Audio files, folders and manifests as one list of recordings to transcribe, each once."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_asr.data.audio import AUDIO_SUFFIXES, audio_duration_s
from ssl_asr.data.folders import Found, is_file, is_folder, is_link, is_manifest, printable, search, status_of
from ssl_asr.data.identity import Identity, identity
from ssl_asr.data.manifest import Manifest, pack_rows, read_manifest
from ssl_asr.data.manifest_lines import WHERE
from ssl_asr.errors import AudioError, ConfigError, ManifestError, UserError, UserErrors, raise_all
from ssl_asr.textfiles import is_unicode
from ssl_asr.types import Skip, Utterance

# Suffixes of samples without a header, which does not say their rate.
_HEADERLESS = (".raw", ".pcm")
# Reason and detail for a name that libsndfile and output files refuse.
_BAD_NAME = ("name", "the name is not Unicode text: rename the file")
# Keys of a row besides its audio, id and duration.
_OPTIONAL = ("offset", "lang", "task", "channel")


@dataclass(frozen=True)
class Gathered:
    """The recordings of a command's inputs.

    Attributes:
        manifest: Every recording once, in the order of the inputs.
        skips: Recordings that cannot be read, that a folder passes over, or that are given more than once.
        notes: What folders hold besides recordings.
        sources: Manifests that are read or that lie in searched folders.
    """

    manifest: Manifest
    skips: list[Skip]
    notes: list[str]
    sources: list[Path]

    @property
    def count(self) -> int:
        """Number of recordings that the inputs name."""
        return len(self.manifest) + len(self.skips)


def expand(given: Sequence[str], standard_input: Iterable[str]) -> list[Path]:
    """Paths of names, wildcards, and ``-``, which stands for the paths on standard input, one a line.

    Raises:
        ConfigError: A wildcard matches nothing.
    """
    names = [line for one in given for line in (_lines(standard_input) if one == "-" else [one]) if line]
    paths: list[Path] = []
    for name in names:
        if not any(character in name for character in "*?[") or os.path.lexists(name):
            paths.append(Path(name))
            continue
        paths += matching(name, "input")
    return paths


def matching(name: str, key: str) -> list[Path]:
    """Paths that match a wildcard, sorted. As in a shell, ``**`` in a name with other characters is ``*``.

    Args:
        name: The wildcard.
        key: Key that names it, for errors.

    Raises:
        ConfigError: It matches nothing.
    """
    pattern = Path(*(part if part == "**" else re.sub(r"\*\*+", "*", part) for part in Path(name).parts))
    root = Path(pattern.anchor) if pattern.is_absolute() else Path()
    try:
        found = sorted(root.glob(str(pattern.relative_to(root)) if pattern.is_absolute() else str(pattern)))
    except OSError as error:
        raise ConfigError(key, f"{name} cannot be searched: {error.strerror}", "check the pattern") from None
    if not found:
        raise ConfigError(key, f"nothing matches {name}", "check the pattern")
    return found


def _lines(stream: Iterable[str]) -> list[str]:
    return [line.removesuffix("\r") for line in "".join(stream).split("\n")]


def gather(inputs: Sequence[Path], *, root: str | Path | None = None) -> Gathered:
    """Collect the recordings of audio files, folders (searched recursively) and manifests (``.jsonl``).

    Manifests need no text, and their ids need not be unique. Paths stay relative if they are given so; those in a
    manifest start at the manifest's folder.

    Args:
        inputs: Audio files, folders and manifests.
        root: Folder that the audio of manifests must lie in. Default: None (any folder).

    Raises:
        ManifestError, UserErrors: An input does not exist, a folder has no audio, or a manifest is invalid.
        ConfigError: There is no input.
    """
    if not inputs:
        raise ConfigError("input", "names no recording", "give audio files, folders or manifests")
    collected = _Collected(root)
    errors: list[UserError] = []
    for path in inputs:
        try:
            collected.add_input(path)
        except UserErrors as several:
            errors += several.errors
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    manifest = pack_rows(collected.rows, Path())
    return Gathered(manifest, collected.skips, collected.notes, collected.sources)


@dataclass(slots=True)
class _Collected:
    """Rows, skips, notes and manifests that are found so far."""

    root: str | Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    first: dict[Identity, str] = field(default_factory=dict)

    def add_input(self, path: Path) -> None:
        """Add one input of the command."""
        if is_folder(path):
            self._add_folder(path)
        elif is_file(path) and (path.suffix.lower() == ".jsonl" or is_manifest(path)):
            self._add_manifest(path)
        elif is_file(path) or is_link(path):
            self._add_file(path)
        elif status_of(path) is not None:
            raise ManifestError(str(path), "is not a regular file", "save the audio in a file, and give its name")
        else:
            raise ManifestError(str(path), *_not_there(path))

    def _add_folder(self, folder: Path) -> None:
        found: Found = search(folder)
        self.skips += found.skips
        self.notes += found.notes
        self.sources += found.manifests
        if not found.audio and not found.skips:
            held = f" ({'; '.join(found.notes)})" if found.notes else ""
            raise ManifestError(str(folder), f"has no audio files{held}", f"it looks for {' '.join(AUDIO_SUFFIXES)}")
        for file in found.audio:
            self._add_file(file)

    def _add_file(self, file: Path) -> None:
        fault = _unreadable(file)
        if fault is not None:
            self._skip(str(file), "", *fault)
            return
        try:
            duration = audio_duration_s(file)
        except AudioError as error:
            self._skip(str(file), "", error.reason, str(error))
            return
        self._add(Utterance(id=str(file), audio_filepath=str(file), duration=duration))

    def _add_manifest(self, path: Path) -> None:
        self.sources.append(path)
        for utterance in read_manifest(path, require_text=False, unique_ids=False, root=self.root):
            self._add(utterance)

    def _add(self, utterance: Utterance) -> None:
        """Add a recording, unless it is there already or its name cannot be written."""
        where, duration = utterance.where, utterance.duration
        if not is_unicode(utterance.id) or not is_unicode(utterance.audio_filepath):
            self._skip(utterance.id, where, *_BAD_NAME, duration)
            return
        key = identity(utterance)
        if key in self.first:
            self._skip(utterance.id, where, "duplicate", f"the same recording as {self.first[key]}", duration)
            return
        self.first[key] = f"{utterance.id} ({where})" if where else utterance.id
        row = {"id": utterance.id, "audio_filepath": utterance.audio_filepath, "duration": duration, WHERE: where}
        more = {key: getattr(utterance, key) for key in _OPTIONAL}
        self.rows.append(row | {key: value for key, value in more.items() if value is not None})

    def _skip(self, name: str, where: str, reason: str, detail: str, duration: float = 0.0) -> None:
        self.skips.append(Skip(printable(name), where, reason, printable(detail), duration))


def _not_there(path: Path) -> tuple[str, str]:
    """What is wrong with a path that cannot be seen, and what to do."""
    try:
        path.stat()
    except PermissionError:
        return "no permission to look into its folder", "check the permissions of the folder"
    except OSError:
        pass
    return "no such file or folder", "check input"


def _unreadable(file: Path) -> tuple[str, str] | None:
    """Reason and detail if a file cannot be opened."""
    if not is_unicode(str(file)):
        return _BAD_NAME
    if is_link(file) and status_of(file) is None:
        return "missing_file", f"a symbolic link that leads to no file: {file.readlink()}"
    if not is_file(file):
        return "not_a_file", "neither a file nor a folder"
    if file.suffix.lower() in _HEADERLESS:
        return "no_header", f"{file.suffix} files do not say their sample rate: convert it to WAV or FLAC"
    try:
        with file.open("rb"):
            return None
    except OSError as error:
        return "unreadable", f"{error.strerror}"
