"""Hotwords: a bonus for expected phrases.

The bonus is paid character by character as soon as a text begins like a phrase, and taken back if the phrase is not
finished. With the phrase ``"ann"`` and a bonus of 1::

    text       a    n    n    " "              a    n    d
    key        a    an   ann  "ann "           a    an   None
    score      1    1    1    1    total 4     1    1    -2     total 0

The key is the text since the beginning of some word, as long as a phrase begins with it. It is None inside any other
word. The characters of a key that follow its longest finished phrase are on credit: they are taken back when the key
stops growing.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.hotword_tables import HotwordTable
from ssl_asr.decoding.fusion.label_arcs import Arcs, LabelArcs, SplitLabels
from ssl_asr.decoding.fusion.state_tables import StateTable, dense_if_small
from ssl_asr.errors import LanguageModelError


class Hotwords(Automaton[str | None]):
    """A bonus for each character of an expected phrase.

    A phrase counts only if it begins and ends with a word. If one phrase begins another, finishing the longer phrase
    adds to the bonus of the shorter one. If phrases overlap otherwise, the phrase that begins first counts.

    Args:
        labels: Spelling of each label. None for ids that no text contains.
        phrases: Expected phrases, words separated by spaces.
        bonus: Score of each character, the space after the phrase included.

    Raises:
        LanguageModelError: The phrases contain no word.
    """

    def __init__(self, labels: Sequence[str | None], phrases: Sequence[str], *, bonus: float) -> None:
        self.labels, self.bonus = labels, bonus
        # The space marks the end of the last word.
        self._phrases = {" ".join(phrase.split()) + " " for phrase in phrases if phrase.split()}
        self._prefixes = {phrase[:n] for phrase in self._phrases for n in range(len(phrase) + 1)}
        if not self._phrases:
            what = f"no word in {list(phrases)}"
            raise LanguageModelError("decoder.hotwords", what, "give phrases, or an empty list for no hotwords")

    @property
    def begin(self) -> str | None:
        """The beginning of a word."""
        return ""

    def rows(self, keys: Sequence[str | None]) -> Float64s:
        """Score of each label after each key, ``(N, V)``."""
        return np.stack([self.scores(key, range(len(self.labels))) for key in keys])

    def scores(self, key: str | None, labels: Sequence[int]) -> Float64s:
        """Score of each of these labels after one key, ``(C,)``."""
        texts = [self.labels[i] for i in labels]
        return np.array([-math.inf if text is None else self._read(key, text)[1] for text in texts])

    def advance(self, key: str | None, label: int) -> str | None:
        """Key after a label."""
        text = self.labels[label]
        assert text is not None
        return self._read(key, text)[0]

    def end(self, key: str | None) -> float:
        """Score of the space that ends the last word, less the credit that is left then."""
        key, total = self._read(key, " ")
        return total - self._credit(key)

    def table(self, device: torch.device) -> StateTable:
        """See `Automaton`."""
        keys: list[str | None] = [*sorted(self._prefixes), None]
        numbers = {key: number for number, key in enumerate(keys)}
        split = SplitLabels(self.labels)
        spaces = [self._followed(key, " ") for key in keys]
        found = [
            (numbers[key], column, numbers[after], earned) for key, column, after, earned in self._arcs(split.texts)
        ]
        states_M, columns_M, nexts_M, earned_M = np.array(found).reshape(-1, 4).T
        arcs = LabelArcs(
            split,
            np.array([numbers[after] for after, _ in spaces]),
            Arcs(*(own.astype(np.int64) for own in (states_M, columns_M, nexts_M))),
            numbers[None],
            device,
        )
        table = HotwordTable(
            arcs,
            credit_N=np.array([self._credit(key) for key in keys]),
            earned_space_N=np.array([earned for _, earned in spaces]),
            earned_M=earned_M,
            ends_N=np.array([self.end(key) for key in keys]),
            labels=self.labels,
            begin=numbers[self.begin],
            device=device,
        )
        return dense_if_small(table, states=len(keys), size=len(self.labels), device=device)

    def _arcs(self, texts: Sequence[str]) -> Iterator[tuple[str | None, int, str | None, float]]:
        """Keys, places of the texts after them, next keys, and what is earned.

        A text without a space earns nothing. It is left out if it leads to None.
        """
        places = {text: place for place, text in enumerate(texts) if text and " " not in text}
        beginnings = {text[:n] for text in places for n in range(1, len(text) + 1)}
        spaced = [(place, text) for place, text in enumerate(texts) if " " in text]
        following: dict[str, set[str]] = {}
        for text in self._prefixes - {""}:
            following.setdefault(text[:-1], set()).add(text[-1])
        for key in (*self._prefixes, None):
            yield from ((key, place, *self._followed(key, text)) for place, text in spaced)
            reached = [("", key)]
            while reached:
                text, own = reached.pop()
                # The letters by which a phrase goes on that begins with the key, or with a later word of the key.
                letters = {letter for suffix in _suffixes(own) for letter in following.get(suffix, ())}
                for longer in {text + letter for letter in letters} & beginnings:
                    after, _ = self._read_character(own, longer[-1])
                    reached.append((longer, after))
                    if longer in places:
                        yield key, places[longer], after, 0.0

    def _followed(self, key: str | None, text: str) -> tuple[str | None, float]:
        """Key after a text, and what the text earns: its score without the change of the credit."""
        after, total = self._read(key, text)
        return after, total - self._credit(after) + self._credit(key)

    def _read(self, key: str | None, text: str) -> tuple[str | None, float]:
        """Key after a text, and the score of the text."""
        total = 0.0
        for character in text:
            # A space after a space, or at the beginning, ends no word.
            if character == " " and key is not None and (not key or key.endswith(" ")):
                continue
            key, added = self._read_character(key, character)
            total += added
        return key, total

    def _read_character(self, key: str | None, character: str) -> tuple[str | None, float]:
        """Key after a character, and the change of what is earned and on credit."""
        after: str | None
        if key is None:
            after = "" if character == " " else None
        else:
            after = key + character
            # Drop words from the front until a phrase begins with the rest.
            while after is not None and after not in self._prefixes:
                _, space, rest = after.partition(" ")
                after = rest if space else None
        earned = 0.0
        if key is not None and after == key + character and after in self._phrases:
            earned = self.bonus * (len(after) - self._finished(key))
        return after, earned + self._credit(after) - self._credit(key)

    def _credit(self, key: str | None) -> float:
        """Bonus of the characters after the longest finished phrase of a key."""
        if not key:
            return 0.0
        return self.bonus * (len(key) - self._finished(key))

    def _finished(self, text: str) -> int:
        """Length of the longest phrase that a text begins with, 0 for none."""
        return next((n for n in range(len(text), 0, -1) if text[:n] in self._phrases), 0)


def _suffixes(key: str | None) -> list[str]:
    """The key, and what is left of it without its first words. Empty for None."""
    if key is None:
        return []
    words = key.split(" ")
    return [" ".join(words[first:]) for first in range(len(words))]
