"""Sentences of manifests and text files, to make language models from."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError, raise_all
from ssl_asr.textfiles import open_text
from ssl_asr.types import Utterance


def check_sources(paths: Sequence[Path], key: str) -> None:
    """Refuse files that are not there, all at once.

    Raises:
        ManifestError: one is not.
    """
    raise_all([ManifestError(str(path), "no such file", f"check {key}") for path in paths if not path.is_file()])


def read_sentences(paths: Sequence[Path], *, normalizer: str) -> Iterator[Utterance]:
    """The normalised texts of manifests (``.jsonl``) and of text files, a sentence a line; empty ones are left out.

    Raises:
        ManifestError: a file is not what its name says.
    """
    normalize = get_normalizer(normalizer, key="normalizer")
    for path in paths:
        for utterance in _utterances(path):
            text = normalize(utterance.text, utterance.lang)
            if text:
                yield Utterance(utterance.id, "", 0.0, text=text, lang=utterance.lang)


def _utterances(path: Path) -> Iterator[Utterance]:
    if path.suffix == ".jsonl":
        yield from read_manifest(path)
        return
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                yield Utterance(f"{path}:{number}", "", 0.0, text=line.strip())
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise ManifestError(str(path), f"is no text: {error}", "UTF-8 text with a sentence on each line") from None
