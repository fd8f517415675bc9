"""Where words begin in a text that is spelled piece by piece, in scripts with and without spaces.

A space starts a word. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), each character with
its combining marks is a word. Punctuation belongs to the word before it, opening brackets to the word after them::

    ␣so , ␣it ' s        so,  it's
    我 用 Py thon 写 。   我 用 Python 写。
"""

import unicodedata
from collections.abc import Iterable

from ssl_asr.scripts import is_unspaced

# Vowel signs that are letters by their category: Thai and Lao am.
_MARKS = "\u0e33\u0eb3"
# The next letter is written under or joined to the letter before: viramas and the zero-width joiner.
_JOINING = "\u1039\u17d2\u200d"
# Punctuation by category that is read aloud, and the marks of unknown labels and broken characters.
_READ_ALOUD = "%&@#‰⁇\ufffd"


def is_spoken(text: str) -> bool:
    """Whether a text has a letter, a digit or a sign that is read aloud. Pure punctuation has none."""
    return any(unicodedata.category(c)[0] in "LNM" or _is_read_sign(c) for c in text)


def _is_read_sign(character: str) -> bool:
    return character in _READ_ALOUD or unicodedata.category(character) in ("Sc", "Sm")


def starts_word(word: str, piece: str) -> bool:
    """Whether a piece of text starts a word, after the pieces that the current word has so far.

    Args:
        word: Text of the current word, with the space before it if there is one. Empty before the first word.
        piece: Text of one or several whole characters, not empty.

    Example:
        >>> starts_word(" good", "."), starts_word("好", "天"), starts_word("「", "好"), starts_word("used", "ただ")
        (False, True, False, True)
    """
    first = piece[0]
    if first.isspace() or not word:
        return True
    if not is_spoken(word) or word[-1] in _JOINING or _is_mark(first):
        return False
    after_unspaced = is_unspaced(next((c for c in reversed(word) if is_spoken(c) and not _is_mark(c)), " "))
    opens = unicodedata.category(first) in ("Ps", "Pi")
    return is_unspaced(first) or (after_unspaced and (first.isalnum() or opens)) or (opens and first >= "\u3000")


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M") or character in _MARKS or character in _JOINING


def space_between(left: str, right: str) -> bool:
    """Whether a space separates two texts: unless the letters at the seam are of a script without spaces.

    Example:
        >>> space_between("One.", "Two"), space_between("你好。", "我们"), space_between("用", "Python")
        (True, False, False)
    """
    before = next((c for c in reversed(left) if is_spoken(c) and not _is_mark(c)), " ")
    after = next((c for c in right if is_spoken(c)), " ")
    return not (is_unspaced(before) or is_unspaced(after))


def joined_text(texts: Iterable[str]) -> str:
    """Texts of consecutive parts of a recording as one text, see `space_between`. Empty texts are left out."""
    whole = ""
    for text in texts:
        whole += f" {text}" if whole and text and space_between(whole, text) else text
    return whole
