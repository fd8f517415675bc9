"""The seams of tokenizers: how an option builds one, how a checkpoint restores one, and a check of coverage."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ssl_asr.console import notify
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.pieces import PieceTokenizer
from ssl_asr.data.symbols import SymbolTokenizer
from ssl_asr.data.targets import Targets, count_targets
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.errors import CheckpointError, ManifestError
from ssl_asr.types import Tokenizer, Utterance

_OWN_KINDS: dict[str, type] = {
    "char": CharTokenizer,
    "pieces": PieceTokenizer,
    "symbols": SymbolTokenizer,
    "whisper": WhisperTokenizer,
}
# Number of uncovered labels that an error names.
_SHOWN = 20


class PretrainedVocabulary(Protocol):
    """What a tokenizer option can take from the pretrained checkpoint."""

    @property
    def folder(self) -> Path:
        """Local folder of the checkpoint."""

    def characters(self) -> list[str]:
        """Alphabet of a checkpoint that is fine-tuned with CTC.

        Raises:
            CheckpointError: The checkpoint has no CTC head, or its tokens are not characters.
        """


class TokenizerOption(Protocol):
    """An option of the ``tokenizer`` group."""

    tasks: ClassVar[frozenset[str]]

    def build(self, *, train: Iterable[Utterance], checkpoint: PretrainedVocabulary) -> Tokenizer:
        """Tokenizer for a run.

        Args:
            train: Utterances of the train split. The only texts that a tokenizer may learn from.
            checkpoint: Vocabulary of the pretrained checkpoint.
        """


def restore_tokenizer(state: dict[str, Any], load_class: Callable[[str], type]) -> Tokenizer:
    """Tokenizer described by the result of `Tokenizer.state`.

    Args:
        state: Plain data from a checkpoint. ``kind`` is ``char``, ``pieces``, ``symbols``, ``whisper``, or the
            path of a class. All other items are keyword arguments of its constructor.
        load_class: Returns the class at a path, and decides which packages are trusted.

    Raises:
        CheckpointError: ``kind`` is neither known nor the path of a tokenizer class.
    """
    kind = str(state.get("kind"))
    if kind not in _OWN_KINDS and "." not in kind:
        what = f"unknown kind {kind!r}, expected {', '.join(_OWN_KINDS)} or a class path"
        raise CheckpointError("tokenizer", what, "use a checkpoint made by ssl_asr")
    arguments = {key: value for key, value in state.items() if key != "kind"}
    make = _OWN_KINDS[kind] if kind in _OWN_KINDS else load_class(kind)
    if not all(callable(getattr(make, method, None)) for method in ("encode", "decode", "state")):
        raise CheckpointError("tokenizer", f"{kind} is not a tokenizer", "use a checkpoint made by ssl_asr")
    tokenizer: Tokenizer = make(**arguments)
    return tokenizer


def check_coverage(
    tokenizer: Tokenizer, utterances: Sequence[Utterance], *, where: str, progress: bool = False
) -> Targets:
    """Check that the tokenizer can spell every text.

    Args:
        tokenizer: Answers by `Tokenizer.unseen`.
        utterances: The train split.
        where: Start of the error message, usually the path of the manifest.
        progress: Whether to show a progress bar.

    Returns:
        What the targets need, which is counted on the way.

    Raises:
        ManifestError: Some characters or symbols are missing. Names the 20 most frequent, each with its first
            utterance.
    """
    targets = count_targets(utterances, tokenizer, progress=progress)
    lacking = _uncovered(tokenizer, utterances, targets)
    if lacking is not None:
        remedy = f"extend tokenizer.{tokenizer.unit}, or choose another tokenizer.normalizer"
        raise ManifestError(where, lacking, remedy)
    return targets


def warn_of_unseen(tokenizer: Tokenizer, utterances: Sequence[Utterance], *, where: str) -> None:
    """Warn of references that the model cannot write, because they have characters or symbols that it lacks.

    Args:
        tokenizer, utterances, where: See `check_coverage`. The utterances of a dev or test set.
    """
    lacking = _uncovered(tokenizer, utterances, count_targets(utterances, tokenizer))
    if lacking is not None:
        notify(f"{where}: {lacking}. The model cannot write them, so they count as errors.")


def _uncovered(tokenizer: Tokenizer, utterances: Sequence[Utterance], targets: Targets) -> str | None:
    """The parts of texts that the tokenizer cannot spell, in words. None if it can spell every text.

    Names the 20 most frequent, each with its code point and its first utterance.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for index in np.flatnonzero(targets.unseen_N).tolist():
        row = utterances[index]
        for label in (label for variant in row.variants() for label in tokenizer.unseen(variant)):
            counts[label] += 1
            first.setdefault(label, f"{row.id} at {row.where}" if row.where else row.id)
    if not counts:
        return None
    rows = [f"{_shown(label)} x{n} (first in {first[label]})" for label, n in counts.most_common(_SHOWN)]
    more = [f"and {len(counts) - _SHOWN:,} more"] if len(counts) > _SHOWN else []
    return f"{len(counts)} {tokenizer.unit} are not in the vocabulary: {'; '.join([*rows, *more])}"


def _shown(label: str) -> str:
    return f"{label!r} U+{ord(label):04X}" if len(label) == 1 else repr(label)
