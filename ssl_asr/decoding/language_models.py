"""Language models, lexicons and hotwords from files, as parts of a fusion."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ssl_asr.decoding.fusion import Automaton, Hotwords, LabelBonus, LabelNGram, WordModel, Words
from ssl_asr.decoding.neural_lm import LabelNeural, NeuralLM
from ssl_asr.decoding.ngram import NGram
from ssl_asr.errors import LanguageModelError, missing_extra
from ssl_asr.textfiles import is_hub_name

_KENLM_MAGIC = b"mmap lm http://kheafield.com/code"


class KenLM:
    """A KenLM binary behind the `WordModel` contract, through the ``kenlm`` package.

    Args:
        path: of the binary.

    Raises:
        ConfigError: the package kenlm is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import kenlm
        except ImportError:
            raise missing_extra(f"{path} (a KenLM binary)", "kenlm", "kenlm", "give the ARPA file") from None
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


def read_language_model(source: str | Path) -> NGram | KenLM | NeuralLM:
    """The model of an ARPA file, gzipped or not, of a KenLM binary, or a causal one of transformers.

    Args:
        source: a file, a folder, or a name on the Hugging Face Hub.

    Raises:
        LanguageModelError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return _read(str(path), path.stat().st_mtime_ns)
    if path.is_dir() or is_hub_name(str(source)):
        return _read(str(source), 0)
    raise LanguageModelError(str(source), "no such language model", "make one with ssl-asr lm")


@lru_cache(maxsize=2)
def _read(source: str, _: int) -> NGram | KenLM | NeuralLM:
    """The model of a file as it was at some time: a search with other weights need not read it again."""
    path = Path(source)
    if not path.is_file():
        return NeuralLM.load(source)
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
class Rescoring:
    """A second look at the best texts of a search, by a language model that reads each whole.

    Attributes:
        rescore_lm: a language model (see `FusionOptions`); null for no second look.
        rescore_best: so many texts are looked at, or as many as the beam holds.
        rescore_weight: of the model's log-probability of a text, beside what the search ranked it by.
        rescore_word_score: added for each word.
        rescore_lower: whether the model reads texts in lower case.
    """

    rescore_lm: str | None = None
    rescore_best: int = 16
    rescore_weight: float = 0.5
    rescore_word_score: float = 0.0
    rescore_lower: bool = False

    def searched(self, n_best: int) -> int:
        """How many texts a search is to find so that ``n_best`` can be chosen."""
        return n_best if self.rescore_lm is None else max(n_best, self.rescore_best)

    def rescorer(self) -> "Rescorer | None":
        """What looks again; None where nothing does.

        Raises:
            LanguageModelError: there is no such language model.
        """
        return None if self.rescore_lm is None else Rescorer(self, read_language_model(self.rescore_lm))


class Rescorer:
    """Ranks texts anew, by what a language model thinks of each as a whole.

    Args:
        options: its weights.
        model: the language model.
    """

    def __init__(self, options: Rescoring, model: NGram | KenLM | NeuralLM) -> None:
        self.options, self.model = options, model

    def log_probs(self, texts: Sequence[str]) -> list[float]:
        """What the language model thinks of each text, its end included."""
        read = [text.lower() for text in texts] if self.options.rescore_lower else list(texts)
        return self.model.texts(read) if isinstance(self.model, NeuralLM) else [self._words(text) for text in read]

    def added(self, texts: Sequence[str]) -> list[float]:
        """What each text gets beside its log-probability by the search."""
        weight, word_score = self.options.rescore_weight, self.options.rescore_word_score
        pairs = zip(self.log_probs(texts), texts, strict=True)
        return [weight * log_prob + word_score * len(text.split()) for log_prob, text in pairs]

    def _words(self, text: str) -> float:
        model: WordModel = self.model
        state, total = model.begin, 0.0
        for word in text.split():
            log_prob, state = model.score(state, word)
            total += log_prob
        return total + model.end(state)

    def ranked(
        self, texts: Sequence[str], scores: Sequence[float], *, divisors: Sequence[float]
    ) -> list[tuple[int, float]]:
        """Places of texts, best first, with their new scores.

        Args:
            texts: that a search found.
            scores: what it ranked them by.
            divisors: what log-probabilities were divided by to get there (frames, or tokens to some power).
        """
        rows = zip(scores, self.added(texts), divisors, strict=True)
        new = [score + added / divisor for score, added, divisor in rows]
        return sorted(enumerate(new), key=lambda pair: -pair[1])


@dataclass(frozen=True, kw_only=True)
class FusionOptions(Rescoring):
    """What a search adds to the model's own score, and the second look at what it found.

    Attributes:
        lm: a language model: ``.arpa``, ``.arpa.gz`` or a KenLM binary, or a causal model of transformers by its folder
            or its name on the Hub; null for none.
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

    def parts(self, labels: Sequence[str | None], tokens: Sequence[str | None] | None = None) -> list[Automaton]:
        """The automata, over labels spelt as text.

        Args:
            labels: as words and hotwords are spelt with them.
            tokens: as a model over the labels themselves has them, if that is otherwise.

        Raises:
            LanguageModelError: a file is missing or wrong, or nothing of it can be spelt with these labels.
        """
        parts: list[Automaton] = []
        model = None if self.lm is None else read_language_model(self.lm)
        if isinstance(model, NeuralLM) and self.lm_unit == "label":
            parts.append(LabelNeural(model, labels if tokens is None else tokens, weight=self.lm_weight))
        elif model is not None and self.lm_unit == "label":
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
        vocabulary = model.vocabulary if isinstance(model, NGram) else None
        if self.lexicon is not None:
            listed = read_lexicon(Path(self.lexicon))
            _check_spelling(listed, labels, self.lexicon)
            vocabulary = frozenset(listed)
        elif vocabulary is not None:
            _check_spelling(sorted(vocabulary), labels, str(self.lm))
        return Words(
            labels,
            model=model,
            weight=self.lm_weight,
            word_score=self.word_score,
            unknown_score=-math.inf if self.unknown_score is None else self.unknown_score,
            vocabulary=vocabulary,
            unknown_log_prob=model.unknown_log_prob if isinstance(model, NGram) else 0.0,
            unknown_alike=model is None or self.lexicon is None,
        )


def _check_spelling(words: Sequence[str], labels: Sequence[str | None], where: str) -> None:
    """Refuse words of which none can be spelt: most often upper case against lower."""
    characters = {character for label in labels if label is not None for character in label}
    if not any(set(word) - {" "} <= characters for word in words):
        what = f"none of its {len(words)} words, such as {words[0]!r}, can be spelt with the model's labels"
        shown = "".join(sorted(characters))[:40]
        raise LanguageModelError(where, what, f"the labels are made of {shown!r}: is the case the same?")
