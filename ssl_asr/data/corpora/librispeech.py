"""LibriSpeech, mini LibriSpeech and Multilingual LibriSpeech (MLS)."""

from collections.abc import Iterator
from pathlib import Path

from ssl_asr.data.folders import is_file
from ssl_asr.data.formats.rows import NO_SPLIT, Found, Row, split_name
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines

_SUFFIXES = (".flac", ".opus", ".ogg", ".wav", ".mp3")
# Names of MLS folders: mls_german, mls_german_opus.
_LANGUAGES = {
    "english": "en",
    "german": "de",
    "dutch": "nl",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "polish": "pl",
}


def is_librispeech(folder: Path) -> bool:
    """Whether a folder has ``SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt``, at most four folders below it."""
    return next(_transcripts(folder), None) is not None


def _transcripts(folder: Path) -> Iterator[Path]:
    for depth in range(5):
        yield from sorted(folder.glob("/".join(["*"] * depth + ["*.trans.txt"])))


def read_librispeech(folder: Path) -> Found:
    """Rows of all transcripts. The split is the folder of the speakers, such as ``dev-clean``."""
    found = Found()
    genders = _genders(folder)
    seen: set[Path] = set()
    for path in _transcripts(folder):
        speaker = path.name.split("-")[0]
        above = path.parent.parent.parent
        inside = above == folder or folder in above.parents
        split = split_name(above.resolve().name) if inside else NO_SPLIT
        for number, line in read_lines(path, error=ManifestError, remedy="extract the corpus again"):
            name, _, text = line.strip().partition(" ")
            if not name:
                continue
            audio = _audio(path.parent, name)
            where = f"{path}:{number}"
            if audio is None:
                found.skip(name, "missing_file", f"no audio file {path.parent / name}.flac", where)
                continue
            seen.add(audio)
            tags = {"speaker": speaker, "lang": "en", "chapter": path.parent.name}
            tags |= {"gender": genders[speaker]} if speaker in genders else {}
            found.rows.append(Row(id=name, audio=str(audio), text=text.strip(), split=split, tags=tags, where=where))
        for audio in sorted(path.parent.iterdir()):
            if audio.suffix.lower() in _SUFFIXES and audio not in seen:
                found.skip(audio.stem, "no_transcript", f"no line in {path}", str(path))
    return found


def _audio(folder: Path, name: str) -> Path | None:
    return next(filter(is_file, (folder / f"{name}{suffix}" for suffix in _SUFFIXES)), None)


def _genders(folder: Path) -> dict[str, str]:
    """Gender by speaker, from ``SPEAKERS.TXT`` in the folder, above it or one below."""
    above = [folder, *list(folder.resolve().parents)[:2]]
    paths = [*(each / "SPEAKERS.TXT" for each in above), *folder.glob("*/SPEAKERS.TXT")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    lines = read_lines(path, error=ManifestError, remedy="extract the corpus again")
    fields = [[field.strip() for field in line.split("|")] for _, line in lines if not line.startswith(";")]
    return {each[0]: each[1].lower() for each in fields if len(each) > 1 and each[1] in ("M", "F")}


# MLS ---------------------------------------------------------------------------------------------------------------


def is_mls(folder: Path) -> bool:
    """Whether a folder is a language of MLS: ``train/transcripts.txt`` and ``train/audio/``."""
    return bool(_mls_transcripts(folder))


def _mls_transcripts(folder: Path) -> list[Path]:
    here = [*folder.glob("transcripts.txt"), *folder.glob("*/transcripts.txt"), *folder.glob("*/*/transcripts.txt")]
    return sorted(path for path in here if (path.parent / "audio").is_dir())


def read_mls(folder: Path) -> Found:
    """Rows of ``transcripts.txt`` of each split. An id is ``SPEAKER_BOOK_NUMBER``."""
    found = Found()
    for path in _mls_transcripts(folder):
        language = path.parent.resolve().parent.name.removeprefix("mls_").removesuffix("_opus")
        for number, line in read_lines(path, error=ManifestError, remedy="extract the corpus again"):
            if not line.strip():
                continue
            name, _, text = line.strip().partition("\t")
            parts = name.split("_")
            where = f"{path}:{number}"
            audio = _audio(path.parent / "audio" / parts[0] / parts[1], name) if len(parts) == 3 else None
            if audio is None:
                found.skip(name, "missing_file", f"no audio file of this name below {path.parent / 'audio'}", where)
                continue
            tags = {"speaker": parts[0], "book": parts[1]}
            tags |= {"lang": _LANGUAGES[language]} if language in _LANGUAGES else {}
            split = split_name(path.parent.resolve().name)
            found.rows.append(Row(id=name, audio=str(audio), text=text.strip(), split=split, tags=tags, where=where))
    return found
