"""Sentences from manifests and text files, as training text of language models."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError, raise_all
from ssl_asr.textfiles import read_lines
from ssl_asr.types import Utterance


def check_sources(paths: Sequence[Path], key: str) -> None:
    """Check that all files exist.

    Args:
        paths: Manifests and text files.
        key: Config key for the error message.

    Raises:
        ManifestError, UserErrors: Files are missing. Lists all of them.
    """
    raise_all([ManifestError(str(path), "no such file", f"check {key}") for path in paths if not path.is_file()])


def read_sentences(paths: Sequence[Path], *, normalizer: str) -> Iterator[Utterance]:
    """Normalized texts of manifests (``.jsonl``), all references, and of text files with one sentence per line.

    Empty texts are left out.

    Raises:
        ManifestError: A manifest is invalid, or a file is not text. The message names the line.
    """
    normalize = get_normalizer(normalizer, key="normalizer")
    for path in paths:
        for utterance in _utterances(path):
            for written in utterance.texts:
                text = normalize(written, utterance.lang)
                if text:
                    yield Utterance(utterance.id, "", 0.0, text=text, lang=utterance.lang)


def _utterances(path: Path) -> Iterator[Utterance]:
    if path.suffix.lower() == ".jsonl":
        yield from read_manifest(path, measure=False)
        return
    remedy = "give UTF-8 text with one sentence per line"
    for number, line in read_lines(path, error=ManifestError, remedy=remedy):
        if number == 1 and line.startswith("{") and '"audio_filepath"' in line:
            what = "is a line of a manifest, and this file is read as sentences"
            raise ManifestError(f"{path}:1", what, "give the manifest a name that ends in .jsonl")
        yield Utterance(f"{path}:{number}", "", 0.0, text=line.strip())
