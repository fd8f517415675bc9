"""N-gram language models with back-off: reading, writing and asking ARPA files.

The n-grams of one order lie in arrays sorted by (context, word), so a model of millions takes some tens of bytes
an n-gram and a question a few binary searches. Log-probabilities are natural inside and base 10 in files.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_asr.errors import LanguageModelError
from ssl_asr.textfiles import open_text, written_whole

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
_LN10 = math.log(10.0)
# What an ARPA file without <unk> gives a word it does not know.
_NO_UNKNOWN = -100.0 * _LN10

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Order:
    """N-grams of one length, sorted by key; a key is ``context node * words + last word``."""

    keys_N: Int64s
    log_probs_N: Float64s
    backoffs_N: Float64s
    suffixes_N: Int64s


class NGram:
    r"""A back-off n-gram model.

    A state is a node: the longest stored context of what was said, 0 being none. Nodes of all orders are numbered
    through, so a state is one integer.

    Args:
        words: in id order, with ``<s>``, ``</s>`` and ``<unk>`` among them.
        orders: ``(words_NK, log_probs_N, backoffs_N)`` of each length K from 1 on, natural logarithms; the
            unigrams in id order.

    Example:
        >>> lm = NGram.from_arpa_lines(
        ...     ["\\\\data\\\\", "ngram 1=3", "ngram 2=1", "", "\\\\1-grams:", "-99\\t<s>\\t-0.3", "-0.5\\t</s>",
        ...      "-0.2\\ta\\t-0.1", "", "\\\\2-grams:", "-0.05\\t<s> a", "", "\\\\end\\\\"]
        ... )
        >>> round(lm.sentence_log_prob(["a"]) / math.log(10), 2)
        -0.65
    """

    def __init__(self, words: Sequence[str], orders: Sequence[tuple[Int64s, Float64s, Float64s]]) -> None:
        self.words = list(words)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.order = len(orders)
        size = len(self.words)
        self.unknown = self.index.get(UNKNOWN, -1)
        self._orders: list[_Order] = []
        # Node 0 is the empty context; the unigram of word w is node 1 + w.
        self._first = [1]
        nodes_N = np.zeros(1, dtype=np.int64)
        for length, (words_NK, log_probs_N, backoffs_N) in enumerate(orders, start=1):
            contexts_N = np.zeros(len(words_NK), dtype=np.int64)
            for k in range(length - 1):
                contexts_N = self._find(contexts_N, words_NK[:, k], k + 1)
            if (contexts_N < 0).any():
                row = int((contexts_N < 0).argmax())
                lacking = " ".join(self.words[w] for w in words_NK[row, :-1])
                what = f"has an n-gram after '{lacking}' but not '{lacking}' itself"
                raise LanguageModelError("language model", what, "make it again with every context in it")
            keys_N = contexts_N * size + words_NK[:, -1]
            by_key_N = np.argsort(keys_N, kind="stable")
            suffixes_N = self._suffixes(contexts_N, words_NK[:, -1], length)
            self._orders.append(
                _Order(keys_N[by_key_N], log_probs_N[by_key_N], backoffs_N[by_key_N], suffixes_N[by_key_N])
            )
            self._first.append(self._first[-1] + len(keys_N))
            nodes_N = np.concatenate([nodes_N, self._first[-2] + np.arange(len(keys_N))])
        self._backoffs_N = np.concatenate([[0.0], *(order.backoffs_N for order in self._orders)])
        self._suffixes_N = np.concatenate([[0], *(order.suffixes_N for order in self._orders)])
        self._contexts_N = self._reduced(nodes_N, size)

    # Building ----------------------------------------------------------------------------------------------

    def _find(self, contexts_N: Int64s, words_N: Int64s, length: int) -> Int64s:
        """Nodes of the n-grams of this length that are these contexts and a word more; -1 where there is none."""
        keys = self._orders[length - 1].keys_N
        wanted_N = contexts_N * len(self.words) + words_N
        at_N = np.searchsorted(keys, wanted_N)
        found_N = keys[np.minimum(at_N, len(keys) - 1)] == wanted_N if len(keys) else np.zeros(len(at_N), bool)
        return np.where(found_N & (contexts_N >= 0), at_N + self._first[length - 1], -1)

    def _suffixes(self, contexts_N: Int64s, words_N: Int64s, length: int) -> Int64s:
        """For each n-gram the longest stored one that it ends in, itself left out."""
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

    def _reduced(self, nodes_N: Int64s, size: int) -> Int64s:
        """For each node the state after it: the longest suffix that anything depends on."""
        has_children = np.zeros(len(nodes_N), dtype=bool)
        for order in self._orders:
            has_children[order.keys_N // size] = True
        matters_N = has_children | (self._backoffs_N != 0.0)
        matters_N[0] = True
        states_N = nodes_N.copy()
        while (idle_N := ~matters_N[states_N]).any():
            states_N[idle_N] = self._suffixes_N[states_N[idle_N]]
        return states_N

    # Asking ------------------------------------------------------------------------------------------------

    @property
    def begin(self) -> int:
        """The state at the start of a sentence."""
        start = self.index.get(BEGIN)
        return 0 if start is None else int(self._contexts_N[1 + start])

    def _level(self, node: int) -> int:
        """Words in a node."""
        return 0 if node == 0 else bisect_right(self._first, node)

    def step(self, state: int, word: int) -> tuple[float, int]:
        """Log-probability of a word's id after a state, and the state after it; -1 is a word nobody knows."""
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
        total = 0.0
        while state != 0:
            total += float(self._backoffs_N[state])
            state = int(self._suffixes_N[state])
        return total

    def score(self, state: int, word: str) -> tuple[float, int]:
        """As `step`, by the word itself."""
        return self.step(state, self.index.get(word, -1))

    def end(self, state: int) -> float:
        """Log-probability of the end of the sentence."""
        return self.score(state, END)[0]

    def knows(self, word: str) -> bool:
        """Whether a word has a unigram of its own."""
        return self.index.get(word, self.unknown) != self.unknown

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every word, the marks of sentences and of unknown words left out."""
        return frozenset(self.words) - {BEGIN, END, UNKNOWN}

    @property
    def unknown_log_prob(self) -> float:
        """Log-probability of a word that is not in the vocabulary, out of context."""
        return float(self.step(0, -1)[0])

    def row(self, state: int) -> Float64s:
        """Log-probabilities of every word after a state, in id order."""
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
        """Log-probability of a sentence, its end included."""
        state, total = self.begin, 0.0
        for word in words:
            log_prob, state = self.score(state, word)
            total += log_prob
        return total + self.end(state)

    def counts(self) -> list[int]:
        """How many n-grams there are of each length."""
        return [len(order.keys_N) for order in self._orders]

    # Files -------------------------------------------------------------------------------------------------

    def _spelt(self, node: int) -> list[int]:
        """The words of a node."""
        spelt: list[int] = []
        while node != 0:
            level = self._level(node)
            key = int(self._orders[level - 1].keys_N[node - self._first[level - 1]])
            node, word = divmod(key, len(self.words))
            spelt.append(word)
        return spelt[::-1]

    def arpa_lines(self) -> Iterator[str]:
        """The lines of an ARPA file."""
        yield "\\data\\"
        yield from (f"ngram {k}={count}" for k, count in enumerate(self.counts(), start=1))
        for k, order in enumerate(self._orders, start=1):
            yield ""
            yield f"\\{k}-grams:"
            for i in range(len(order.keys_N)):
                text = " ".join(self.words[w] for w in self._spelt(self._first[k - 1] + i))
                line = f"{max(-99.0, float(order.log_probs_N[i]) / _LN10):.7g}\t{text}"
                yield line if k == self.order else f"{line}\t{float(order.backoffs_N[i]) / _LN10:.7g}"
        yield ""
        yield "\\end\\"

    def write_arpa(self, path: Path) -> None:
        """Write an ARPA file, gzipped where its name ends in ``.gz``, whole or not at all."""
        with written_whole(path) as file:
            file.writelines(f"{line}\n" for line in self.arpa_lines())

    @classmethod
    def from_arpa(cls, path: Path) -> "NGram":
        """The model of an ARPA file, ``.arpa`` or ``.arpa.gz``.

        Raises:
            LanguageModelError: it is no such file, with the line.
        """
        try:
            with open_text(path, "rt") as file:
                return cls.from_arpa_lines(file, where=str(path))
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise LanguageModelError(str(path), f"cannot be read: {error}", "give an ARPA file") from None

    @classmethod
    def from_arpa_lines(cls, lines: Iterable[str], where: str = "arpa") -> "NGram":
        """The model of the lines of an ARPA file.

        Raises:
            LanguageModelError: a line is not what it should be.
        """
        reader = _ArpaReader()
        number = 0
        for number, raw in enumerate(lines, start=1):
            try:
                reader.read(raw.strip("\r\n "))
            except KeyError as error:
                raise LanguageModelError(f"{where}:{number}", f"{error} is no unigram") from None
            except (ValueError, IndexError) as error:
                raise LanguageModelError(f"{where}:{number}", f"is no line of an ARPA file: {error}") from None
        held = [len(rows) for rows, _, _ in reader.grams]
        if not reader.ended or held != reader.declared or not held:
            what = f"declares {reader.declared} n-grams and holds {held}"
            raise LanguageModelError(f"{where}:{number}", what, "is the file whole, and an ARPA file?")
        orders = [
            (np.array(rows, dtype=np.int64).reshape(len(rows), k), np.array(log_probs), np.array(backoffs))
            for k, (rows, log_probs, backoffs) in enumerate(reader.grams, start=1)
        ]
        return cls(list(reader.index), orders)


class _ArpaReader:
    """What an ARPA file says, a line at a time."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.grams: list[tuple[list[tuple[int, ...]], list[float], list[float]]] = []
        self.declared: list[int] = []
        self.ended = False

    def read(self, line: str) -> None:
        """Take in a stripped line; KeyError where a word is no unigram, ValueError or IndexError where it is none."""
        if not line or self.ended or (not self.grams and line == "\\data\\"):
            return
        if line == "\\end\\":
            self.ended = True
        elif line.startswith("\\") and line.endswith("-grams:"):
            self.grams.append(([], [], []))
            if line != f"\\{len(self.grams)}-grams:":
                raise ValueError(f"{line} does not come next")
        elif self.grams:
            self._gram(line)
        elif line.startswith("ngram "):
            self.declared.append(int(line.split("=")[1]))

    def _gram(self, line: str) -> None:
        log_prob, spelt, backoff = _gram(line, len(self.grams))
        if len(self.grams) == 1:
            if spelt[0] in self.index:
                raise ValueError(f"'{spelt[0]}' comes twice")
            self.index[spelt[0]] = len(self.index)
        rows, log_probs, backoffs = self.grams[-1]
        rows.append(tuple(self.index[word] for word in spelt))
        log_probs.append(log_prob * _LN10)
        backoffs.append(backoff * _LN10)


def _gram(line: str, length: int) -> tuple[float, list[str], float]:
    """Log-probability, words and back-off of an ARPA line, base 10."""
    fields = line.split("\t") if "\t" in line else line.split()
    if "\t" in line:
        fields = [fields[0], *fields[1].split(" "), *fields[2:]]
    if len(fields) not in (length + 1, length + 2):
        raise ValueError(f"{len(fields)} fields where {length + 1} or {length + 2} belong")
    return float(fields[0]), fields[1 : length + 1], float(fields[length + 1]) if len(fields) == length + 2 else 0.0
