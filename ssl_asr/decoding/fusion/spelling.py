"""Which words and phrases a vocabulary of labels can spell, and what is reported of all others.

A word is spelled by labels one after another. The first label may begin with the space before the word, and the last
one may hold the space after it::

    labels                     words that they spell        words that they do not spell
    "a" "b" " "                ab, abba                     abc, AB
    " the" "m"                 the, them                    he
"""

import unicodedata
from collections.abc import Callable, Sequence

from ssl_asr.console import notify, shortened
from ssl_asr.errors import LanguageModelError

# Words that a message names.
_SHOWN = 20
_APOSTROPHES = str.maketrans("’‘ʼ`´", "'''''")
# What may make a word one that the labels spell, tried in order.
_CHANGES: list[tuple[str, Callable[[str], str]]] = [
    ("case: ", str.lower),
    ("case: ", str.upper),
    ("", lambda word: word.translate(_APOSTROPHES)),
    ("", lambda word: unicodedata.normalize("NFKC", word)),
    ("", lambda word: unicodedata.normalize("NFKC", word).translate(_APOSTROPHES).lower()),
    ("", lambda word: unicodedata.normalize("NFKC", word).translate(_APOSTROPHES).upper()),
]


class Speller:
    """Spells words with labels.

    Args:
        labels: Spelling of each label. None for ids that no text contains.

    Example:
        >>> speller = Speller([None, "a", "b", " "])
        >>> [speller.can_spell(word) for word in ("ab", "ab ba", "abc")]
        [True, True, False]
    """

    def __init__(self, labels: Sequence[str | None]) -> None:
        texts = [label for label in labels if label]
        self.characters = frozenset(character for text in texts for character in text)
        # Labels inside a word, labels that begin one, and labels that end one.
        self._inside = frozenset(text for text in texts if " " not in text)
        self._first = self._inside | {text.rpartition(" ")[2] for text in texts}
        self._last = self._inside | {text.partition(" ")[0] for text in texts}
        self._sizes = sorted({len(piece) for piece in self._first | self._last} - {0})

    def can_spell(self, phrase: str) -> bool:
        """Whether the labels spell every word of a phrase. False for a phrase without words."""
        words = phrase.split()
        has_space = len(words) < 2 or " " in self.characters
        return bool(words) and has_space and all(map(self._can_spell, words))

    def spelling(self, phrase: str) -> str | None:
        """The phrase as the labels spell it: itself, or the same text in another Unicode normal form. None if neither.

        Words are separated by single spaces. Byte order marks are left out.
        """
        phrase = " ".join(phrase.replace("\ufeff", "").split())
        forms = [phrase] if phrase.isascii() else [phrase, *(unicodedata.normalize(f, phrase) for f in ("NFC", "NFD"))]
        return next((form for form in forms if self.can_spell(form)), None)

    def reason(self, phrase: str) -> str:
        """Why the labels do not spell a phrase, and what to write instead, if there is such a text."""
        if not phrase.split():
            return "it has no letters"
        for why, change in _CHANGES:
            if self.can_spell(change(phrase)):
                return f"{why}write {change(phrase)!r}"
        # Where only the case of other letters is wrong too, name the letters that are in no case in the vocabulary.
        cases = [sorted(set(text) - self.characters) for text in (phrase, phrase.lower(), phrase.upper())]
        missing = min(cases, key=len)
        if not missing:
            return "no labels one after another spell it"
        if missing == [" "]:
            return "the vocabulary has no space"
        return f"letters that are not in the vocabulary: {' '.join(missing)}"

    def _can_spell(self, word: str) -> bool:
        if self._inside.issuperset(word):
            return True
        reached = [True] + [False] * len(word)
        for start in range(len(word)):
            for size in self._sizes if reached[start] else ():
                piece, end = word[start : start + size], start + size
                if end <= len(word) and not reached[end]:
                    is_first, is_last = start == 0 and piece in self._first, end == len(word) and piece in self._last
                    reached[end] = piece in self._inside or is_first or is_last
        return reached[-1]


def spelled(words: Sequence[str], speller: Speller, *, where: str, kind: str, effect: str) -> list[str]:
    """The words that a vocabulary can spell, in the normal form of its labels. All other words are reported.

    Args:
        words: Words or phrases that a user gave.
        speller: Spells them.
        where: Where they come from, for messages.
        kind: Plural noun for them, for messages.
        effect: What becomes of a word that cannot be spelled, for messages.

    Raises:
        LanguageModelError: No word can be spelled.
    """
    found = [speller.spelling(word) for word in words]
    lost = list(dict.fromkeys(word for word, spelling in zip(words, found, strict=True) if spelling is None))
    if not lost:
        return [word for word in found if word is not None]
    # Reasons are slow, and only the first words are shown.
    named = shortened([*(f"{word!r} ({speller.reason(word)})" for word in lost[:_SHOWN]), *lost[_SHOWN:]], _SHOWN)
    if not any(found):
        what = f"none of its {len(words):,} {kind} can be spelled with the model's labels: {named}"
        shown = "".join(sorted(speller.characters))[:40]
        raise LanguageModelError(where, what, f"use the characters of the labels, in their case: {shown!r}")
    notify(f"{where}: {len(lost):,} of {len(words):,} {kind} {effect}, as the model cannot spell them: {named}.")
    return [word for word in found if word is not None]
