"""CTC decoding into the words of a pronunciation lexicon, by torchaudio's decoder (flashlight).

A word may have several pronunciations, in labels of any kind (phonemes, for instance). Where words are spelled as they
are written, `ssl_asr.decoding.ctc.CtcBeam` with ``lexicon=... unknown_score=null`` does the same without flashlight.

A line of the lexicon is a word and its labels. A silence ``|``, the label that is a space, separates words::

    lexicon        frames   -  n  ai ai t  t  |  -  d  ei ei t
    night n ai t   labels      n  ai    t     |     d  ei    t
    data  d ei t   words       night (3 labels, 4 with the silence), data (3 labels)
    data  d ai t
"""

import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_asr.console import shortened
from ssl_asr.decoding.ctc_beam import CtcHypothesis
from ssl_asr.decoding.files import LanguageModelName, TextFile, read_entries
from ssl_asr.decoding.fusion.automata import lm_token
from ssl_asr.decoding.language_models import is_kenlm_binary, read_language_model
from ssl_asr.decoding.ngram import NGram
from ssl_asr.decoding.rescoring import Rescorer, n_best_conflicts
from ssl_asr.errors import ConfigError, LanguageModelError, missing_extra, optional_import
from ssl_asr.types import BLANK_ID, PositiveFloat, PositiveInt

_SILENCE = "|"
# Finite stand-in for minus infinity: flashlight's scores would become infinite.
_LOG_ZERO = -1e4
# Arguments of `missing_extra`.
_PACKAGE = ("decoder=ctc_lexicon", "flashlight-text", "lexicon", "decoder=ctc_beam decoder.unknown_score=null")
_LINES = "give lines of a word and its labels (night n ai t), or of a word alone if its labels are its characters"


@dataclass(frozen=True, kw_only=True)
class CtcLexicon:
    """The ``ctc_lexicon`` decoder: only words of a lexicon, each with one or more pronunciations.

    Attributes:
        lexicon: text file. Each line is a word and its labels, or a word alone if its labels are its characters. A word
            with several pronunciations has several lines. The label that is a space is written ``|``, and a space
            inside a label ``▁``.
        lm: n-gram model over words: ``.arpa`` or a KenLM binary. null for none.
        lm_weight: weight of its log-probabilities (natural logarithm).
        word_score: score added for each word.
        beam_size: number of hypotheses kept in each frame.
        beam_threshold: hypotheses are pruned if their score is lower than the best score by more than this.
        max_labels: number of the most likely labels of a frame that extend hypotheses. null for all labels.
        n_best: number of hypotheses given for each utterance.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})
    lexicon: TextFile
    lm: LanguageModelName | None
    lm_weight: float
    word_score: float
    beam_size: PositiveInt
    beam_threshold: PositiveFloat
    max_labels: PositiveInt | None
    n_best: PositiveInt

    def build(self, labels: Sequence[str | None]) -> "LexiconSearch":
        """Lexicon search over a vocabulary.

        Args:
            labels: Spelling of each label, a space as word boundary. None for the blank and the unknown label.

        Raises:
            LanguageModelError: A file is missing or wrong, or KenLM is not installed.
            ConfigError: flashlight is not installed.
        """
        return LexiconSearch(self, labels)

    def rescorer(self) -> Rescorer | None:
        """None: this decoder has no rescoring."""
        return None

    def conflicts(self, run: object) -> Iterator[ConfigError]:
        """An n-best list that is longer than the beam, and a package that is not installed."""
        yield from n_best_conflicts(self.beam_size, self.n_best)
        if find_spec("flashlight") is None:
            yield missing_extra(*_PACKAGE)


class LexiconSearch:
    """torchaudio's lexicon decoder as a `ssl_asr.decoding.ctc.CtcSearch`.

    Args:
        options: Options of the search.
        labels: Spelling of each label. None for ids that no text contains.
    """

    def __init__(self, options: CtcLexicon, labels: Sequence[str | None]) -> None:
        ctc_decoder = _import_decoder()
        names = [_name(i, label) for i, label in enumerate(labels)]
        ids = {name: i for i, name in enumerate(names)}
        self.n_best = options.n_best
        # Without a space label, flashlight takes the blank as silence.
        self._space = ids.get(_SILENCE)
        self._silence = BLANK_ID if self._space is None else self._space
        pronunciations = read_pronunciations(Path(options.lexicon), ids)
        self._pronunciations: dict[str, list[tuple[int, ...]]] = {}
        for word, spelling in pronunciations:
            self._pronunciations.setdefault(word, []).append(tuple(ids[name] for name in spelling))
        end = [] if self._space is None else [_SILENCE]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lexicon.txt"
            lines = (" ".join([word, *spelling, *end]) + "\n" for word, spelling in pronunciations)
            path.write_text("".join(lines), encoding="utf-8")
            language_model = None if options.lm is None else _readable(options.lm, Path(folder))
            try:
                self._decoder: Any = ctc_decoder(
                    lexicon=str(path),
                    tokens=names,
                    lm=language_model,
                    nbest=options.n_best,
                    beam_size=options.beam_size,
                    beam_size_token=options.max_labels,
                    beam_threshold=options.beam_threshold,
                    # flashlight multiplies KenLM's decimal logarithms.
                    lm_weight=options.lm_weight * float(np.log(10.0)),
                    word_score=options.word_score,
                    log_add=True,
                    blank_token=names[BLANK_ID],
                    sil_token=names[self._silence],
                    unk_word="<unk>",
                )
            except (ImportError, RuntimeError) as error:
                message = str(error).splitlines()[0]
                remedy = "run pip install 'ssl_asr[kenlm]'" if "installed" in message else "build the model again"
                raise LanguageModelError(str(options.lm), message, remedy) from None

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[CtcHypothesis]]:
        """The n-best list of each utterance. If no word fits, it is one empty hypothesis."""
        inputs_BFV = log_probs_BFV.float().clamp(min=_LOG_ZERO).cpu()
        # Silence ends each word in flashlight, but texts do not end in a space: append a frame of certain silence.
        last_V = inputs_BFV.new_full(inputs_BFV.shape[2:], _LOG_ZERO)
        last_V[[BLANK_ID, self._silence]] = 0.0
        results = []
        for row, frames in enumerate(frame_lengths_B.tolist()):
            inputs_FV = torch.cat([inputs_BFV[row, :frames], last_V[None]])
            hypotheses = self._decoder(inputs_FV[None].contiguous(), torch.tensor([frames + 1]))[0] if frames else []
            best = sorted((self._hypothesis(one) for one in hypotheses), key=lambda one: -one.score)
            results.append(best[: self.n_best] or [CtcHypothesis([], [], 0.0, 0.0, words=())])
        return results

    def _hypothesis(self, hypothesis: Any) -> CtcHypothesis:
        """A hypothesis of flashlight without silence at both ends. Each word counts its labels, silence included."""
        pairs = zip(hypothesis.tokens.tolist(), hypothesis.timesteps.tolist(), strict=True)
        # flashlight puts a silence before the first frame.
        spoken = [(token, max(0, t - 1)) for token, t in pairs if token != self._silence]
        words = list(hypothesis.words)
        lengths = self._word_lengths([token for token, _ in spoken], words)
        labels: list[int] = []
        frames: list[int] = []
        counts = list(lengths)
        at = 0
        for number, length in enumerate(lengths):
            if number and self._space is not None:
                labels.append(self._space)
                frames.append(spoken[at][1])
                counts[number - 1] += 1
            labels += [token for token, _ in spoken[at : at + length]]
            frames += [frame for _, frame in spoken[at : at + length]]
            at += length
        return CtcHypothesis(labels, frames, float(hypothesis.score), 0.0, words=tuple(zip(words, counts, strict=True)))

    def _word_lengths(self, tokens: list[int], words: list[str]) -> list[int]:
        """Number of the tokens that spell each word."""
        # Pronunciations of a word differ in length: keep every position that the words so far can end at.
        ends: dict[int, list[int]] = {0: []}
        for word in words:
            after: dict[int, list[int]] = {}
            for at, lengths in ends.items():
                for spelling in self._pronunciations.get(word, []):
                    if tuple(tokens[at : at + len(spelling)]) == spelling:
                        after.setdefault(at + len(spelling), [*lengths, len(spelling)])
            ends = after
        assert len(tokens) in ends, "the decoder's labels spell its words"
        return ends[len(tokens)]


def _import_decoder() -> Any:
    """The constructor of torchaudio's decoder. Raises ConfigError if flashlight is not installed."""
    with optional_import(*_PACKAGE):
        import flashlight.lib.text  # noqa: F401
        from torchaudio.models.decoder import ctc_decoder
    return ctc_decoder


def _readable(source: str, folder: Path) -> str:
    """Path of a language model that KenLM can read: a binary as it is, an ARPA file as `NGram` writes it.

    Raises:
        LanguageModelError: It is neither, or a line of the ARPA file is wrong.
    """
    if Path(source).is_file() and is_kenlm_binary(Path(source)):
        return source
    model = read_language_model(source)
    if not isinstance(model, NGram):
        raise LanguageModelError(source, "is not an n-gram model", "give an ARPA file or a KenLM binary")
    path = folder / "lm.arpa"
    model.write_arpa(path)
    return str(path)


def _name(i: int, label: str | None) -> str:
    """Name of a label in the lines of a lexicon."""
    if label is None:
        return "<blank>" if i == BLANK_ID else f"<{i}>"
    return _SILENCE if label == " " else lm_token(label)


def read_pronunciations(path: Path, ids: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Pairs of a word and the names of its labels. A word with several pronunciations has several pairs.

    Args:
        path: Path of the lexicon (see `CtcLexicon`).
        ids: Id of each label, by name.

    Raises:
        LanguageModelError: There is no such file, it contains no word, or words have labels outside the vocabulary.
    """
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    wrong: dict[str, LanguageModelError] = {}
    for number, (word, *spelling) in read_entries(path, remedy=_LINES):
        while spelling and spelling[-1] == _SILENCE:
            spelling.pop()
        names = spelling or list(unicodedata.normalize("NFC", word))
        unknown = [name for name in names if name not in ids]
        if unknown:
            what = f"{word!r} contains {unknown[0]!r}, which is not a label of this model"
            shown = " ".join(name for name in ids if not name.startswith("<"))[:60]
            wrong.setdefault(word, LanguageModelError(f"{path}:{number}", what, f"use its labels: {shown}"))
        found[word, tuple(names)] = None
    if wrong:
        first, *others = wrong.values()
        more = f", and {len(others)} more words are wrong ({shortened(list(wrong)[1:])})" if others else ""
        raise LanguageModelError(first.where, first.what + more, first.remedy)
    if not found:
        raise LanguageModelError(str(path), "contains no word", _LINES)
    return [(word, list(names)) for word, names in found]
