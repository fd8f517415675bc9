"""CMU's AN4: ``etc/an4_train.transcription`` with ``etc/an4_train.fileids`` and ``wav/``."""

import re
from pathlib import Path

from ssl_asr.data.formats.rows import Found, Row, split_name
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines

_LINE = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)")
_SUFFIXES = (".sph", ".wav", ".flac", ".raw")


def is_an4(folder: Path) -> bool:
    """Whether a folder, or one below it, has ``etc/*.transcription``."""
    return bool(_transcripts(folder))


def _transcripts(folder: Path) -> list[Path]:
    return sorted([*folder.glob("etc/*.transcription"), *folder.glob("*/etc/*.transcription")])


def read_an4(folder: Path) -> Found:
    """Rows of each transcription. Files without a header (``.raw``) are left out: get the version in NIST SPHERE."""
    found = Found()
    for path in _transcripts(folder):
        home = path.parent.parent / "wav"
        files = {file.stem: file for suffix in reversed(_SUFFIXES) for file in sorted(home.rglob(f"*{suffix}"))}
        split = split_name(path.stem.rpartition("_")[2])
        for number, line in read_lines(path, error=ManifestError, remedy="extract the corpus again"):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            fields = _LINE.fullmatch(line.strip())
            if fields is None:
                found.skip(where, "bad_row", "is not TEXT (ID)", where)
                continue
            text, name = fields.groups()
            audio = files.get(name)
            if audio is None:
                found.skip(name, "missing_file", f"no audio file of this name below {home}", where)
            elif audio.suffix == ".raw":
                found.skip(name, "no_header", f"{audio} does not say its sample rate: get an4_sphere.tar.gz", where)
            else:
                tags = {"speaker": audio.parent.name, "lang": "en"}
                found.rows.append(Row(id=name, audio=str(audio), text=text, split=split, tags=tags, where=where))
    return found
