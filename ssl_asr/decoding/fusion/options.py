"""Options of shallow fusion, which decoders inherit, and the automata that they describe."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_asr.console import notify, shortened
from ssl_asr.decoding.files import LanguageModelName, TextFile, read_entries, read_phrases
from ssl_asr.decoding.fusion.automata import Automaton, LabelBonus, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.spelling import Speller, spelled
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.language_models import KenLM, read_language_model
from ssl_asr.decoding.neural_lm import LabelNeural, NeuralLM
from ssl_asr.decoding.ngram import NGram
from ssl_asr.decoding.rescoring import Rescoring
from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import LanguageModelError


@dataclass(frozen=True, kw_only=True)
class FusionOptions(Rescoring):
    """Scores that a search adds to the score of the acoustic model, and the rescoring of its n-best list.

    Attributes:
        lm: language model: ``.arpa``, ``.arpa.gz``, a KenLM binary, or a causal language model of transformers by its
            folder or its name on the Hugging Face Hub. null for none.
        lm_unit: ``word`` scores words where they end, ``label`` scores every label of the vocabulary.
        lm_weight: weight of the language model's log-probabilities.
        word_score: score added for each word.
        label_score: score added for each label.
        unknown_score: score added for each word that is not in the lexicon, or without a lexicon, not in the language
            model. null forbids these words.
        lexicon: text file of the known words, one per line; only the first field of a line is read. null for the words
            of the language model.
        hotwords: expected phrases, and text files with a phrase per line.
        hotword_score: score added for each character of an expected phrase.
    """

    lm: LanguageModelName | None
    lm_unit: Literal["word", "label"]
    lm_weight: float
    word_score: float
    label_score: float
    unknown_score: float | None
    lexicon: TextFile | None
    hotwords: list[str]
    hotword_score: float

    def parts(
        self,
        labels: Sequence[str | None],
        tokens: Sequence[str | None] | None = None,
        phrase_text: Callable[[str], str] = str,
    ) -> list[Automaton[Any]]:
        """The automata of these options.

        Args:
            labels: Spelling of each label for words and hotwords. None for ids that no text contains.
            tokens: Spelling of each label for a neural language model over labels. None for `labels`.
            phrase_text: Text that is scored in place of an expected phrase.

        Raises:
            LanguageModelError: A file is missing or wrong, or no word in it can be spelled with these labels.
        """
        parts: list[Automaton[Any]] = []
        model = None if self.lm is None else read_language_model(self.lm)
        word_model: WordModel[Any] | None = model if self.lm_unit == "word" else None
        if model is not None and self.lm_unit == "label":
            parts.append(self._label_model(model, labels, labels if tokens is None else tokens))
        if word_model is not None or self.lexicon is not None or self.word_score != 0:
            parts.append(self._words(word_model, labels))
        if self.hotwords:
            effect = "have no effect"
            phrases = [phrase_text(phrase) for phrase in read_phrases(self.hotwords)]
            hotwords = spelled(phrases, Speller(labels), where="decoder.hotwords", kind="phrases", effect=effect)
            parts.append(Hotwords(labels, hotwords, bonus=self.hotword_score))
        if self.label_score != 0:
            parts.append(LabelBonus(labels, bonus=self.label_score))
        return parts

    def _label_model(
        self, model: NGram | KenLM | NeuralLM, labels: Sequence[str | None], tokens: Sequence[str | None]
    ) -> Automaton[Any]:
        if isinstance(model, NeuralLM):
            return LabelNeural(model, tokens, weight=self.lm_weight)
        if isinstance(model, NGram):
            return LabelNGram(model, labels, weight=self.lm_weight)
        what = "is a KenLM binary, which does not list its words"
        raise LanguageModelError(str(self.lm), what, "give the ARPA file of a model over labels")

    def _words(self, model: WordModel[Any] | None, labels: Sequence[str | None]) -> Words:
        vocabulary = None if model is None else model.vocabulary
        effect = "are never written"
        if self.lexicon is not None:
            words = read_lexicon(Path(self.lexicon))
            words = spelled(words, Speller(labels), where=self.lexicon, kind="words", effect=effect)
            _name_unscored(words, model, self.lexicon)
            vocabulary = frozenset(words)
        elif vocabulary is not None:
            spelled(sorted(vocabulary), Speller(labels), where=str(self.lm), kind="words", effect=effect)
        return Words(
            labels,
            model=model,
            weight=self.lm_weight,
            word_score=self.word_score,
            unknown_score=-math.inf if self.unknown_score is None else self.unknown_score,
            vocabulary=vocabulary,
            unknown_log_prob=0.0 if model is None else model.unknown_log_prob,
            unknown_alike=model is None or self.lexicon is None,
        )


def read_lexicon(path: Path) -> list[str]:
    """Words of a lexicon file: the first field of each line, repeated words once.

    Warns of lines with further fields that do not spell the word, as in a list of phrases or of pronunciations.

    Raises:
        LanguageModelError: There is no such file, a line is not text, or the file contains no word.
    """
    remedy = "give a UTF-8 text file with one word per line"
    entries = list(read_entries(path, remedy=remedy))
    if not entries:
        raise LanguageModelError(str(path), "contains no word", remedy)
    longer = [f"{number}: {' '.join(fields)}" for number, fields in entries if not _spells(*fields)]
    if longer:
        what = "a lexicon has one word per line, so only the first field of these lines is used"
        notify(f"{path}: {what}: {shortened(longer, shown=5)}.")
    return list(dict.fromkeys(fields[0] for _, fields in entries))


def _spells(word: str, *labels: str) -> bool:
    """Whether the fields after a word are its characters, and perhaps the mark of its end."""
    return "".join(labels).removesuffix("|") in ("", word)


def _name_unscored(words: Sequence[str], model: WordModel[Any] | None, where: str) -> None:
    """Warn of words that a language model lacks, if it has no price for unknown words."""
    if isinstance(model, NGram) and model.unknown < 0:
        lacking = [word for word in words if not model.has_word(word)]
        if lacking:
            what = "the language model has neither these words nor <unk>, so they are almost never written"
            notify(f"{where}: {what}: {shortened(lacking)}.")
