"""Edits: the units that error rates count, the minimal alignment of two sequences of units, and its counts.

The units depend on the script of the reference, not on its language code, so that a missing or unusual code changes
no score:

=============================  ============================================  =====================================
reference                      WER counts                                    CER counts
=============================  ============================================  =====================================
no character of a script       words between spaces                          code points, and the single space
without spaces, or Hangul                                                    between two words
any character of a script      each character of these scripts, each sign    code points without any space
without spaces                 of CJK punctuation, and every other run of
                               characters between spaces (Latin words,
                               digits) as one word
=============================  ============================================  =====================================

Scripts without spaces are listed in `ssl_asr.scripts.UNSPACED_SCRIPTS`: Chinese characters, Kana, Thai, Lao, Khmer,
Burmese and others. A character is a code point after Unicode NFC, in both rates. The second row is the mixed error rate
of code-switched speech. In text without Latin words and digits, its WER equals its CER. An empty reference takes the
row of the hypothesis. Korean text with Chinese characters has spaces between its words.

If an utterance has several references, each rate counts the one with the fewest errors in its units: its errors, and
its number of units. See `closest`.

The number of errors of a minimal alignment is unique, but the alignment is not. Alignments are those of rapidfuzz,
which jiwer uses too. So substitutions, insertions and deletions equal those of jiwer, on ties as well.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import regex
from rapidfuzz.distance import Levenshtein

from ssl_asr.scripts import ANY_UNSPACED, has_hangul, has_unspaced

Operation = Literal["match", "sub", "ins", "del"]
Unit = Literal["words", "characters", "mixed"]

_TAGS: dict[str, Operation] = {"equal": "match", "replace": "sub", "insert": "ins", "delete": "del"}
# Also full-width punctuation.
_SINGLE = rf"{ANY_UNSPACED}|(?=[\u3000-\u303F\uFF00-\uFFEF])[\p{{P}}\p{{S}}]"
_UNITS = regex.compile(rf"(?P<single>{_SINGLE})|(?:(?!{_SINGLE})\S)+")


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits that turn a reference into a hypothesis.

    Attributes:
        sub: Number of substitutions.
        ins: Number of insertions.
        dele: Number of deletions.
        ref: Number of reference units.
    """

    sub: int = 0
    ins: int = 0
    dele: int = 0
    ref: int = 0

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(self.sub + other.sub, self.ins + other.ins, self.dele + other.dele, self.ref + other.ref)

    def record(self) -> dict[str, int]:
        """Plain data for JSON, with the key ``del``, which cannot name an attribute."""
        return {"sub": self.sub, "ins": self.ins, "del": self.dele, "ref": self.ref}

    @property
    def errors(self) -> int:
        """Sum of substitutions, insertions and deletions."""
        return self.sub + self.ins + self.dele

    @property
    def rate(self) -> float:
        """Errors divided by reference units. For an empty reference: 0 without errors, infinity with errors."""
        if self.ref == 0:
            return 0.0 if self.errors == 0 else float("inf")
        return self.errors / self.ref


def is_unspaced(ref: str, hyp: str) -> bool:
    """Whether characters are units: the reference, or the hypothesis of an empty reference, is in such a script."""
    text = ref if ref.strip() else hyp
    return has_unspaced(text) and not has_hangul(text)


def word_units(ref: str, hyp: str) -> tuple[list[str], list[str]]:
    """The units of the WER of both texts.

    Example:
        >>> word_units("我用 iPhone", "我 用iPhone吗")
        (['我', '用', 'iPhone'], ['我', '用', 'iPhone', '吗'])
    """
    if not is_unspaced(ref, hyp):
        return ref.split(), hyp.split()
    return _units(ref), _units(hyp)


def _units(text: str) -> list[str]:
    return [found.group() for found in _UNITS.finditer(unicodedata.normalize("NFC", text))]


def word_edits(ref: str, hyp: str) -> Edits:
    """Edits between the units of the WER of two texts."""
    return count_edits(*word_units(ref, hyp))


def char_edits(ref: str, hyp: str) -> Edits:
    """Edits between the characters of two texts. Single spaces count, except in scripts without spaces."""
    if is_unspaced(ref, hyp):
        ref, hyp = ("".join(unicodedata.normalize("NFC", text).split()) for text in (ref, hyp))
    return count_edits(" ".join(ref.split()), " ".join(hyp.split()))


def closest(refs: Sequence[str], hyp: str, edits: Callable[[str, str], Edits]) -> str:
    """The reference with the fewest errors, by `word_edits` or `char_edits`. The first of several with as few.

    Example:
        >>> closest(["a b c", "a b"], "a b", word_edits)
        'a b'
    """
    return refs[0] if len(refs) == 1 else min(refs, key=lambda ref: edits(ref, hyp).errors)


def wer_unit(pairs: Iterable[tuple[str, str]]) -> Unit:
    """What the WER of pairs of reference and hypothesis counts.

    Example:
        >>> wer_unit([("你好", "你好")]), wer_unit([("hello", "hi")]), wer_unit([("我用 iPhone", "我用")])
        ('characters', 'words', 'mixed')
    """
    kinds: set[Unit] = set()
    for ref, hyp in pairs:
        if not is_unspaced(ref, hyp):
            # An empty pair has no unit.
            kinds |= {"words"} if ref.strip() or hyp.strip() else set()
        else:
            single = all(found["single"] is not None for found in _UNITS.finditer(ref))
            kinds.add("characters" if single else "mixed")
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "words"


def count_edits(ref: Sequence[str], hyp: Sequence[str]) -> Edits:
    """Number of edits in the alignment of `align`.

    Example:
        >>> count_edits("a b c".split(), "a x c d".split())
        Edits(sub=1, ins=1, dele=0, ref=3)
    """
    tags = [_TAGS[operation.tag] for operation in Levenshtein.editops(*_as_ids(ref, hyp))]
    return Edits(tags.count("sub"), tags.count("ins"), tags.count("del"), len(ref))


def _as_ids(ref: Sequence[str], hyp: Sequence[str]) -> tuple[Sequence[int] | str, Sequence[int] | str]:
    """Both sequences as integers, one for each distinct unit. Two strings are returned unchanged."""
    if isinstance(ref, str) and isinstance(hyp, str):
        return ref, hyp
    ids: dict[str, int] = {}
    return [ids.setdefault(unit, len(ids)) for unit in ref], [ids.setdefault(unit, len(ids)) for unit in hyp]


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[tuple[Operation, str, str]]:
    """Minimal alignment of two sequences, by Levenshtein distance, as jiwer aligns them.

    Returns:
        ``(operation, reference unit, hypothesis unit)`` tuples. The missing unit of an insertion or deletion is "".

    Example:
        >>> align("a b c".split(), "a x c d".split())
        [('match', 'a', 'a'), ('sub', 'b', 'x'), ('match', 'c', 'c'), ('ins', '', 'd')]
    """
    steps: list[tuple[Operation, str, str]] = []
    for block in Levenshtein.opcodes(*_as_ids(ref, hyp)):
        old, new = list(ref[block.src_start : block.src_end]), list(hyp[block.dest_start : block.dest_end])
        size = max(len(old), len(new))
        old, new = (part or [""] * size for part in (old, new))
        steps += [(_TAGS[block.tag], *pair) for pair in zip(old, new, strict=True)]
    return steps
