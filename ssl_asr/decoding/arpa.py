r"""ARPA files of back-off n-gram models, read line by line.

A file is text before the model, ``\data\``, a line ``ngram K=count`` for each length, a section ``\K-grams:`` for each
length, and ``\end\``::

    \data\
    ngram 1=4
    ngram 2=1

    \1-grams:
    -99     <s>     -0.3            log10 probability, word, log10 back-off weight (0 if it is left out)
    -0.5    </s>
    -1.0    <unk>
    -0.2    a       -0.1

    \2-grams:
    -0.05   <s> a                   the longest n-grams have no back-off weight; one in the file is not used

    \end\

Spaces and tabs separate the fields. Every other character is part of a word, a no-break space for example. Control
characters are refused.
"""

import math
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_asr.errors import LanguageModelError

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
LN10 = math.log(10.0)
# Log-probability, base 10, that files have in place of minus infinity.
LOG10_ZERO = -99.0

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MINUS_INFINITY = re.compile(r"-inf(inity)?", re.IGNORECASE)
_COUNT = re.compile(r"ngram[ \t]+(\d{1,9})[ \t]*=[ \t]*(\d{1,18})", re.ASCII)
_SECTION = re.compile(r"\\(\d+)-grams:", re.ASCII)
_GAP = re.compile(r"[ \t]+")
# No model has values of this size, and sums of them would overflow.
_LARGEST = 1e30
# Spellings of the marks in lower case, the usual one first. Models write them in any case.
_SPELLINGS = {BEGIN: (BEGIN,), END: (END,), UNKNOWN: (UNKNOWN, "<oov>", "<unknown>", "[unk]")}
_ALL_SPELLINGS = frozenset(spelling for spellings in _SPELLINGS.values() for spelling in spellings)


def is_mark(word: str) -> bool:
    """Whether a word is a sentence mark or an unknown word, in any of their spellings.

    Example:
        >>> [is_mark(word) for word in ("<s>", "</S>", "<UNK>", "unk")]
        [True, True, True, False]
    """
    return word.lower() in _ALL_SPELLINGS


def find_mark(words: Iterable[str], mark: str) -> str | None:
    """The word that a vocabulary has for a mark: its usual spelling if it is there, otherwise another one, or None.

    Args:
        words: The vocabulary.
        mark: `BEGIN`, `END` or `UNKNOWN`.

    Example:
        >>> find_mark(["<S>", "a", "<UNK>"], UNKNOWN)
        '<UNK>'
    """
    spellings = _SPELLINGS[mark]
    found = [word for word in words if word.lower() in spellings]
    # sorted and min are stable: of equally usual spellings, the first one in the vocabulary.
    return min(found, key=lambda word: (word != mark, spellings.index(word.lower())), default=None)


@dataclass(frozen=True, slots=True)
class Section:
    """The n-grams of one length: word ids, natural logarithms, and the lines that they are on."""

    words: "array[int]" = field(default_factory=lambda: array("q"))
    log_probs: "array[float]" = field(default_factory=lambda: array("d"))
    backoffs: "array[float]" = field(default_factory=lambda: array("d"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))

    def arrays(self, length: int) -> tuple[Int64s, Float64s, Float64s]:
        """``(words_NK, log_probs_N, backoffs_N)``."""
        words_NK = np.array(self.words, dtype=np.int64).reshape(len(self.lines), length)
        return words_NK, np.array(self.log_probs, dtype=np.float64), np.array(self.backoffs, dtype=np.float64)


class Arpa:
    """The content of an ARPA file.

    Attributes:
        words: All words, in the order of the unigrams.
        sections: The n-grams of each length, from 1 on.
        where: Path of the file, for messages.

    Args:
        lines: The lines of the file with their numbers.
        where: See above.

    Raises:
        LanguageModelError: A line is wrong. The message names it.
    """

    def __init__(self, lines: Iterable[tuple[int, str]], where: str) -> None:
        self.where = where
        self.sections: list[Section] = []
        self._index: dict[str, int] = {}
        self._declared: list[int] = []
        self._started = self._ended = False
        number = 0
        for number, raw in lines:
            try:
                self._read(raw.strip("\r\n \t"), number)
            except ValueError as error:
                what, _, remedy = str(error).partition("; ")
                raise LanguageModelError(f"{where}:{number}", what, remedy) from None
        self.words = list(self._index)
        self._check_end(number)

    def orders(self) -> Iterator[tuple[Int64s, Float64s, Float64s]]:
        """``(words_NK, log_probs_N, backoffs_N)`` of each length, natural logarithms."""
        return (section.arrays(length) for length, section in enumerate(self.sections, start=1))

    def place(self, length: int, row: int) -> str:
        """``file:line`` of an n-gram."""
        return f"{self.where}:{self.sections[length - 1].lines[row]}"

    def _check_end(self, number: int) -> None:
        held = [len(section.lines) for section in self.sections]
        if not self._started:
            what = r"has no line \data\, so it is not an ARPA file"
            raise LanguageModelError(f"{self.where}:{number}", what, "make a model with ssl-asr lm")
        if not self._ended or held != self._declared or not held:
            what = f"declares {self._declared} n-grams, but holds {held}"
            if held == self._declared:
                what = r"ends without \end\ "[:-1]
            raise LanguageModelError(f"{self.where}:{number}", what, "the file may be truncated; fetch it again")

    def _read(self, line: str, number: int) -> None:
        """Read a stripped line. Raises ValueError with what is wrong, and after a semicolon what to do."""
        if not self._started:
            self._started = line.lstrip("\ufeff") == "\\data\\"
        elif not line:
            return
        elif self._ended:
            raise ValueError(r"has text after \end\; give one model per file")
        elif line == "\\end\\":
            self._ended = True
        elif section := _SECTION.fullmatch(line):
            self.sections.append(Section())
            if section.group(1) != str(len(self.sections)):
                raise ValueError(f"got {line}, expected \\{len(self.sections)}-grams:; sort the sections by length")
        elif self.sections:
            self._read_ngram(line, number)
        else:
            self._read_count(line)

    def _read_count(self, line: str) -> None:
        count = _COUNT.fullmatch(line)
        if count is None or int(count.group(1)) != len(self._declared) + 1:
            raise ValueError(f"got {line[:80]!r}, expected ngram {len(self._declared) + 1}=COUNT")
        self._declared.append(int(count.group(2)))

    def _read_ngram(self, line: str, number: int) -> None:
        length = len(self.sections)
        fields = _GAP.split(line)
        if len(fields) not in (length + 1, length + 2):
            what = f"got {len(fields)} fields, expected {length + 1} or {length + 2}"
            raise ValueError(f"{what}: log10 probability, {length} words, and a back-off weight or none")
        words = fields[1 : length + 1]
        log_prob = _number(fields[0], "log10 probability")
        if log_prob > 0:
            raise ValueError(f"log10 probability {fields[0]} is above 0, so it is the logarithm of no probability")
        backoff = _number(fields[-1], "back-off weight") if len(fields) == length + 2 else 0.0
        if length == 1:
            self._add_word(words[0])
        section = self.sections[-1]
        try:
            section.words.extend([self._index[word] for word in words])
        except KeyError as error:
            raise ValueError(f"{error} is not a unigram; add the word to the unigrams") from None
        section.log_probs.append(log_prob * LN10)
        # The longest n-grams are the context of nothing.
        section.backoffs.append(backoff * LN10 if length < len(self._declared) else 0.0)
        section.lines.append(number)

    def _add_word(self, word: str) -> None:
        if word in self._index:
            raise ValueError(f"the unigram {word!r} is repeated; keep one of the lines")
        if not word.isprintable() and any(unicodedata.category(character) == "Cc" for character in word):
            raise ValueError(f"{word!r} has a control character; remove it")
        self._index[word] = len(self._index)


def _number(text: str, what: str) -> float:
    """A finite number, base 10. Minus infinity is `LOG10_ZERO`."""
    # `float` also reads nan, inf, 1_000 and digits of other scripts.
    if _NUMBER.fullmatch(text) is None:
        if _MINUS_INFINITY.fullmatch(text):
            return LOG10_ZERO
        remedy = "; write decimal points, not commas" if _NUMBER.fullmatch(text.replace(",", ".")) else ""
        raise ValueError(f"{what} {text[:40]!r} is not a finite number{remedy}")
    number = float(text)
    if abs(number) > _LARGEST:
        raise ValueError(f"{what} {text[:40]} is out of range")
    return number


def format_number(natural: float) -> str:
    """A natural logarithm as a decimal logarithm with 7 digits, as files have it."""
    return f"{natural / LN10:.7g}"
