"""Whisper's timestamp tokens: the rules they follow, and the segments they mark (Radford et al., 2022, section 4.5).

A window with timestamps reads::

    <0.00> text <2.40> <2.40> text <5.16> <5.80> text
    |-- segment 1 ---|--- segment 2 ----|  unfinished: transcribed again by the next window, which starts at 5.16 s
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_asr.types import Seconds, Segment

# Seconds from one timestamp token to the next.
TIMESTAMP_S: Seconds = 0.02
# Spelling of bytes that are no whole character.
_BROKEN = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestampRules:
    """Which timestamp and text tokens may follow. A `ssl_asr.decoding.step_model.Rule`.

    A text starts with a timestamp. Timestamps come in pairs and do not decrease. If all timestamps together are more
    probable than any text token, text is forbidden.

    Attributes:
        begin: Id of the timestamp 0.00.
        no_timestamps: Id of the token that requests no timestamps.
        end: Id of the end token.
        latest_first: Largest first timestamp, in timestamp tokens after 0.00. None for no limit.
    """

    begin: int
    no_timestamps: int
    end: int
    latest_first: int | None

    def __call__(self, logits_BV: Tensor, history_BU: Tensor) -> Tensor:
        """The logits with forbidden tokens at minus infinity, given the tokens chosen so far."""
        begin = self.begin
        logits_BV[:, self.no_timestamps] = -torch.inf
        if history_BU.shape[1] == 0:
            logits_BV[:, :begin] = -torch.inf
            if self.latest_first is not None:
                logits_BV[:, begin + self.latest_first + 1 :] = -torch.inf
            return logits_BV
        is_time_BU = history_BU >= begin
        last_B = is_time_BU[:, -1]
        before_B = is_time_BU[:, -2] if history_BU.shape[1] >= 2 else torch.ones_like(last_B)
        ids_V = torch.arange(logits_BV.shape[1], device=logits_BV.device)
        is_time_V = ids_V >= begin
        latest_B = torch.where(is_time_BU, history_BU, 0).amax(1)
        # The end of a segment may also be the start of the next one, but no segment may be empty.
        least_B = torch.where(last_B & ~before_B, latest_B, latest_B + 1)
        forbidden_BV = is_time_V & (last_B & before_B)[:, None]
        forbidden_BV |= (ids_V < self.end) & (last_B & ~before_B)[:, None]
        forbidden_BV |= is_time_V & (ids_V < least_B[:, None]) & (latest_B > 0)[:, None]
        logits_BV = logits_BV.masked_fill(forbidden_BV, -torch.inf)
        times_B = logits_BV[:, begin:].logsumexp(-1)
        text_B = logits_BV[:, :begin].amax(-1)
        return logits_BV.masked_fill((times_B > text_B)[:, None] & ~is_time_V, -torch.inf)


@dataclass(frozen=True, slots=True)
class Phrase:
    """The tokens of a segment, ``first`` to ``end`` (exclusive), with its timestamps.

    Attributes:
        first, end: Numbers of tokens.
        start_s, end_s: Seconds of the window.
        complete: False for the text after the last pair of timestamps.
    """

    first: int
    end: int
    start_s: Seconds
    end_s: Seconds
    complete: bool = True


def phrases_of(tokens: Sequence[int], *, begin: int, duration: Seconds) -> tuple[list[Phrase], Seconds]:
    """The phrases of a window, and the second of the window at which the next window starts.

    Text after the last pair of timestamps is unfinished and left to the next window. If the window ends in a single
    timestamp or has no pair of timestamps, the next window starts at its end.

    Args:
        tokens: Chosen by the decoder, without the end token.
        begin: Id of the timestamp 0.00.
        duration: Seconds of audio in the window. No time is later.
    """
    is_time = [token >= begin for token in tokens]
    cuts = [i + 1 for i, pair in enumerate(itertools.pairwise(is_time)) if all(pair)]
    if not cuts:
        return _single_phrase(tokens, begin, duration), duration

    def seconds(token: int) -> Seconds:
        return min(_seconds(token, begin), duration)

    ends_single = is_time[-2:] == [False, True]
    if ends_single:
        cuts.append(len(tokens))
    phrases = [
        Phrase(first, cut, seconds(tokens[first]), seconds(tokens[cut - 1]))
        for first, cut in itertools.pairwise([0, *cuts])
    ]
    if cuts[-1] < len(tokens):
        phrases.append(Phrase(cuts[-1], len(tokens), seconds(tokens[cuts[-1]]), duration, complete=False))
    next_start = duration if ends_single else seconds(tokens[cuts[-1] - 1])
    # A window that starts again at 0 would repeat forever.
    return phrases, next_start if next_start > 0 else duration


def _single_phrase(tokens: Sequence[int], begin: int, duration: Seconds) -> list[Phrase]:
    """The phrase of a window without pairs of timestamps. Missing times are the ends of the window."""
    times = [token for token in tokens if token >= begin]
    start = _seconds(times[0], begin) if len(times) > 1 else 0.0
    end = _seconds(times[-1], begin) if times and times[-1] > begin else duration
    return [Phrase(0, len(tokens), min(start, duration), min(end, duration))]


def segments_of(
    tokens: Sequence[int], *, begin: int, duration: Seconds, decode: Callable[[list[int]], str], score: float
) -> tuple[list[Segment], Seconds]:
    """The complete segments of a window, and the second of the window at which the next window starts.

    Args:
        tokens, begin, duration: See `phrases_of`.
        decode: Converts tokens to text and leaves timestamps out.
        score: Confidence of every segment, in [0, 1].
    """
    phrases, next_start = phrases_of(tokens, begin=begin, duration=duration)
    groups = text_tokens(tokens, phrases, end=begin, spell=decode)
    segments = [
        Segment(text, phrase.start_s, phrase.end_s, score)
        for phrase, group in zip(phrases, groups, strict=True)
        if phrase.complete and (text := decode(group))
    ]
    return segments, next_start


def text_tokens(
    tokens: Sequence[int], phrases: Sequence[Phrase], *, end: int, spell: Callable[[list[int]], str]
) -> list[list[int]]:
    """The text tokens of each phrase. Bytes of one character on both sides of a timestamp stay together.

    Args:
        tokens: Of the window.
        phrases: See `phrases_of`.
        end: Id of the first token that is no text. Text tokens have smaller ids.
        spell: Converts tokens to text. Bytes that are no whole character give U+FFFD.
    """
    groups = [[token for token in tokens[phrase.first : phrase.end] if token < end] for phrase in phrases]
    for group, following in itertools.pairwise(groups):
        text = spell(group)
        if not text.endswith(_BROKEN):
            continue
        for count in range(1, min(3, len(following)) + 1):
            # The bytes of a character are complete when the mark of a broken character is gone.
            if not spell([*group, *following[:count]]).startswith(text):
                group += following[:count]
                del following[:count]
                break
    return groups


def _seconds(token: int, begin: int) -> Seconds:
    return (token - begin) * TIMESTAMP_S
