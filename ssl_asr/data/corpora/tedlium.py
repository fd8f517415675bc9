"""TED-LIUM 2 and 3: talks in NIST SPHERE with segments in STM files."""

import re
from pathlib import Path

from ssl_asr.data.folders import is_file
from ssl_asr.data.formats.rows import Found, Row, seconds_of, split_name
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines

_LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s+([\d.]+)\s+([\d.]+)\s+(?:<([^>]*)>\s*)?(.*)")
# The space before 's, 't, 're and so on. Other words with an apostrophe first, such as 'cause, stand alone.
_CONTRACTION = re.compile(r"(?<=\w)\s+(?='(?:s|t|re|ve|ll|d|m)(?![\w']))", re.I)
_IGNORED = "ignore_time_segment_in_scoring"
_SUFFIXES = (".sph", ".flac", ".wav", ".mp3")


def is_tedlium(folder: Path) -> bool:
    """Whether a folder has STM files in ``stm``, beside ``sph``, at most three folders below it."""
    return bool(_transcripts(folder))


def _transcripts(folder: Path) -> list[Path]:
    found = [path for depth in range(5) for path in folder.glob("/".join(["*"] * depth + ["*.stm"]))]
    return sorted(found)


def read_tedlium(folder: Path) -> Found:
    """Rows of all segments. The split is the folder that has ``stm``; of ``legacy`` and ``data``, ``data`` is left out.

    Release 3 has its training talks in ``data``, and the splits of release 2 in ``legacy``, which are used if they are
    there. Apostrophes are joined to the word before them (``it 's`` becomes ``it's``); ``text_raw`` keeps the text.
    """
    found = Found()
    paths = _transcripts(folder)
    legacy = [path for path in paths if "legacy" in path.relative_to(folder).parts]
    if legacy and len(legacy) < len(paths):
        found.note(f"{folder}: the splits in legacy are read; data, which overlaps with them, is not")
        paths = legacy
    ignored = 0
    for path in paths:
        split = split_name((path.parent.parent if path.parent.name == "stm" else path.parent).resolve().name)
        for number, line in read_lines(path, error=ManifestError, remedy="extract the corpus again"):
            if not line.strip() or line.startswith(";;"):
                continue
            if line.rstrip().endswith(_IGNORED):
                ignored += 1
                continue
            _add(found, path, line.strip(), f"{path}:{number}", split)
    if ignored:
        found.note(f"{ignored} segments are marked {_IGNORED} and are no utterances")
    return found


def _add(found: Found, path: Path, line: str, where: str, split: str) -> None:
    fields = _LINE.fullmatch(line)
    if fields is None:
        found.skip(where, "bad_row", "is not FILE CHANNEL SPEAKER START END <LABELS> TEXT", where)
        return
    talk, _, speaker, first, last, _, raw = fields.groups()
    try:
        start, end = seconds_of(first, "start") or 0.0, seconds_of(last, "end") or 0.0
    except ValueError as error:
        found.skip(where, "bad_row", str(error), where)
        return
    name = f"{talk}-{round(100 * start):07d}-{round(100 * end):07d}"
    if end <= start:
        found.skip(name, "bad_times", f"ends at {end} s, and starts at {start} s", where)
        return
    homes = [path.parent.parent / "sph", path.parent]
    files = [home / f"{talk}{suffix}" for home in homes for suffix in _SUFFIXES]
    audio = next(filter(is_file, files), files[0])
    text = _CONTRACTION.sub("", raw).strip()
    tags = {"speaker": speaker, "lang": "en", **({"text_raw": raw} if raw != text else {})}
    duration = round(end - start, 6)
    found.rows.append(
        Row(id=name, audio=str(audio), text=text, split=split, offset=start, duration=duration, tags=tags, where=where)
    )
