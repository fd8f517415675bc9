"""Kinds of sources that ``ssl-asr prepare`` reads: how each is recognized, and how it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ssl_asr.data.corpora.an4 import is_an4, read_an4
from ssl_asr.data.corpora.librispeech import is_librispeech, is_mls, read_librispeech, read_mls
from ssl_asr.data.corpora.tabular import (
    is_common_voice,
    is_fleurs,
    is_ljspeech,
    is_voxpopuli,
    read_common_voice,
    read_fleurs,
    read_ljspeech,
    read_voxpopuli,
)
from ssl_asr.data.corpora.tedlium import is_tedlium, read_tedlium
from ssl_asr.data.folders import is_manifest
from ssl_asr.data.formats.audiofolder import is_audiofolder, read_audiofolder
from ssl_asr.data.formats.beside import has_audio, is_folder_with_transcripts, read_folder
from ssl_asr.data.formats.columns import KEYS
from ssl_asr.data.formats.huggingface import is_huggingface, read_huggingface
from ssl_asr.data.formats.kaldi import is_kaldi, read_kaldi
from ssl_asr.data.formats.lhotse import is_lhotse, read_lhotse
from ssl_asr.data.formats.manifests import manifests_in, read_manifests
from ssl_asr.data.formats.rows import Found, ReadOptions
from ssl_asr.data.formats.shar import is_shar, read_shar
from ssl_asr.data.formats.speechbrain import (
    is_speechbrain_csv,
    is_speechbrain_json,
    read_speechbrain_csv,
    read_speechbrain_json,
)
from ssl_asr.data.formats.tables import is_table, read_table
from ssl_asr.errors import ManifestError


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of source.

    Attributes:
        title: What it is, for messages.
        fits: Whether a path looks like it.
        read: Rows of a path, and what is left out.
        keys: Keys of the command that change how it is read.
    """

    title: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], Found]
    keys: frozenset[str]


def _folder(title: str, fits: Callable[[Path], bool], read: Callable[[Path, ReadOptions], Found], *keys: str) -> Kind:
    """A kind that is a folder."""
    return Kind(title, lambda path: path.is_dir() and fits(path), read, frozenset(keys))


def _corpus(title: str, fits: Callable[[Path], bool], read: Callable[[Path], Found]) -> Kind:
    """A corpus, whose folders say everything."""
    return _folder(title, fits, lambda path, _: read(path))


def _has_manifests(path: Path) -> bool:
    if path.is_dir():
        return bool(manifests_in(path))
    return path.is_file() and (path.suffix.lower() == ".jsonl" or is_manifest(path))


def _has_tables(path: Path) -> bool:
    if path.is_dir():
        return any(map(is_table, path.iterdir())) and not is_folder_with_transcripts(path)
    return is_table(path)


def _read_tables(path: Path, options: ReadOptions) -> Found:
    """Rows of a table, or of all tables in a folder."""
    found = Found()
    for table in [each for each in sorted(path.iterdir()) if is_table(each)] if path.is_dir() else [path]:
        found.extend(read_table(table, options))
    return found


_COLUMNS = frozenset(f"columns.{key}" for key in KEYS)
_TABLE = _COLUMNS | {"audio_dir"}
_PATHS = frozenset({"audio_dir"})
_FOLDER = ("columns.speaker", "columns.tier", "segments")
# In the order in which a source is compared with them: the most specific first.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "kaldi": _folder("data folder of Kaldi", is_kaldi, read_kaldi, "audio_dir"),
        "librispeech": _corpus("LibriSpeech", is_librispeech, read_librispeech),
        "mls": _corpus("Multilingual LibriSpeech", is_mls, read_mls),
        "common_voice": _folder("Common Voice", is_common_voice, read_common_voice, *_TABLE),
        "voxpopuli": _folder("VoxPopuli", is_voxpopuli, read_voxpopuli, "audio_dir"),
        "fleurs": _corpus("FLEURS", is_fleurs, read_fleurs),
        "ljspeech": _corpus("LJSpeech", is_ljspeech, read_ljspeech),
        "tedlium": _corpus("TED-LIUM", is_tedlium, read_tedlium),
        "an4": _corpus("AN4", is_an4, read_an4),
        "huggingface": Kind("Hugging Face dataset", is_huggingface, read_huggingface, _COLUMNS | {"subset"}),
        "lhotse_shar": _folder("Shar folder of lhotse", is_shar, read_shar),
        "lhotse": Kind("manifests of lhotse", is_lhotse, read_lhotse, _PATHS),
        "audiofolder": _folder("audiofolder", is_audiofolder, read_audiofolder, *_TABLE),
        "manifest": Kind("manifest", _has_manifests, read_manifests, _PATHS),
        "nemo": Kind("manifest of NeMo", _has_manifests, read_manifests, _PATHS),
        "speechbrain_json": Kind("JSON of SpeechBrain", is_speechbrain_json, read_speechbrain_json, _TABLE),
        "speechbrain_csv": Kind("CSV of SpeechBrain", is_speechbrain_csv, read_speechbrain_csv, _TABLE),
        "table": Kind("table", _has_tables, _read_tables, _TABLE),
        "folder": _folder("folder of audio with transcripts beside it", has_audio, read_folder, *_FOLDER),
    }
)


def kind_of(path: Path) -> str:
    """Name of the kind that a source looks like.

    Raises:
        ManifestError: It does not exist, or looks like no kind.
    """
    name = next((name for name, kind in KINDS.items() if kind.fits(path)), None)
    if name is not None:
        return name
    if not path.exists():
        raise ManifestError(str(path), "no such file or folder", "check input")
    what = "is no corpus, dataset, manifest or table that is known"
    if path.is_dir():
        what = "has no audio, no table and no manifest, and is no corpus that is known"
    raise ManifestError(str(path), what, f"say what it is: kind={'|'.join(KINDS)}")


def read_source(path: Path, name: str, options: ReadOptions) -> Found:
    """Rows of a source of a given kind.

    Raises:
        ManifestError: It is not of this kind.
    """
    kind = KINDS[name]
    if not kind.fits(path):
        if not path.exists():
            raise ManifestError(str(path), "no such file or folder", "check input")
        other = next((each for each, one in KINDS.items() if one.fits(path)), None)
        looks = f"it looks like kind={other}" if other else "check the folder, or leave out kind"
        raise ManifestError(str(path), f"is no {kind.title}", looks)
    return kind.read(path, options)
