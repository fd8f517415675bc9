"""Files of transcripts: their formats, their names, and what they must not overwrite.

one format, all recordings in one file     output=all.jsonl              all.jsonl
one format, a file for each recording      output=subs format=srt        subs/a.srt  subs/b.srt
several formats                            output=out format=[srt,ctm]   out/a.srt  out/b.srt  out/transcripts.ctm
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.console import results
from ssl_asr.data.files import Location
from ssl_asr.data.folders import holds_audio, is_file, is_folder, is_manifest, status_of
from ssl_asr.data.identity import Located, recording_key
from ssl_asr.errors import ConfigError, exists_already, overwrites
from ssl_asr.inference.formats.cues import DEFAULT_STYLE, Cue, cues_of
from ssl_asr.inference.formats.text import width
from ssl_asr.inference.names import by_recording, output_names
from ssl_asr.inference.subtitles import TIMED, WITH_CUES, render
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import overwritten, too_long, why_not_made, written_whole

# Suffixes of formats with one file for all recordings, and with one file for each.
_ONE_FILE = {"text": ".txt", "jsonl": ".jsonl", "ctm": ".ctm"}
_FILE_EACH = {"json": ".json", "srt": ".srt", "vtt": ".vtt", "ass": ".ass", "tsv": ".tsv", "textgrid": ".TextGrid"}
_SUFFIXES = _ONE_FILE | _FILE_EACH
_BY_SUFFIX = {suffix.lower(): kind for kind, suffix in _SUFFIXES.items()}
# Stems of files beside those of the recordings, in a folder.
_ALL, _SUMMARY, _PROGRESS = "transcripts", "summary", "progress"


def formats_of(output: str | None, asked: str | Sequence[str] | None) -> list[str]:
    """The requested formats, or else the format that the output's suffix names.

    Args:
        output: Path of the output, or None for standard output, which gets text.
        asked: A format, several formats, or None.

    Raises:
        ConfigError: The suffix names no format, or several formats are requested without a folder.
    """
    kinds = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked or ()))
    suffix = Path(output or "").suffix.lower()
    if len(kinds) > 1 and output is None:
        what = f"is {', '.join(kinds)}, and standard output takes one format"
        raise ConfigError("format", what, "give output=FOLDER, or one format")
    if len(kinds) > 1 and output is not None and suffix in _BY_SUFFIX and not is_folder(Path(output)):
        what = f"{output} is the name of one file, and format is {', '.join(kinds)}"
        raise ConfigError("output", what, "give a folder, or one format")
    if kinds:
        return kinds
    if output is None:
        return ["text"]
    if suffix not in _BY_SUFFIX:
        what = f"the name {output} does not say which format to write"
        raise ConfigError("output", what, f"end it in {', '.join(_BY_SUFFIX)}, or give format={'|'.join(_SUFFIXES)}")
    return [_BY_SUFFIX[suffix]]


def has_times(kinds: Sequence[str]) -> bool:
    """Whether one of the formats has times."""
    return any(kind in TIMED for kind in kinds)


class Outputs:
    """The files of a command. They are checked before the model is loaded.

    Args:
        output: File or folder; None writes to standard output.
        kinds: Formats, see `formats_of`.
        recordings: Everything that is transcribed. Names of files do not depend on which recordings fail.
        sources: Files that must not be overwritten, besides the audio.
        with_summary: Whether a summary and a file of progress are written too.
        overwrite: Whether files of an earlier command may be replaced. A command that was interrupted, and has left its
            file of progress, replaces its own.

    Raises:
        ConfigError: There are several recordings for one file; the output is a folder where a file is needed, or the
            other way around; it cannot be written; or it would overwrite audio, a manifest or earlier files.
    """

    def __init__(
        self,
        output: str | None,
        kinds: Sequence[str],
        recordings: Iterable[Located],
        *,
        sources: Sequence[Path] = (),
        with_summary: bool = False,
        overwrite: bool = True,
    ) -> None:
        rows = list(recordings)
        self.path = None if output is None else Path(output)
        self.kinds = list(kinds)
        self.names = output_names(rows, (_SUMMARY, _PROGRESS) if with_summary else ())
        self.in_folder = self.path is not None and self._needs_folder(str(output))
        self.progress: Path | None = None
        self.summary: Path | None = None
        self._check_count()
        if self.path is None:
            return
        if with_summary:
            self.progress = self._beside(_PROGRESS, ".jsonl")
            self.summary = self._beside(_SUMMARY, ".json")
        self._check_place(str(output))
        containers = {Location.of(row.audio_filepath).container for row in rows}
        self._check_overwritten([*sources, *map(Path, containers)])
        if not overwrite:
            self._check_earlier()

    def _needs_folder(self, output: str) -> bool:
        if len(self.kinds) > 1:
            return True
        [kind] = self.kinds
        named = (
            Path(output).suffix.lower() in _BY_SUFFIX and not output.endswith(os.sep) and not is_folder(Path(output))
        )
        return kind in _FILE_EACH and not named

    def _beside(self, stem: str, suffix: str) -> Path:
        assert self.path is not None
        return self.path / f"{stem}{suffix}" if self.in_folder else Path(f"{self.path}.{stem}{suffix}")

    def _check_count(self) -> None:
        """One file holds one recording in a format with a file for each."""
        [kind, *_] = self.kinds
        if self.in_folder or kind not in _FILE_EACH or len(self.names) <= 1:
            return
        where = "standard output" if self.path is None else str(self.path)
        what = f"{where} is one file, but there are {len(self.names)} recordings"
        remedy = f"give a folder, and format={kind}"
        raise ConfigError("output", what, f"{remedy}, or a .jsonl file for all of them" if kind == "json" else remedy)

    def _check_place(self, output: str) -> None:
        """Refuse a folder in place of a file, a file in place of a folder, and what cannot be written."""
        assert self.path is not None
        if not self.in_folder and (is_folder(Path(output)) or output.endswith(os.sep)):
            [kind] = self.kinds
            example = self.path / f"{_ALL}{_SUFFIXES[kind]}"
            raise ConfigError(
                "output", f"{output} is a folder, and format={kind} is one file", f"write output={example}"
            )
        faults = (why_not_made(self.path, folder=self.in_folder), *map(too_long, self.files()))
        fault = next((fault for fault in faults if fault is not None), None)
        if fault is not None:
            raise ConfigError("output", fault, "give another name")

    def _check_earlier(self) -> None:
        """Refuse to replace the transcripts of an earlier command."""
        if self.progress is not None and is_file(self.progress):
            return
        own = {self.summary, self.progress}
        earlier = next((path for path in self.files() if path not in own and is_file(path)), None)
        if earlier is not None:
            raise exists_already(earlier)

    def _check_overwritten(self, kept: Sequence[Path]) -> None:
        """Refuse to replace audio, a manifest, or anything that is not a file."""
        if (path := overwritten(self.files(), kept)) is not None:
            raise overwrites(path)
        for path in self.files():
            if status_of(path) is None:
                continue
            if not is_file(path):
                raise ConfigError("output", f"{path} is not a regular file", "leave out output for standard output")
            if is_manifest(path) or holds_audio(path):
                kind = "audio" if holds_audio(path) else "a manifest"
                raise ConfigError("output", f"{path} holds {kind} and would be overwritten", "give another name")

    def _file(self, kind: str, name: str = _ALL) -> Path | None:
        if self.path is None:
            return None
        return self.path / f"{name}{_SUFFIXES[kind]}" if self.in_folder else self.path

    def files(self) -> list[Path]:
        """Every file that the command may write."""
        if self.path is None:
            return []
        files = [self.summary, self.progress]
        for kind in self.kinds:
            each = kind in _FILE_EACH and self.in_folder
            files += [self._file(kind, name) for name in self.names.values()] if each else [self._file(kind)]
        return [path for path in files if path is not None]

    def write(self, rows: Sequence[Prediction], style: SubtitleStyle = DEFAULT_STYLE) -> list[str]:
        """Write transcripts, each recording in order of time. A file is never partly written.

        Returns a note for each recording that has subtitles which are too fast to read.

        Args:
            rows: Transcripts.
            style: How subtitles are laid out.

        Raises:
            ConfigError: A file cannot be written.
        """
        recordings = by_recording(rows)
        names = [self.names[recording_key(own[0])] for own in recordings]
        # Formats of subtitles have the same cues.
        cues = [cues_of(own, style) if WITH_CUES.intersection(self.kinds) else [] for own in recordings]
        for kind in self.kinds:
            if kind in _FILE_EACH:
                for name, own, shown in zip(names, recordings, cues, strict=True):
                    _put(self._file(kind, name), render(own, kind, style, cues=shown))
            else:
                _put(self._file(kind), render([row for own in recordings for row in own], kind, style))
        return [note for name, shown in zip(names, cues, strict=True) for note in _reading_note(name, shown, style)]


def _reading_note(name: str, cues: Sequence[Cue], style: SubtitleStyle) -> list[str]:
    """How many cues of a recording are shown for less time than it takes to read them, if there are any."""
    fast = [width(cue.text) * 1000 / (cue.end - cue.start) for cue in cues if cue.is_too_fast]
    if not fast:
        return []
    limit = f"{style.max_characters_per_s:g} characters a second"
    fastest = f"the fastest has {max(fast):.1f}"
    return [f"{name}: {len(fast)} of {len(cues)} subtitles have more than {limit}, as fast as the speech; {fastest}"]


def _put(path: Path | None, text: str) -> None:
    """Write a file, or to standard output."""
    if path is None:
        print(text, end="", file=results())
        return
    try:
        with written_whole(path) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError("output", f"{path} cannot be written: {error.strerror}", "give another name") from None
