"""Back-off n-gram language models, and their ARPA files.

For a word ``w`` after a context ``h``, and ``h'`` the context without its first word::

    log p(w | h) = stored(h w)                         if the n-gram h w is stored
                   backoff(h) + log p(w | h')          otherwise; backoff(h) = 0 if h is not stored

The n-grams of one length are arrays, sorted by context and word. An n-gram takes a few tens of bytes, and a lookup is
one binary search per length. Log-probabilities are natural logarithms in memory and base 10 in files.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_asr.decoding.arpa import BEGIN, END, LN10, UNKNOWN, Arpa, Float64s, Int64s, find_mark, format_number, is_mark
from ssl_asr.decoding.ngram_table import NGramArrays
from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import LanguageModelError
from ssl_asr.textfiles import read_lines, written_whole

# Log-probability of an out-of-vocabulary word if the file has no <unk>.
_NO_UNKNOWN = -100.0 * LN10

Bools = NDArray[np.bool_]
Grams = tuple[Int64s, Float64s, Float64s]
"""``(words_NK, log_probs_N, backoffs_N)`` of the n-grams of length K, natural logarithms."""


@dataclass(frozen=True, slots=True)
class _Order:
    """The n-grams of one length, sorted by key. A key is ``context node * number of words + last word``.

    ``suffixes_N`` are nodes: the longest stored n-gram that each n-gram ends in, itself excluded.
    """

    keys_N: Int64s
    log_probs_N: Float64s
    backoffs_N: Float64s
    suffixes_N: Int64s


class NGram(WordModel[int]):
    r"""A back-off n-gram model.

    Every stored n-gram is a node. Node 0 is the empty context, and the nodes of all lengths are numbered through. A
    state is the node of the longest stored context of the words so far.

    A model may lack the context of one of its n-grams (pruning by SRILM leaves such models). The context is added, with
    the log-probability that back-off gives it and a back-off weight of 0, which changes no other score.

    The marks ``<s>``, ``</s>`` and ``<unk>`` may be in any case. Without ``</s>``, the end of a sentence scores 0.

    Args:
        words: All words in id order, with the marks.
        orders: ``(words_NK, log_probs_N, backoffs_N)`` for each length K from 1 on, natural logarithms. The unigrams
            are in id order.
        place: Takes a length and a row of ``orders``, and returns where the n-gram is, for messages.

    Raises:
        LanguageModelError: An n-gram is repeated.

    Example:
        >>> import math
        >>> lm = NGram.from_arpa_lines(
        ...     ["\\data\\", "ngram 1=3", "ngram 2=1", "", "\\1-grams:", "-99\t<s>\t-0.3", "-0.5\t</s>",
        ...      "-0.2\ta\t-0.1", "", "\\2-grams:", "-0.05\t<s> a", "", "\\end\\"]
        ... )
        >>> round(lm.sentence_log_prob(["a"]) / math.log(10), 2)
        -0.65
    """

    def __init__(
        self,
        words: Sequence[str],
        orders: Iterable[Grams],
        *,
        place: Callable[[int, int], str] = lambda _length, _row: "language model",
    ) -> None:
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}
        begin, end, unknown = (find_mark(self.words, mark) for mark in (BEGIN, END, UNKNOWN))
        self.unknown = -1 if unknown is None else self.index[unknown]
        self._begin, self._end = (-1 if mark is None else self.index[mark] for mark in (begin, end))
        self._orders: list[_Order] = []
        # First node of each length. The unigram of word w is node 1 + w.
        self._first = [1]
        self._build(list(orders), place)
        self.order = len(self._orders)
        self._backoffs_N, self._suffixes_N = self._backoffs(), self._all_suffixes()
        self._contexts_N = self._reduced(np.arange(self._first[-1]))

    # Building ----------------------------------------------------------------------------------------------

    def _build(self, orders: list[Grams], place: Callable[[int, int], str]) -> None:
        """Fill `_orders`, from the unigrams on. Where contexts are missing, go back and add them to the order below."""
        length = 1
        while length <= len(orders):
            words_NK = orders[length - 1][0]
            contexts_N = np.zeros(len(words_NK), dtype=np.int64)
            for k in range(length - 1):
                contexts_N = self._find(contexts_N, words_NK[:, k], k + 1)
            missing_N = contexts_N < 0
            if missing_N.any():
                length -= 1
                orders[length - 1] = _with_rows(orders[length - 1], np.unique(words_NK[missing_N, :-1], axis=0))
                del self._orders[length - 1 :], self._first[length:]
                continue
            self._orders.append(self._sorted_order(length, orders[length - 1], contexts_N, place))
            self._first.append(self._first[-1] + len(words_NK))
            length += 1

    def _sorted_order(self, length: int, grams: Grams, contexts_N: Int64s, place: Callable[[int, int], str]) -> _Order:
        """The n-grams of one length after these nodes. All shorter ones are already in place."""
        words_NK, log_probs_N, backoffs_N = grams
        keys_N = contexts_N * len(self.words) + words_NK[:, -1]
        by_key_N = np.argsort(keys_N, kind="stable")
        repeated_N = by_key_N[1:][np.diff(keys_N[by_key_N]) == 0]
        if len(repeated_N):
            row = int(repeated_N.min())
            what = f"the n-gram '{' '.join(self.words[w] for w in words_NK[row])}' is repeated"
            raise LanguageModelError(place(length, row), what, "keep one of the lines")
        suffixes_N = self._suffixes(contexts_N, words_NK[:, -1], length)
        if (added_N := np.isnan(log_probs_N)).any():
            log_probs_N = log_probs_N.copy()
            log_probs_N[added_N] = self._backed_off(contexts_N[added_N], words_NK[added_N, -1])
        return _Order(keys_N[by_key_N], log_probs_N[by_key_N], backoffs_N[by_key_N], suffixes_N[by_key_N])

    def _backed_off(self, contexts_N: Int64s, words_N: Int64s) -> Float64s:
        """Log-probabilities of words after nodes, by the n-grams that are shorter than the node and the word."""
        backoffs_N, suffixes_N, size = self._backoffs(), self._all_suffixes(), len(self.words)
        totals_N = np.zeros(len(words_N))
        for row, (context, word) in enumerate(zip(contexts_N.tolist(), words_N.tolist(), strict=True)):
            node, found = context, False
            while not found:
                totals_N[row] += backoffs_N[node]
                node = int(suffixes_N[node])
                order, key = self._orders[self._level(node)], node * size + word
                at = int(order.keys_N.searchsorted(key))
                found = at < len(order.keys_N) and int(order.keys_N[at]) == key
            totals_N[row] += order.log_probs_N[at]
        return totals_N

    def _backoffs(self) -> Float64s:
        """Back-off weight of each node."""
        return np.concatenate([[0.0], *(order.backoffs_N for order in self._orders)])

    def _all_suffixes(self) -> Int64s:
        """Longest suffix of each node."""
        return np.concatenate([[0], *(order.suffixes_N for order in self._orders)])

    def _find(self, contexts_N: Int64s, words_N: Int64s, length: int) -> Int64s:
        """Nodes of the n-grams of one length with these contexts and last words. -1 for n-grams not stored."""
        keys = self._orders[length - 1].keys_N
        wanted_N = contexts_N * len(self.words) + words_N
        at_N = np.searchsorted(keys, wanted_N)
        found_N = keys[np.minimum(at_N, len(keys) - 1)] == wanted_N if len(keys) else np.zeros(len(at_N), bool)
        return np.where(found_N & (contexts_N >= 0), at_N + self._first[length - 1], -1)

    def _suffixes(self, contexts_N: Int64s, words_N: Int64s, length: int) -> Int64s:
        """For each n-gram, the longest stored n-gram that it ends in, itself excluded.

        The n-gram is its context and a last word, so candidates are the suffixes of the context with the same last
        word, the longest first.
        """
        if length == 1:
            return np.zeros(len(words_N), dtype=np.int64)
        suffixes_of = self._all_suffixes()
        result_N = np.zeros(len(words_N), dtype=np.int64)
        open_N = np.arange(len(words_N))
        at_N = suffixes_of[contexts_N]
        while len(open_N):
            for k in range(length - 1):
                here = (at_N >= (0 if k == 0 else self._first[k - 1])) & (at_N < (1 if k == 0 else self._first[k]))
                nodes_N = self._find(at_N[here], words_N[open_N[here]], k + 1)
                result_N[open_N[here]] = np.maximum(nodes_N, 0)
            left = (result_N[open_N] == 0) & (at_N != 0)
            open_N, at_N = open_N[left], suffixes_of[at_N[left]]
        return result_N

    def _reduced(self, nodes_N: Int64s) -> Int64s:
        """The state after each node: its longest suffix that has longer n-grams or a back-off weight.

        Two texts with the same state get the same scores from there on, so that a search can treat them as one.
        """
        has_children = np.zeros(len(nodes_N), dtype=bool)
        for order in self._orders:
            has_children[order.keys_N // len(self.words)] = True
        matters_N = has_children | (self._backoffs_N != 0.0)
        matters_N[0] = True
        states_N = nodes_N.copy()
        while (idle_N := ~matters_N[states_N]).any():
            states_N[idle_N] = self._suffixes_N[states_N[idle_N]]
        return states_N

    # Scoring -----------------------------------------------------------------------------------------------

    @property
    def begin(self) -> int:
        """State at the start of a sentence."""
        return 0 if self._begin < 0 else int(self._contexts_N[1 + self._begin])

    def _level(self, node: int) -> int:
        """Number of words of a node."""
        return 0 if node == 0 else bisect_right(self._first, node)

    def step(self, state: int, word: int) -> tuple[float, int]:
        """Log-probability of a word id after a state, and the next state. The id -1 is an out-of-vocabulary word."""
        word = self.unknown if word < 0 else word
        if word < 0:
            return self._to_root(state) + _NO_UNKNOWN, 0
        total, size = 0.0, len(self.words)
        while True:
            level = self._level(state)
            if level < self.order:
                order, key = self._orders[level], state * size + word
                at = int(order.keys_N.searchsorted(key))
                if at < len(order.keys_N) and order.keys_N[at] == key:
                    return total + float(order.log_probs_N[at]), int(self._contexts_N[self._first[level] + at])
            assert state != 0, "every word is a unigram"
            total += float(self._backoffs_N[state])
            state = int(self._suffixes_N[state])

    def _to_root(self, state: int) -> float:
        """Sum of all back-off weights from a state down to the empty context."""
        total = 0.0
        while state != 0:
            total += float(self._backoffs_N[state])
            state = int(self._suffixes_N[state])
        return total

    def score(self, state: int, word: str) -> tuple[float, int]:
        """Log-probability of a word after a state, and the next state."""
        return self.step(state, self.index.get(word, -1))

    def end(self, state: int) -> float:
        """Log-probability of the end of the sentence. 0 if the model has no ``</s>``."""
        return 0.0 if self._end < 0 else self.step(state, self._end)[0]

    def has_word(self, word: str) -> bool:
        """Whether a word is in the vocabulary. Marks are not."""
        return word in self.index and not is_mark(word)

    @property
    def vocabulary(self) -> frozenset[str]:
        """All words without marks."""
        return frozenset(word for word in self.words if not is_mark(word))

    @property
    def unknown_log_prob(self) -> float:
        """Log-probability of an out-of-vocabulary word, out of context."""
        return float(self.step(0, -1)[0])

    def row(self, state: int) -> Float64s:
        """Log-probabilities of all words after a state, in id order.

        Starts from the unigrams. Each longer context adds its back-off weight and replaces the n-grams it stores.
        """
        chain = []
        while state != 0:
            chain.append(state)
            state = int(self._suffixes_N[state])
        row_V = self._orders[0].log_probs_N.copy()
        size = len(self.words)
        for node in reversed(chain):
            row_V += self._backoffs_N[node]
            level = self._level(node)
            if level < self.order:
                keys = self._orders[level].keys_N
                low, high = np.searchsorted(keys, [node * size, (node + 1) * size])
                row_V[keys[low:high] - node * size] = self._orders[level].log_probs_N[low:high]
        return row_V

    def arrays(self) -> NGramArrays:
        """The model for lookups on a device. The state numbers differ from those of `step`."""
        size, words = len(self.words), len(self.words) + 1
        # np.unique takes ten times as long.
        is_state_N = np.zeros(len(self._contexts_N), dtype=bool)
        is_state_N[self._contexts_N] = True
        states_S = np.flatnonzero(is_state_N)
        chains, sums = [states_S], [np.zeros(len(states_S))]
        while chains[-1].any():
            sums.append(sums[-1] + self._backoffs_N[chains[-1]])
            chains.append(self._suffixes_N[chains[-1]])
        keys_M = np.concatenate([order.keys_N // size * words + order.keys_N % size for order in self._orders])
        log_probs_M = np.concatenate([order.log_probs_N for order in self._orders])
        nexts_M = np.searchsorted(states_S, self._contexts_N[1:])
        # Without <unk>, an unknown word is one more unigram.
        if self.unknown < 0:
            keys_M, nexts_M = np.insert(keys_M, size, size), np.insert(nexts_M, size, 0)
            log_probs_M = np.insert(log_probs_M, size, _NO_UNKNOWN)
        return NGramArrays(
            keys_M=keys_M,
            log_probs_M=log_probs_M,
            nexts_M=nexts_M,
            chains_SR=np.stack(chains, axis=1),
            backoffs_SR=np.stack(sums, axis=1),
            words=words,
            ids=self.index,
            begin=int(np.searchsorted(states_S, self.begin)),
            end=None if self._end < 0 else self._end,
            unknown=size if self.unknown < 0 else self.unknown,
        )

    def sentence_log_prob(self, words: Iterable[str]) -> float:
        """Log-probability of a sentence with its end."""
        state, total = self.begin, 0.0
        for word in words:
            log_prob, state = self.score(state, word)
            total += log_prob
        return total + self.end(state)

    def counts(self) -> list[int]:
        """Number of n-grams of each length."""
        return [len(order.keys_N) for order in self._orders]

    # Files -------------------------------------------------------------------------------------------------

    def _words_of(self, node: int) -> list[int]:
        """The word ids of a node."""
        words: list[int] = []
        while node != 0:
            level = self._level(node)
            key = int(self._orders[level - 1].keys_N[node - self._first[level - 1]])
            node, word = divmod(key, len(self.words))
            words.append(word)
        return words[::-1]

    def arpa_lines(self) -> Iterator[str]:
        """The lines of an ARPA file."""
        yield "\\data\\"
        yield from (f"ngram {k}={count}" for k, count in enumerate(self.counts(), start=1))
        for k, order in enumerate(self._orders, start=1):
            yield ""
            yield f"\\{k}-grams:"
            for i in range(len(order.keys_N)):
                text = " ".join(self.words[w] for w in self._words_of(self._first[k - 1] + i))
                line = f"{format_number(float(order.log_probs_N[i]))}\t{text}"
                yield line if k == self.order else f"{line}\t{format_number(float(order.backoffs_N[i]))}"
        yield ""
        yield "\\end\\"

    def write_arpa(self, path: Path) -> None:
        """Write an ARPA file, gzipped if its name ends in ``.gz``. On an error, no file is left behind."""
        with written_whole(path) as file:
            file.writelines(f"{line}\n" for line in self.arpa_lines())

    @classmethod
    def from_arpa(cls, path: Path) -> "NGram":
        """Read an ARPA file, ``.arpa`` or ``.arpa.gz``.

        Raises:
            LanguageModelError: The file cannot be read, or a line is wrong. The message names the line.
        """
        remedy = "give an ARPA file, for example one that ssl-asr lm made"
        return cls._of(Arpa(read_lines(path, error=LanguageModelError, remedy=remedy), str(path)))

    @classmethod
    def from_arpa_lines(cls, lines: Iterable[str], where: str = "arpa") -> "NGram":
        """The model in the lines of an ARPA file.

        Raises:
            LanguageModelError: A line is wrong.
        """
        return cls._of(Arpa(enumerate(lines, start=1), where))

    @classmethod
    def _of(cls, arpa: Arpa) -> "NGram":
        return cls(arpa.words, arpa.orders(), place=arpa.place)


def _with_rows(grams: Grams, words_NK: Int64s) -> Grams:
    """The n-grams with more of them, whose log-probability is not known yet (NaN)."""
    old_NK, log_probs_N, backoffs_N = grams
    return (
        np.concatenate([old_NK, words_NK]),
        np.concatenate([log_probs_N, np.full(len(words_NK), np.nan)]),
        np.concatenate([backoffs_N, np.zeros(len(words_NK))]),
    )
