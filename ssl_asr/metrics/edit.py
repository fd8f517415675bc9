"""The one definition of an error: a minimal alignment of two token sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Operation = Literal["match", "sub", "ins", "del"]


@dataclass(frozen=True, slots=True)
class Edits:
    """Substitutions, insertions and deletions that turn a reference of ``ref`` tokens into the hypothesis."""

    sub: int = 0
    ins: int = 0
    dele: int = 0
    ref: int = 0

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(self.sub + other.sub, self.ins + other.ins, self.dele + other.dele, self.ref + other.ref)

    @property
    def errors(self) -> int:
        """All edits together."""
        return self.sub + self.ins + self.dele

    @property
    def rate(self) -> float:
        """Errors over reference tokens; with an empty reference 0.0 for no error and infinity for any."""
        if self.ref == 0:
            return 0.0 if self.errors == 0 else float("inf")
        return self.errors / self.ref


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[tuple[Operation, str, str]]:
    """A minimal alignment, as ``(operation, reference token, hypothesis token)`` with "" where there is none.

    Levenshtein distance with unit costs. Each row of the table is one vector operation, since an insertion
    run is a running minimum. Sequences whose table would be too large are parted in two where a minimal alignment
    passes (Hirschberg, 1975), so that an hour's characters take no more memory than a sentence's; and that is looked
    for near the diagonal, which a minimal alignment leaves by no more than its errors (Ukkonen, 1985).

    Example:
        >>> align("a b c".split(), "a x c d".split())
        [('match', 'a', 'a'), ('sub', 'b', 'x'), ('match', 'c', 'c'), ('ins', '', 'd')]
    """
    ids: dict[str, int] = {}
    ref_N = np.array([ids.setdefault(token, len(ids)) for token in ref], dtype=np.int64)
    hyp_N = np.array([ids.setdefault(token, len(ids)) for token in hyp], dtype=np.int64)
    if (len(ref) + 1) * (len(hyp) + 1) > _MOST_CELLS and len(ref) > 1:
        middle, at = len(ref) // 2, _crossing(ref_N, hyp_N)
        return align(ref[:middle], hyp[:at]) + align(ref[middle:], hyp[at:])
    table = np.empty((len(ref) + 1, len(hyp) + 1), dtype=np.int64)
    table[0] = np.arange(len(hyp) + 1)
    for row, token in enumerate(ref_N, start=1):
        table[row] = _next_row(table[row - 1], hyp_N != token)
    return _trace(table, ref, hyp)


# Of a table: 160 MB.
_MOST_CELLS = 20_000_000
# More errors than any two texts have.
_FAR = 1 << 40


def _next_row(row: NDArray[np.int64], differs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The table's row after one more reference token."""
    columns = np.arange(len(row))
    best = row + 1
    best[1:] = np.minimum(best[1:], row[:-1] + differs)
    following: NDArray[np.int64] = np.minimum.accumulate(best - columns) + columns
    return following


def _crossing(ref_N: NDArray[np.int64], hyp_N: NDArray[np.int64]) -> int:
    """How much of the hypothesis belongs to the first half of the reference in a minimal alignment."""
    middle = len(ref_N) // 2
    longer = max(len(ref_N), len(hyp_N))
    band = abs(len(ref_N) - len(hyp_N)) + longer // 16 + 1
    while True:
        before = _last_row(ref_N[:middle], hyp_N, band)
        after = _last_row(ref_N[middle:][::-1], hyp_N[::-1], band)[::-1]
        errors = before + after
        at = int(errors.argmin())
        # An alignment with fewer errors than that would not have left a band so wide.
        if errors[at] <= band or band >= longer:
            return at
        band = min(int(errors[at]), longer)


def _last_row(ref_N: NDArray[np.int64], hyp_N: NDArray[np.int64], band: int) -> NDArray[np.int64]:
    """Errors of the reference against each beginning of the hypothesis, no further than ``band`` off the diagonal."""
    row = np.arange(len(hyp_N) + 1)
    row[band + 1 :] = _FAR
    for count, token in enumerate(ref_N, start=1):
        low, high = max(0, count - band - 1), min(len(hyp_N), count + band)
        row[low : high + 1] = _next_row(row[low : high + 1], hyp_N[low:high] != token)
        if count > band:
            row[low] = _FAR
    return row


def _trace(table: NDArray[np.int64], ref: Sequence[str], hyp: Sequence[str]) -> list[tuple[Operation, str, str]]:
    operations: list[tuple[Operation, str, str]] = []
    i, j = len(ref), len(hyp)
    while i or j:
        here = table[i, j]
        if i and j and here == table[i - 1, j - 1] + (ref[i - 1] != hyp[j - 1]):
            i, j = i - 1, j - 1
            operations.append(("match" if ref[i] == hyp[j] else "sub", ref[i], hyp[j]))
        elif i and here == table[i - 1, j] + 1:
            i -= 1
            operations.append(("del", ref[i], ""))
        else:
            j -= 1
            operations.append(("ins", "", hyp[j]))
    return operations[::-1]


def count_edits(ref: Sequence[str], hyp: Sequence[str]) -> Edits:
    """The edits of a minimal alignment.

    Example:
        >>> count_edits("a b c".split(), "a x c d".split())
        Edits(sub=1, ins=1, dele=0, ref=3)
    """
    operations = [operation for operation, _, _ in align(ref, hyp)]
    return Edits(operations.count("sub"), operations.count("ins"), operations.count("del"), len(ref))


def word_edits(ref: str, hyp: str) -> Edits:
    """Edits between the words of two texts."""
    return count_edits(ref.split(), hyp.split())


def char_edits(ref: str, hyp: str) -> Edits:
    """Edits between the characters of two texts, single spaces between words counted as characters."""
    return count_edits(" ".join(ref.split()), " ".join(hyp.split()))
