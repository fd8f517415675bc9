"""Scores of whole words: a language model over words, a score for each word, and a vocabulary.

A key is ``(state, partial)``: the language model's state after the finished words, and the letters of the unfinished
word. A word is scored where it ends::

    label      t     h     e     " "    c     a     t    end
    partial    t     th    the   ""     c     ca    cat
    state      s0    s0    s0    s1     s1    s1    s1          s1 = state after "the"
    score      0     0     0     w      0     0     0    w' + e

    w = weight * log p("the" | s0) + word_score,   e = weight * log p(end | s2)

Out-of-vocabulary spellings would fill the beam if they cost nothing before they end. So their price ``p`` is charged at
the first letter with which no word of the vocabulary continues, and refunded where the word ends and gets its real
score ``w``::

    label      t     h     x     y     " "
    score      0     0     p     0     w - p          p = unknown_score + weight * unknown_log_prob

A vocabulary may be smaller than the language model's (a lexicon of commands, for instance). A spelling with which no
word of the vocabulary continues, but a word of the language model, is charged ``p = unknown_score`` only. The language
model charges its own price for the word where it ends, in its context, as for every word that it knows.

Known words cost nothing before they end. Charging the best unigram of a prefix in advance found hypotheses of higher
score with more errors in them.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.state_tables import StateTable
from ssl_asr.decoding.fusion.word_tables import SpellingNodes, WordTable, prefixes
from ssl_asr.decoding.ngram_table import NGramTable
from ssl_asr.decoding.word_model import WordModel

# Both caches are cleared when they exceed these sizes: spelling rows (in cells), and scores of words after states.
_MAX_SPELLING_CELLS = 10_000_000
_MAX_SCORED_WORDS = 1_000_000

# Stands for every partial word that no known word begins with. No label contains it.
_UNKNOWN_PARTIAL = "\0"

# Language model state, and the letters of the unfinished word.
WordKey = tuple[Any, str]


class Words(Automaton[WordKey]):
    """Scores of whole words. Every spelling is allowed unless `unknown_score` is minus infinity.

    Args:
        labels: Spelling of each label. None for ids that no text contains.
        model: Language model over words. None for no language model.
        weight: Weight of its log-probabilities.
        word_score: Score added for each word.
        unknown_score: Score added for each word outside the vocabulary. Minus infinity forbids these words.
        vocabulary: Known words. None if the model does not list them (KenLM binaries).
        unknown_log_prob: Log-probability that the model gives an out-of-vocabulary word, out of context.
        unknown_alike: Whether the model scores all out-of-vocabulary words the same. Then their spelling is not part of
            the key, which saves most of the keys.
    """

    def __init__(
        self,
        labels: Sequence[str | None],
        *,
        model: WordModel[Any] | None,
        weight: float,
        word_score: float,
        unknown_score: float,
        vocabulary: Collection[str] | None,
        unknown_log_prob: float = 0.0,
        unknown_alike: bool = False,
    ) -> None:
        self.labels, self.model, self.weight = labels, model, weight
        self.word_score, self.unknown_score = word_score, unknown_score
        self.unknown_alike = unknown_alike and vocabulary is not None
        self._unknown_price = unknown_score + weight * unknown_log_prob
        self._vocabulary = None if vocabulary is None else frozenset(vocabulary)
        self._prefixes = None if vocabulary is None else prefixes(vocabulary)
        listed = None if model is None else model.vocabulary
        # Prefixes of words that the language model knows and the vocabulary lacks.
        self._model_prefixes: frozenset[str] = frozenset()
        if self._vocabulary is not None and listed is not None and unknown_score > -math.inf:
            self._model_prefixes = prefixes(listed - self._vocabulary)
        # Labels that end a word with their first character (" ", " the"), and labels with letters before a space.
        starts_word = [label is not None and label.startswith(" ") for label in labels]
        self._ends_word_V = np.array(starts_word)
        self._inner_space = frozenset(
            i for i, label in enumerate(labels) if label and " " in label and not starts_word[i]
        )
        self._rows: dict[str, Float64s] = {}
        self._finished: dict[WordKey, tuple[float, Any]] = {}

    @property
    def begin(self) -> WordKey:
        """No finished word, and an empty partial word."""
        return (None if self.model is None else self.model.begin, "")

    def prefetch(self, keys: Sequence[WordKey]) -> None:
        """Let a batched language model score the words that these keys would finish."""
        if self.model is not None and self.model.batched:
            pairs = dict.fromkeys((state, partial) for state, partial in keys if partial and self._is_allowed(partial))
            self.model.prefetch([pair for pair in pairs if pair not in self._finished])

    def rows(self, keys: Sequence[WordKey]) -> Float64s:
        """Score of each label after each key, ``(N, V)``."""
        spelling_NV = np.stack([self._spelling_row(partial) for _, partial in keys])
        return self._add_word_ends(keys, spelling_NV, range(len(self.labels)), self._ends_word_V)

    def scores(self, key: WordKey, labels: Sequence[int]) -> Float64s:
        """Score of each of these labels after one key, ``(C,)``."""
        spelling_C = self._spelling(key[1], labels)
        scores_C: Float64s = self._add_word_ends([key], spelling_C[None], labels, self._ends_word_V[list(labels)])[0]
        return scores_C

    def advance(self, key: WordKey, label: int) -> WordKey:
        """Key after a label."""
        state, partial = key
        text = self.labels[label]
        assert text is not None
        head, space, rest = text.partition(" ")
        if space:
            state = self._finish(state, partial + head)[1]
        partial = rest if space else partial + text
        if partial and self.unknown_alike and self._prefixes is not None and partial not in self._prefixes:
            partial = _UNKNOWN_PARTIAL
        return (state, partial)

    def end(self, key: WordKey) -> float:
        """Score of the last word and of the end, less the price that was charged in advance."""
        state, partial = key
        total, state = self._finish(state, partial)
        return total - self._charged(partial) + (0.0 if self.model is None else self.weight * self.model.end(state))

    def table(self, device: torch.device) -> StateTable | None:
        """See `Automaton`. None if the model has no table, or if a label has letters before a space."""
        arrays = None if self.model is None else self.model.arrays()
        if self._inner_space or (self.model is not None and arrays is None):
            return None
        spellings = frozenset() if self._prefixes is None else self._prefixes
        words_of_model = {} if arrays is None else arrays.ids
        if not self.unknown_alike and self.unknown_score > -math.inf:
            spellings |= prefixes(words_of_model.keys())
        texts = ["", *sorted(spellings), _UNKNOWN_PARTIAL]
        unknown = 0 if arrays is None else arrays.unknown
        known = [self._is_known(text) for text in texts]
        # Words that are scored alike have one id.
        ids = [
            words_of_model.get(text, unknown) if own or not self.unknown_alike else unknown
            for text, own in zip(texts, known, strict=True)
        ]
        finish_N = self.word_score + np.where(known, 0.0, self.unknown_score)
        finish_N[0] = 0.0
        nodes = SpellingNodes(
            texts=texts,
            charged_N=np.array([self._charged(text) for text in texts]),
            finish_N=finish_N,
            words_N=np.array(ids),
        )
        model = None if arrays is None else NGramTable(arrays, weight=self.weight, device=device)
        return WordTable(nodes, self.labels, model, device)

    def _is_known(self, word: str) -> bool:
        return (
            word in self._vocabulary
            if self._vocabulary is not None
            else self.model is None or self.model.has_word(word)
        )

    def _is_allowed(self, word: str) -> bool:
        return self.unknown_score > -math.inf or self._is_known(word)

    def _charged(self, partial: str) -> float:
        """Price charged in advance for a partial word: 0 while a known word begins with it."""
        if not partial or self._prefixes is None or partial in self._prefixes:
            return 0.0
        return self.unknown_score if partial in self._model_prefixes else self._unknown_price

    def _add_word_ends(
        self, keys: Sequence[WordKey], spelling_NC: Float64s, labels: Sequence[int], ends_word_C: NDArray[np.bool_]
    ) -> Float64s:
        """Add the score of the word that each label ends to the score of its spelling."""
        ends_N = np.array([self._finish(state, partial)[0] for state, partial in keys])
        rows_NC = spelling_NC + np.where(ends_word_C, ends_N[:, None], 0.0)
        if not self._inner_space:
            return rows_NC
        # A label "b a" ends the word partial + "b", so its score depends on its own letters.
        for column, label in enumerate(labels):
            if label in self._inner_space:
                head = str(self.labels[label]).partition(" ")[0]
                rows_NC[:, column] += [self._finish(state, partial + head)[0] for state, partial in keys]
        return rows_NC

    def _spelling_row(self, partial: str) -> Float64s:
        row_V = self._rows.get(partial)
        if row_V is None:
            if len(self._rows) * len(self.labels) > _MAX_SPELLING_CELLS:
                self._rows.clear()
            row_V = self._rows[partial] = self._spelling(partial, range(len(self.labels)))
        return row_V

    def _spelling(self, partial: str, labels: Sequence[int]) -> Float64s:
        """Change of the price charged in advance by each label. It does not depend on the finished words."""
        charged = self._charged(partial)
        row_C = np.zeros(len(labels))
        for column, i in enumerate(labels):
            label = self.labels[i]
            if label is None:
                row_C[column] = -math.inf
            else:
                _, space, rest = label.partition(" ")
                row_C[column] = self._charged(rest if space else partial + label) - charged
        return row_C

    def _finish(self, state: Any, partial: str) -> tuple[float, Any]:
        """Score of a finished word, and the next state. An empty word scores 0 and keeps the state."""
        if not partial:
            return 0.0, state
        if self.unknown_alike and not self._is_known(partial):
            partial = _UNKNOWN_PARTIAL
        found = self._finished.get((state, partial))
        if found is None:
            if len(self._finished) > _MAX_SCORED_WORDS:
                self._finished.clear()
            found = self._finished[state, partial] = self._score(state, partial)
        return found

    def _score(self, state: Any, word: str) -> tuple[float, Any]:
        """`_finish` without the cache."""
        total = self._own_score(word)
        if self.model is not None and total > -math.inf:
            log_prob, state = self.model.score(state, word)
            total += self.weight * log_prob
        return total, state

    def _own_score(self, word: str) -> float:
        """Score of a finished word without the language model: minus infinity if the word is forbidden."""
        if not word:
            return 0.0
        return self.word_score + (0.0 if self._is_known(word) else self.unknown_score)
