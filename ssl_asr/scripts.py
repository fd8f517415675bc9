"""Scripts that are written without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese and others.

Scores, word times, alignment and subtitles all ask here. The functions read Unicode's property *Script*, and for
characters that several scripts share (the Japanese prolonged sound mark, digits of Burmese) *Script_Extensions*.
"""

from functools import lru_cache

import regex

UNSPACED_SCRIPTS = frozenset({
    "Bopo", "Hani", "Hira", "Kana", "Khmr", "Lana", "Laoo", "Mymr", "Tale", "Talu", "Thai", "Yiii",
})  # fmt: skip
"""ISO 15924 codes of scripts that are written without spaces between words. Error rates count their characters."""

_OWN = "".join(rf"\p{{Script={script}}}" for script in sorted(UNSPACED_SCRIPTS))
_SHARED = "".join(rf"\p{{Script_Extensions={script}}}" for script in sorted(UNSPACED_SCRIPTS))
ANY_UNSPACED = rf"[{_OWN}{_SHARED}]"
"""Pattern of a character that only these scripts use or that they share, punctuation included."""
_OWN_CHARACTER = regex.compile(f"[{_OWN}]")
_UNSPACED = regex.compile(rf"(?![\p{{P}}\p{{S}}\p{{Script_Extensions=Latn}}]){ANY_UNSPACED}")
_HANGUL = regex.compile(r"\p{Script=Hangul}")


@lru_cache(maxsize=65536)
def is_unspaced(character: str) -> bool:
    """Whether a letter, mark or digit belongs to a script without spaces. Punctuation and symbols do not.

    Example:
        >>> [is_unspaced(character) for character in "好ーກ。한a"]
        [True, True, True, False, False, False]
    """
    return _UNSPACED.match(character) is not None


def has_unspaced(text: str) -> bool:
    """Whether a text has a character that only a script without spaces uses."""
    return not text.isascii() and _OWN_CHARACTER.search(text) is not None


def has_hangul(text: str) -> bool:
    """Whether a text has a Korean letter. Korean is written with spaces, also where it has Chinese characters."""
    return not text.isascii() and _HANGUL.search(text) is not None
