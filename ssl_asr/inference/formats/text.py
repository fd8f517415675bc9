"""Text that is safe to write: without line breaks and control characters, and its width on a screen."""

import re
import unicodedata
from functools import lru_cache

from ssl_asr.scripts import has_hangul, is_unspaced

# Joins its neighbors without being visible. It separates characters that a format would read as markup.
WORD_JOINER = "\u2060"
# Line breaks, tabs, other control characters, and the mark that some programs write at the start of a file.
_BREAKS = re.compile("[\\s\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_OPENING = frozenset("([{<\"'“‘«‹¿¡（［｛〈《「『【〔〖｟เแโใไເແໂໃໄ")
_CLOSING = frozenset(
    ")]}>\"'”’»›.,;:!?…%、。，．：；！？）］｝〉》」』】〕〗｠～ー・々ゝゞヽヾ"
    "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ๚๛ๆฯะาำๅະາຳ၊။។៕ៗ"
)


def clean(text: str) -> str:
    r"""The text on one line: each run of spaces, line breaks and control characters becomes one space.

    Characters that UTF-8 cannot encode become U+FFFD.

    Example:
        >>> clean("one\r\n\r\n2\tthree\u2028four\x00")
        'one 2 three four'
    """
    return _SURROGATES.sub("\ufffd", _BREAKS.sub(" ", text)).strip()


def letters(text: str) -> str:
    """The text without spaces, to compare two spellings that may differ in spaces."""
    return clean(text).replace(" ", "")


@lru_cache(maxsize=65536)
def width(text: str) -> int:
    """Columns of a text. A full-width character takes two. Any other takes one, a combining mark too.

    Example:
        >>> width("three"), width("你好")
        (5, 4)
    """
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def stands_alone(character: str) -> bool:
    """Whether no space separates a character from its neighbors: those of scripts without spaces, and full-width signs.

    Full-width signs are punctuation and emoji. Korean is full-width too, but has spaces.
    """
    return is_unspaced(character) or (width(character) == 2 and not has_hangul(character))


def may_part(before: str, after: str) -> bool:
    """Whether a line may end between two characters that no space separates.

    One of them must be of a script without spaces. A line does not begin with closing punctuation, a small kana or a
    combining mark, and does not end with opening punctuation.
    """
    if not (stands_alone(before) or stands_alone(after)) or _is_joined(before, after):
        return False
    return after not in _CLOSING and before not in _OPENING


def _is_joined(before: str, after: str) -> bool:
    """Whether two characters are shown as one."""
    is_mark = unicodedata.category(after) in ("Mn", "Mc", "Me") or "\U0001f3fb" <= after <= "\U0001f3ff"
    return is_mark or "\u200d" in (before, after)


def characters(text: str) -> list[str]:
    """The shortest parts of a text that may stand on a line each: a character with its marks and its punctuation.

    Example:
        >>> characters("「今天」很好。ok")
        ['「今', '天」', '很', '好。', 'ok']
    """
    parts: list[str] = []
    for character in text:
        if parts and not may_part(parts[-1][-1], character):
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def broken(text: str, longest: int) -> list[str]:
    """A text without spaces in parts of at most ``longest`` columns.

    Parts end after a character of a script without spaces or after one of ``-/_.,=&?``, if there is one in their second
    half. A character is not parted from its marks, unless they do not fit into a line.
    """
    parts: list[str] = []
    part = ""
    for shown in _shown_characters(text, longest):
        if width(part + shown) > longest and part:
            end = _good_end(part, shown)
            parts.append(part[:end])
            part = part[end:]
        part += shown
    return [*parts, part] if part else parts


def _shown_characters(text: str, longest: int) -> list[str]:
    """Characters with their marks, or single ones if they are wider than a line."""
    clusters: list[str] = []
    for character in text:
        if clusters and _is_joined(clusters[-1][-1], character):
            clusters[-1] += character
        else:
            clusters.append(character)
    return [one for cluster in clusters for one in ([cluster] if width(cluster) <= longest else cluster)]


def _good_end(part: str, following: str) -> int:
    """Where to end a part that is full."""
    after = part + following[0]
    ends = [
        end
        for end in range(len(part) // 2 + 1, len(part) + 1)
        if part[end - 1] in "-/_.,=&?" or may_part(after[end - 1], after[end])
    ]
    return max(ends, default=len(part))
