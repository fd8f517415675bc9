"""What the targets of a manifest need: tokens and CTC frames of each text, counted once for a tokenizer.

Of several references of an utterance, any may be drawn, so the counts are those of the one that needs most.

    train.jsonl            {"audio_filepath": ..., "text": ...}       each text is encoded once
    .train.jsonl.targets   tokens, frames, blank text, unseen         read as long as the manifest, the tokenizer, and
                                                                      the code that encodes texts are the same

Limits are no part of the counts, so other limits need no new counts.
"""

import hashlib
import operator
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ssl_asr.console import tracked
from ssl_asr.data.line_index import load_arrays, store_arrays
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.parallel import map_ranges, ranges_of
from ssl_asr.textfiles import to_json
from ssl_asr.types import Text, Tokenizer, Utterance

# Packages that encode or normalize texts.
_PACKAGES = ("langcodes", "regex", "sentencepiece", "tokenizers", "transformers", "whisper-normalizer")

TargetArrays = tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.bool_]]
"""Tokens, CTC frames needed, and whether the tokenizer cannot spell the text, of each utterance."""


@runtime_checkable
class TargetCounter(Protocol):
    """A tokenizer that counts the targets of many texts at once."""

    def count_targets(self, texts: Sequence[Text]) -> TargetArrays:
        """What `count_targets` would find by encoding an utterance with each text."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the targets of N utterances need.

    Attributes:
        tokens_N: uint32, number of tokens of each text.
        frames_N: uint32, minimum number of frames of a CTC path, see `ctc_frames_needed`.
        blank_N: bool, whether the text is empty or blank.
        unseen_N: bool, whether the tokenizer cannot spell all of the text.
    """

    tokens_N: NDArray[np.uint32]
    frames_N: NDArray[np.uint32]
    blank_N: NDArray[np.bool_]
    unseen_N: NDArray[np.bool_]

    def select(self, indices_N: NDArray[np.int64]) -> "Targets":
        """Those of the utterances at ``indices_N``."""
        return Targets(*(getattr(self, one.name)[indices_N] for one in fields(self)))


def ctc_frames_needed(tokens: Sequence[int]) -> int:
    """Minimum number of frames of a CTC path: one for each label, and a blank between equal neighbors.

    Example:
        >>> ctc_frames_needed([5, 5, 6])
        4
    """
    equal: int = sum(map(operator.eq, tokens, tokens[1:]))
    return len(tokens) + equal


def count_targets(utterances: Sequence[Utterance], tokenizer: Tokenizer, *, progress: bool = False) -> Targets:
    """Count the targets of utterances. The counts of a large manifest are kept beside it.

    Args:
        utterances: A manifest, or any other utterances.
        tokenizer: Encodes the texts. Only the counts of the package's own tokenizers are kept.
        progress: Whether to show a progress bar.
    """
    key = _key(utterances, tokenizer)
    path = _counts_path(utterances) if key is not None else None
    if path is not None and (stored := load_arrays(path, str(key), [one.name for one in fields(Targets)])) is not None:
        return Targets(**stored)

    def count(start: int, end: int) -> tuple[NDArray[Any], ...]:
        if isinstance(tokenizer, TargetCounter):
            given = _texts(utterances, start, end)
            counted = tokenizer.count_targets([(text, lang) for texts, lang in given for text in texts])
        else:
            rows = utterances[start:end]
            given = [(list(row.texts), row.lang) for row in rows]
            counted = _counted([variant for row in rows for variant in row.variants()], tokenizer)
        blank = np.array([not text.strip() for texts, _ in given for text in texts], dtype=bool)
        starts_N = np.cumsum([0, *(len(texts) for texts, _ in given)])[:-1]
        tokens_N, frames_N, unseen_N, blank_N = (np.maximum.reduceat(each, starts_N) for each in (*counted, blank))
        return tokens_N, frames_N, blank_N, unseen_N

    ranges = ranges_of(len(utterances))
    bar = tracked(map_ranges(count, ranges), "encode the texts", total=len(ranges), shown=progress)
    empty = (np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, bool), np.zeros(0, bool))
    found = Targets(*map(np.concatenate, zip(empty, *bar, strict=True)))
    if path is not None:
        store_arrays(path, str(key), {one.name: getattr(found, one.name) for one in fields(Targets)})
    return found


def _texts(utterances: Sequence[Utterance], start: int, end: int) -> list[tuple[list[str], str | None]]:
    if isinstance(utterances, Manifest):
        return list(utterances.texts(start, end))
    return [(list(one.texts), one.lang) for one in utterances[start:end]]


def _counted(rows: Sequence[Utterance], tokenizer: Tokenizer) -> TargetArrays:
    targets = [tokenizer.encode(row) for row in rows]
    return (
        np.array(list(map(len, targets)), dtype=np.uint32),
        np.array(list(map(ctc_frames_needed, targets)), dtype=np.uint32),
        np.array([bool(tokenizer.unseen(row)) for row in rows], dtype=bool),
    )


def count_characters(texts: Sequence[str], characters: Sequence[str]) -> TargetArrays:
    """Count the targets of texts whose tokens are their characters. All others than ``characters`` are one label."""
    labels_T = _labels("".join(texts), characters)
    lengths_N = np.array([len(text) for text in texts], dtype=np.int64)
    ends_N = np.cumsum(lengths_N)
    starts_N = ends_N - lengths_N

    def between(places: NDArray[np.int64], last_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of the sorted places are from ``starts_N`` to before ``last_N``."""
        return np.searchsorted(places, last_N) - np.searchsorted(places, starts_N)

    unseen_N = between(np.flatnonzero(labels_T == 0), ends_N) > 0
    # Pairs of equal neighbors, at the place of the first.
    pairs_N = between(np.flatnonzero(labels_T[1:] == labels_T[:-1]), np.maximum(ends_N - 1, starts_N))
    return lengths_N.astype(np.uint32), (lengths_N + pairs_N).astype(np.uint32), unseen_N


def _labels(text: str, characters: Sequence[str]) -> NDArray[Any]:
    """A label for each character of a text, of shape (len(text),). 0 stands for all others than ``characters``."""
    codes = sorted({ord(one) for one in characters if len(one) == 1})
    labels = np.zeros(max([127, *codes]) + 2, dtype=np.uint32)
    labels[codes] = np.arange(1, len(codes) + 1)
    if text.isascii():
        # The labels of ASCII are the lowest, so each fits into a byte.
        table = np.resize(labels[:128], 256).astype(np.uint8).tobytes()
        return np.frombuffer(text.encode().translate(table), dtype=np.uint8)
    codes_T = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return labels[np.minimum(codes_T, len(labels) - 1)]


def _counts_path(utterances: Sequence[Utterance]) -> Path | None:
    path = utterances.file if isinstance(utterances, Manifest) else None
    return None if path is None else path.with_name(f".{path.name}.targets")


def _key(utterances: Sequence[Utterance], tokenizer: Tokenizer) -> str | None:
    """What the counts depend on. None if the counts cannot be kept."""
    content = utterances.content_key() if isinstance(utterances, Manifest) else None
    kind = type(tokenizer)
    if content is None or not kind.__module__.startswith("ssl_asr."):
        return None
    state = to_json([kind.__qualname__, tokenizer.state(), _code_key(), content])
    return hashlib.sha256(state.encode()).hexdigest()


@lru_cache(maxsize=1)
def _code_key() -> list[str]:
    """The code that encodes texts: the modules beside this one, and versions of packages."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return [found.hexdigest(), unicodedata.unidata_version, *_versions()]


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        try:
            yield version(package)
        except PackageNotFoundError:
            yield ""
