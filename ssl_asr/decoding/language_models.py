"""Language models, lexicons and hotwords from files, as parts of a fusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ssl_asr.decoding.fusion import Automaton, Hotwords, LabelBonus, LabelNGram, WordModel, Words
from ssl_asr.decoding.ngram import NGram
from ssl_asr.errors import LanguageModelError

_KENLM_MAGIC = b"mmap lm http://kheafield.com/code"


class KenLM:
    """A KenLM binary behind the `WordModel` contract, through the ``kenlm`` package.

    Args:
        path: of the binary.

    Raises:
        LanguageModelError: the package is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import kenlm
        except ImportError:
            remedy = "pip install kenlm (it needs a C++ compiler), or give the ARPA file, which needs nothing"
            raise LanguageModelError(str(path), "is a KenLM binary, and kenlm is not installed", remedy) from None
        self._kenlm: Any = kenlm
        self._model = kenlm.Model(str(path))
        self.order: int = self._model.order

    @property
    def begin(self) -> Any:
        """The start of a sentence."""
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Log-probability of a word after a state, and the state after it."""
        after = self._kenlm.State()
        return self._model.BaseScore(state, word, after) * math.log(10.0), after

    def end(self, state: Any) -> float:
        """Log-probability of the end of the sentence."""
        return self.score(state, "</s>")[0]

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""
        return word in self._model


def read_language_model(path: Path) -> NGram | KenLM:
    """The model of an ARPA file, gzipped or not, or of a KenLM binary.

    Raises:
        LanguageModelError: there is none.
    """
    if not path.is_file():
        raise LanguageModelError(str(path), "no such language model", "make one with python -m ssl_asr.lm")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, _: int) -> NGram | KenLM:
    """The model of a file as it was at some time: a search with other weights need not read it again."""
    with path.open("rb") as file:
        if file.read(len(_KENLM_MAGIC)) == _KENLM_MAGIC:
            return KenLM(path)
    return NGram.from_arpa(path)


def read_lexicon(path: Path) -> list[str]:
    """The words of a file, the first field of each line.

    Raises:
        LanguageModelError: there is no such file, or no word in it.
    """
    if not path.is_file():
        raise LanguageModelError(str(path), "no such lexicon", "a text file with a word on each line")
    try:
        words = [fields[0] for line in path.read_text(encoding="utf-8").splitlines() if (fields := line.split())]
    except UnicodeDecodeError as error:
        raise LanguageModelError(str(path), f"is no UTF-8 text: {error}", "a text file with a word a line") from None
    if not words:
        raise LanguageModelError(str(path), "holds no word", "a text file with a word on each line")
    return words


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """What a search adds to the model's own score.

    Attributes:
        lm: a language model, ``.arpa``, ``.arpa.gz`` or a KenLM binary; null for none.
        lm_unit: ``word`` scores words where they end, ``label`` every label of the vocabulary.
        lm_weight: of its log-probabilities.
        word_score, label_score: added for each word and for each label.
        unknown_score: added for each word that neither lexicon nor language model has; null allows none.
        lexicon: a file with the words that count as known, one a line; null takes the language model's.
        hotwords: phrases to expect.
        hotword_score: added for each of their characters.
    """

    lm: str | None
    lm_unit: Literal["word", "label"]
    lm_weight: float
    word_score: float
    label_score: float
    unknown_score: float | None
    lexicon: str | None
    hotwords: list[str]
    hotword_score: float

    def parts(self, labels: Sequence[str | None]) -> list[Automaton]:
        """The automata, over labels spelt as text.

        Raises:
            LanguageModelError: a file is missing or wrong, or nothing of it can be spelt with these labels.
        """
        parts: list[Automaton] = []
        model = None if self.lm is None else read_language_model(Path(self.lm))
        if model is not None and self.lm_unit == "label":
            if not isinstance(model, NGram):
                what = "is a KenLM binary, which does not list its words"
                raise LanguageModelError(str(self.lm), what, "give the ARPA file of a model over labels")
            parts.append(LabelNGram(model, labels, weight=self.lm_weight))
        over_words: WordModel | None = model if self.lm_unit == "word" else None
        if over_words is not None or self.lexicon is not None or self.word_score != 0:
            parts.append(self._words(over_words, labels))
        if self.hotwords:
            _check_spelling(self.hotwords, labels, "decoder.hotwords")
            parts.append(Hotwords(labels, self.hotwords, bonus=self.hotword_score))
        if self.label_score != 0:
            parts.append(LabelBonus(labels, bonus=self.label_score))
        return parts

    def _words(self, model: WordModel | None, labels: Sequence[str | None]) -> Words:
        vocabulary: dict[str, float] | None = model.unigrams() if isinstance(model, NGram) else None
        if self.lexicon is not None:
            listed = read_lexicon(Path(self.lexicon))
            _check_spelling(listed, labels, self.lexicon)
            hopes = {} if vocabulary is None else vocabulary
            vocabulary = {word: hopes.get(word, 0.0) for word in listed}
        elif vocabulary is not None:
            _check_spelling(list(vocabulary), labels, str(self.lm))
        return Words(
            labels,
            model=model,
            weight=self.lm_weight,
            word_score=self.word_score,
            unknown_score=-math.inf if self.unknown_score is None else self.unknown_score,
            vocabulary=vocabulary,
            unknown_alike=model is None or self.lexicon is None,
        )


def _check_spelling(words: Sequence[str], labels: Sequence[str | None], where: str) -> None:
    """Refuse words of which none can be spelt: most often upper case against lower."""
    characters = {character for label in labels if label is not None for character in label}
    if not any(set(word) - {" "} <= characters for word in words):
        what = f"none of its {len(words)} words, such as {words[0]!r}, can be spelt with the model's labels"
        shown = "".join(sorted(characters))[:40]
        raise LanguageModelError(where, what, f"the labels are made of {shown!r}: is the case the same?")
