"""The interface of language models over words."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import ClassVar, Generic, TypeVar

from ssl_asr.decoding.ngram_table import NGramArrays

StateT = TypeVar("StateT", bound=Hashable)


class WordModel(ABC, Generic[StateT]):
    """A language model over words.

    A state stands for the words so far. States are hashable, and equal states give equal scores. Log-probabilities are
    natural logarithms::

        log p(w1 w2 ... wn) = score(begin, w1) + score(s1, w2) + ... + end(sn)
    """

    batched: ClassVar[bool] = False
    """Whether `prefetch` is faster than one call of `score` after another."""

    @property
    @abstractmethod
    def begin(self) -> StateT:
        """State before the first word."""

    @abstractmethod
    def score(self, state: StateT, word: str) -> tuple[float, StateT]:
        """Log-probability of a word after a state, and the next state."""

    @abstractmethod
    def end(self, state: StateT) -> float:
        """Log-probability of the end of the text after a state."""

    @abstractmethod
    def has_word(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""

    @property
    def vocabulary(self) -> frozenset[str] | None:
        """All words of the vocabulary, without sentence marks. None if the model does not list them."""
        return None

    @property
    def unknown_log_prob(self) -> float:
        """Log-probability of an out-of-vocabulary word, out of context. 0 if the model does not list its words."""
        return 0.0

    def arrays(self) -> NGramArrays | None:
        """The model for lookups on a device. None if it is not an n-gram model with a list of its n-grams."""
        return None

    def prefetch(self, pairs: Sequence[tuple[StateT, str]]) -> None:
        """Prefetch hook: called with the states and words that `score` will be asked for next. No-op by default."""
        return

    def text_log_probs(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each whole text, its end included. Words are separated by spaces."""
        return [self._text_log_prob(text) for text in texts]

    def _text_log_prob(self, text: str) -> float:
        state, total = self.begin, 0.0
        # Words may have other characters that `str.split` takes for spaces.
        for word in filter(None, text.split(" ")):
            log_prob, state = self.score(state, word)
            total += log_prob
        return total + self.end(state)
