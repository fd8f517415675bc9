"""Back-off n-gram language models, and their ARPA files.

For a word ``w`` after a context ``h``, and ``h'`` the context without its first word::

    log p(w | h) = stored(h w)                         if the n-gram h w is stored
                   backoff(h) + log p(w | h')          otherwise; backoff(h) = 0 if h is not stored

The n-grams of one length are arrays, sorted by context and word. An n-gram takes a few tens of bytes, and a lookup is
one binary search per length. Log-probabilities are natural logarithms in memory and base 10 in files.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import LanguageModelError
from ssl_asr.textfiles import open_text, written_whole

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
_LN10 = math.log(10.0)
# Log-probability of an out-of-vocabulary word if the file has no <unk>.
_NO_UNKNOWN = -100.0 * _LN10

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Bools = NDArray[np.bool_]


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

    Args:
        words: All words in id order, with ``<s>``, ``</s>`` and ``<unk>``.
        orders: ``(words_NK, log_probs_N, backoffs_N)`` for each length K from 1 on, natural logarithms. The unigrams
            are in id order.

    Raises:
        LanguageModelError: The context of an n-gram is not stored.

    Example:
        >>> lm = NGram.from_arpa_lines(
        ...     ["\\data\\", "ngram 1=3", "ngram 2=1", "", "\\1-grams:", "-99\t<s>\t-0.3", "-0.5\t</s>",
        ...      "-0.2\ta\t-0.1", "", "\\2-grams:", "-0.05\t<s> a", "", "\\end\\"]
        ... )
        >>> round(lm.sentence_log_prob(["a"]) / math.log(10), 2)
        -0.65
    """

    def __init__(self, words: Sequence[str], orders: Sequence[tuple[Int64s, Float64s, Float64s]]) -> None:
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.order = len(orders)
        self.unknown = self.index.get(UNKNOWN, -1)
        self._orders: list[_Order] = []
        # First node of each length. The unigram of word w is node 1 + w.
        self._first = [1]
        nodes_N = np.zeros(1, dtype=np.int64)
        for length, (words_NK, log_probs_N, backoffs_N) in enumerate(orders, start=1):
            self._orders.append(self._sorted_order(length, words_NK, log_probs_N, backoffs_N))
            self._first.append(self._first[-1] + len(words_NK))
            nodes_N = np.concatenate([nodes_N, self._first[-2] + np.arange(len(words_NK))])
        self._backoffs_N = np.concatenate([[0.0], *(order.backoffs_N for order in self._orders)])
        self._suffixes_N = np.concatenate([[0], *(order.suffixes_N for order in self._orders)])
        self._contexts_N = self._reduced(nodes_N)

    # Building ----------------------------------------------------------------------------------------------

    def _sorted_order(self, length: int, words_NK: Int64s, log_probs_N: Float64s, backoffs_N: Float64s) -> _Order:
        """The n-grams of one length. All shorter ones are already in place."""
        contexts_N = np.zeros(len(words_NK), dtype=np.int64)
        for k in range(length - 1):
            contexts_N = self._find(contexts_N, words_NK[:, k], k + 1)
        if (contexts_N < 0).any():
            row = int((contexts_N < 0).argmax())
            lacking = " ".join(self.words[w] for w in words_NK[row, :-1])
            what = f"has an n-gram after '{lacking}', but not '{lacking}' itself"
            raise LanguageModelError("language model", what, "build it again, without pruning contexts")
        keys_N = contexts_N * len(self.words) + words_NK[:, -1]
        by_key_N = np.argsort(keys_N, kind="stable")
        suffixes_N = self._suffixes(contexts_N, words_NK[:, -1], length)
        return _Order(keys_N[by_key_N], log_probs_N[by_key_N], backoffs_N[by_key_N], suffixes_N[by_key_N])

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
        suffixes_of = np.concatenate([[0], *(order.suffixes_N for order in self._orders)])
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
        start = self.index.get(BEGIN)
        return 0 if start is None else int(self._contexts_N[1 + start])

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
        """Log-probability of the end of the sentence."""
        return self.score(state, END)[0]

    def has_word(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""
        return self.index.get(word, self.unknown) != self.unknown

    @property
    def vocabulary(self) -> frozenset[str]:
        """All words without ``<s>``, ``</s>`` and ``<unk>``."""
        return frozenset(self.words) - {BEGIN, END, UNKNOWN}

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
                line = f"{max(-99.0, float(order.log_probs_N[i]) / _LN10):.7g}\t{text}"
                yield line if k == self.order else f"{line}\t{float(order.backoffs_N[i]) / _LN10:.7g}"
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
        try:
            with open_text(path, "rt") as file:
                return cls.from_arpa_lines(file, where=str(path))
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise LanguageModelError(str(path), f"cannot be read: {error}", "give an ARPA file") from None

    @classmethod
    def from_arpa_lines(cls, lines: Iterable[str], where: str = "arpa") -> "NGram":
        """The model in the lines of an ARPA file.

        Raises:
            LanguageModelError: A line is wrong.
        """
        reader = _ArpaReader()
        number = 0
        for number, raw in enumerate(lines, start=1):
            try:
                reader.read(raw.strip("\r\n "))
            except KeyError as error:
                remedy = "add the word to the unigrams"
                raise LanguageModelError(f"{where}:{number}", f"{error} is not a unigram", remedy) from None
            except (ValueError, IndexError) as error:
                raise LanguageModelError(f"{where}:{number}", f"not a line of an ARPA file: {error}") from None
        held = [len(section.words) for section in reader.sections]
        if not reader.ended or held != reader.declared or not held:
            what = f"declares {reader.declared} n-grams, but holds {held}"
            raise LanguageModelError(f"{where}:{number}", what, "the file may be truncated, or not be an ARPA file")
        return cls(list(reader.index), [section.arrays(k) for k, section in enumerate(reader.sections, start=1)])


@dataclass(frozen=True, slots=True)
class _Section:
    """The n-grams of one length in an ARPA file: word ids, and natural logarithms."""

    words: list[tuple[int, ...]] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    backoffs: list[float] = field(default_factory=list)

    def arrays(self, length: int) -> tuple[Int64s, Float64s, Float64s]:
        words_NK = np.array(self.words, dtype=np.int64).reshape(len(self.words), length)
        return words_NK, np.array(self.log_probs), np.array(self.backoffs)


class _ArpaReader:
    r"""Reads an ARPA file line by line.

    The file is ``\data\``, a line ``ngram K=count`` per length, a section ``\K-grams:`` per length, and
    ``\end\``. A line of a section is ``log10 probability TAB words [TAB log10 back-off]``.
    """

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.sections: list[_Section] = []
        self.declared: list[int] = []
        self.ended = False

    def read(self, line: str) -> None:
        """Read a stripped line. Raises KeyError for a word that is not a unigram, ValueError and IndexError else."""
        if not line or self.ended or (not self.sections and line == "\\data\\"):
            return
        if line == "\\end\\":
            self.ended = True
        elif line.startswith("\\") and line.endswith("-grams:"):
            self.sections.append(_Section())
            expected = f"\\{len(self.sections)}-grams:"
            if line != expected:
                raise ValueError(f"got {line}, expected {expected}")
        elif self.sections:
            self._read_ngram(line)
        elif line.startswith("ngram "):
            self.declared.append(int(line.split("=")[1]))

    def _read_ngram(self, line: str) -> None:
        log_prob, words, backoff = _split_ngram(line, len(self.sections))
        if len(self.sections) == 1:
            if words[0] in self.index:
                raise ValueError(f"the unigram '{words[0]}' is repeated")
            self.index[words[0]] = len(self.index)
        section = self.sections[-1]
        section.words.append(tuple(self.index[word] for word in words))
        section.log_probs.append(log_prob * _LN10)
        section.backoffs.append(backoff * _LN10)


def _split_ngram(line: str, length: int) -> tuple[float, list[str], float]:
    """Log-probability, words and back-off weight of a line, base 10. Files without tabs are separated by spaces."""
    fields = line.split("\t") if "\t" in line else line.split()
    if "\t" in line:
        fields = [fields[0], *fields[1].split(" "), *fields[2:]]
    if len(fields) not in (length + 1, length + 2):
        raise ValueError(f"got {len(fields)} fields, expected {length + 1} or {length + 2}")
    return float(fields[0]), fields[1 : length + 1], float(fields[length + 1]) if len(fields) == length + 2 else 0.0
