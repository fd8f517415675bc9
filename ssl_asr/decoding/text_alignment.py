"""Forced alignment of a text as it is written, with words that the labels cannot spell.

Each written word is spelled by the labels on its own. What has no label becomes a wildcard::

    text        Ab,     cab          123      back!
    labels      a b     ␣ c a b      *        b a c k          punctuation without a label is left out
    frames      aab_____␣c_aab___****_***____b_a_cc_k__

The wildcard ``*`` is a column beside the labels. Its log-probability is that of the frame's most probable label or
blank, minus a penalty. So a wildcard takes the frames that the labels around it do not explain, and leaves silence to
the blank.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_asr.decoding.alignment import Measure, Span, align
from ssl_asr.scripts import is_unspaced
from ssl_asr.types import BLANK_ID, UNKNOWN_ID, Seconds, Token, Word

Encode = Callable[[str], list[int]]
"""Labels of a text, after the tokenizer's normalizer. `UNKNOWN_ID` stands for what has no label."""

# Added to the log-probability of a wildcard, for each frame. Larger than the differences between frames of silence,
# and small against the cost of leaving a word to the blank.
_PENALTY = -0.1
# Two wildcards take turns, so that one may follow the other without a blank in between.
_WILDCARDS = 2


@dataclass(frozen=True, slots=True)
class Written:
    """A word as it is written, and whether a space separates it from the word before it."""

    text: str
    spaced: bool


def written_words(text: str, *, spaced: bool | None) -> list[Written]:
    """The words of a text, nothing left out. `ssl_asr.types.text_of` gives the text again, with single spaces.

    Args:
        text: Any text.
        spaced: Whether the language writes spaces between words. If not, each character is a word, with its combining
            marks and the punctuation after it; letters and digits of other scripts stay together. None: each
            character of a script without spaces is a word.

    Example:
        >>> [word.text for word in written_words("Ab, cab 123 back!", spaced=True)]
        ['Ab,', 'cab', '123', 'back!']
        >>> [word.text for word in written_words("我有3個iPad。", spaced=False)]
        ['我', '有', '3', '個', 'iPad。']
    """
    words = [Written(word, True) for word in text.split()]
    if spaced is True:
        return words
    return [Written(part, i == 0) for word in words for i, part in enumerate(_clusters(word.text))]


def _clusters(word: str) -> list[str]:
    parts: list[str] = []
    opened = joins = False
    for character in word:
        follows = unicodedata.category(character)[0] in "MPZC"
        alone = not follows and is_unspaced(character)
        opening = unicodedata.category(character) in ("Ps", "Pi")
        if parts and (opened or (follows and not opening) or (joins and not alone and not opening)):
            parts[-1] += character
        else:
            parts.append(character)
        # A word in Latin letters goes on after its own characters and marks. A bracket belongs to what it opens.
        opened, joins = opening, (joins and follows) or not (alone or follows)
    return parts


@dataclass(frozen=True, slots=True)
class Spelling:
    """The labels of a word. ``None`` is a wildcard."""

    labels: tuple[int | None, ...]

    @property
    def is_wild(self) -> bool:
        """Whether the word has no label at all."""
        return not any(label is not None for label in self.labels)


def spell(word: str, encode: Encode) -> Spelling:
    """The labels of a word. Consecutive characters without a label are one wildcard, as is a word without labels.

    Punctuation without a label is left out.
    """
    ids = encode(word)
    if UNKNOWN_ID in ids:
        said = "".join(c for c in word if unicodedata.category(c)[0] not in "PC" or UNKNOWN_ID not in encode(c))
        ids = encode(said) if said else []
    labels: list[int | None] = []
    for label in ids:
        if label != UNKNOWN_ID:
            labels.append(label)
        elif not labels or labels[-1] is not None:
            labels.append(None)
    return Spelling(tuple(labels) or (None,))


def _is_spoken(word: str) -> bool:
    """Whether a word without labels is likely to be spoken: letters, numbers and symbols with names, no punctuation."""
    kinds = {unicodedata.category(character) for character in word}
    return any(kind[0] in "LN" or kind in ("Sc", "Sm") for kind in kinds) or any(c in "&%@#" for c in word)


def _between(one: Written, other: Written, encode: Encode) -> list[int]:
    """Labels between two words: the space of a character tokenizer, nothing for pieces."""
    space = " " if other.spaced else ""
    for left, right in ((one.text, other.text), ("x", "y")):
        before, after, both = encode(left), encode(right), encode(f"{left}{space}{right}")
        end = len(both) - len(after)
        if end >= len(before) and both[: len(before)] == before and both[end:] == after:
            return both[len(before) : end]
    return []


@dataclass(frozen=True, slots=True)
class _Place:
    """A label of the sequence that is aligned: which word it is of, or None between words."""

    label: int
    word: int | None


def _sequence(words: Sequence[Written], spellings: Sequence[Spelling], encode: Encode, size: int) -> list[_Place]:
    """The labels of all words in order, with those between words. Wildcards get ids from ``size`` on."""
    places: list[_Place] = []
    wildcards = 0
    # Around a dash or an emoji, which are not spoken, the speech has one space. The wildcard takes it.
    mute = [one.is_wild and not _is_spoken(word.text) for one, word in zip(spellings, words, strict=True)]
    for number, (word, spelling) in enumerate(zip(words, spellings, strict=True)):
        if number and not mute[number - 1] and not mute[number]:
            between = _between(words[number - 1], word, encode)
            places += [_Place(label, None) for label in between if label not in (BLANK_ID, UNKNOWN_ID)]
        for label in spelling.labels:
            places.append(_Place(size + wildcards % _WILDCARDS if label is None else label, number))
            wildcards += label is None
    return places


def align_text(
    log_probs_FV: Tensor,
    words: Sequence[Written],
    encode: Encode,
    *,
    labels: Sequence[str | None],
    frame_s: Seconds,
    measure: Measure,
) -> tuple[list[Word], float] | None:
    """The written words with times, one for each, and the mean log-probability of their labels' frames.

    A word without labels has no tokens and the confidence 0. Returns None if the labels do not fit into the frames.

    Args:
        log_probs_FV: Float32 log-probabilities of the utterance's valid frames.
        words: At least one of them can be spelled.
        encode: Labels of a text.
        labels: Spelling of each id, see `ssl_asr.types.LabelTokenizer.labels`.
        frame_s: Seconds per frame.
        measure: Measure of confidence.
    """
    size = log_probs_FV.shape[1]
    places = _sequence(words, [spell(word.text, encode) for word in words], encode, size)
    wild_F1 = log_probs_FV.amax(1, keepdim=True) + _PENALTY
    wide_FV = torch.cat([log_probs_FV, wild_F1.expand(-1, _WILDCARDS)], dim=1)
    spans = align(wide_FV, [place.label for place in places], blank=BLANK_ID, measure=measure, labels=size)
    if spans is None:
        return None
    own: list[list[Span]] = [[] for _ in words]
    for place, span in zip(places, spans, strict=True):
        if place.word is not None:
            own[place.word].append(span)
    timed = [_word(word, mine, labels, frame_s) for word, mine in zip(words, own, strict=True)]
    means = [float(log_probs_FV[span.begin : span.end, span.label].mean()) for span in spans if span.label < size]
    return timed, sum(means) / max(1, len(means))


def _word(word: Written, spans: Sequence[Span], labels: Sequence[str | None], frame_s: Seconds) -> Word:
    """A written word with the times of its labels and wildcards."""
    spelled = [(str(labels[span.label]).strip(), span) for span in spans if span.label < len(labels)]
    tokens = tuple(
        Token(text, span.begin * frame_s, span.end * frame_s, span.confidence) for text, span in spelled if text
    )
    # A piece that spells only a space is not part of the word, unless it is all of it.
    timed = [span for span in spans if span.label >= len(labels) or str(labels[span.label]).strip()] or list(spans)
    confidence = min((token.confidence for token in tokens), default=0.0)
    return Word(word.text, timed[0].begin * frame_s, timed[-1].end * frame_s, confidence, tokens, word.spaced)
