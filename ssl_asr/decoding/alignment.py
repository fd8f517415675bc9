"""Times and confidences of labels and words, by CTC forced alignment.

Forced alignment is Viterbi over the label sequence ``l`` with a blank between labels and at both ends. Let ``s`` run
over the states ``blank, l[0], blank, l[1], ..., blank`` and ``y(s, t)`` be the log-probability of state ``s`` at frame
``t``::

    best(s, t) = y(s, t) + max(best(s, t-1), best(s-1, t-1), best(s-2, t-1))

    s-2 is allowed only if s is a label that differs from the label at s-2: a repeated label needs a blank in between.

The path starts in one of the first two states and ends in one of the last two. torchaudio's ``forced_align`` computes
it.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssl_asr.types import Seconds, Token, Word

Measure = Literal["max_prob", "entropy"]

# Order of Tsallis entropy that best separates correct from wrong words (Laptev and Ginsburg, 2023, arXiv:2212.08703).
_TSALLIS = 1 / 3


@dataclass(frozen=True, slots=True)
class Span:
    """Frames ``begin`` to ``end`` (exclusive) of a label, and its confidence in [0, 1]."""

    label: int
    begin: int
    end: int
    confidence: float


def frame_confidence(log_probs_FV: Tensor, labels_F: Tensor, measure: Measure) -> Tensor:
    """Confidence of each frame in [0, 1], shape (F,).

    ``max_prob`` is the probability of the frame's label. ``entropy`` is 1 minus the normalized Tsallis entropy of the
    frame, on an exponential scale.
    """
    if measure == "max_prob":
        return log_probs_FV.gather(1, labels_F[:, None])[:, 0].exp()
    size = log_probs_FV.shape[1]
    entropy_F = ((_TSALLIS * log_probs_FV).exp().sum(1) - 1) / (1 - _TSALLIS)
    most = (size ** (1 - _TSALLIS) - 1) / (1 - _TSALLIS)
    least_F = math.exp(-most)
    return ((-entropy_F).exp() - least_F) / (1 - least_F)


def align(
    log_probs_FV: Tensor, tokens: Sequence[int], *, blank: int, measure: Measure, labels: int | None = None
) -> list[Span] | None:
    """The span of each label on the best path. Returns None if the labels do not fit the frames.

    Args:
        log_probs_FV: Float32 log-probabilities of the utterance's valid frames.
        tokens: Labels without blanks.
        blank: Id of the blank.
        measure: Confidence of a frame. The confidence of a label is the mean over its frames.
        labels: Number of columns that are labels. The columns after them are wildcards, whose confidence has no
            meaning. None: all columns.
    """
    if not tokens:
        return []
    repeats = sum(one == other for one, other in itertools.pairwise(tokens))
    if len(tokens) + repeats > len(log_probs_FV):
        return None
    path_F = _best_path(log_probs_FV, tokens, blank)
    labels = log_probs_FV.shape[1] if labels is None else labels
    confidence_F = frame_confidence(log_probs_FV[:, :labels].cpu(), path_F.clamp(max=labels - 1), measure)
    spans = [
        Span(label, begin, end, float(confidence_F[begin:end].mean()))
        for label, begin, end in _runs(path_F.tolist())
        if label != blank
    ]
    assert [span.label for span in spans] == list(tokens)
    return spans


def _best_path(log_probs_FV: Tensor, tokens: Sequence[int], blank: int) -> Tensor:
    """Label or blank of each frame on the best path, int64 on the CPU, shape (F,)."""
    from torchaudio.functional import forced_align

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path_BF, _ = forced_align(
            # Minus infinity makes forced_align return NaN.
            log_probs_FV.float().clamp(min=-1e4)[None].cpu(),
            torch.tensor([list(tokens)], dtype=torch.int32),
            blank=blank,
        )
    path: Tensor = path_BF[0].long()
    return path


def _runs(path: Sequence[int]) -> list[tuple[int, int, int]]:
    """Label, first frame and end (exclusive) of each run of equal labels."""
    runs = []
    begin = 0
    for label, frames in itertools.groupby(path):
        end = begin + len(list(frames))
        runs.append((label, begin, end))
        begin = end
    return runs


def spans_at(log_probs_FV: Tensor, tokens: Sequence[int], frames: Sequence[int], *, measure: Measure) -> list[Span]:
    """Spans of one frame each, at the frames where a search started the labels. Arguments as for `align`."""
    at_N = torch.tensor(frames, dtype=torch.int64)
    confidence_N = frame_confidence(log_probs_FV.cpu()[at_N], torch.tensor(tokens, dtype=torch.int64), measure)
    rows = zip(tokens, frames, confidence_N.tolist(), strict=True)
    return [Span(token, frame, frame + 1, sure) for token, frame, sure in rows]


def words_of(spans: Sequence[Span], labels: Sequence[str | None], frame_s: Seconds) -> list[Word]:
    """Words and labels with times. The confidence of a word is the lowest confidence of its labels.

    Args:
        spans: Spans of all labels of a text, in order.
        labels: Spelling of each id, None for the unknown label. A space ends the word before it.
        frame_s: Seconds per frame.
    """
    words: list[list[Token]] = [[]]
    for span in spans:
        text = labels[span.label]
        # A label may hold several words, as in " a b": each space ends a word.
        first, *others = ("⁇" if text is None else text).split(" ")
        if first:
            words[-1].append(_token(first, span, frame_s))
        words += [[_token(part, span, frame_s)] if part else [] for part in others]
    return [_word("".join(token.text for token in tokens), tokens) for tokens in words if tokens]


def listed_words(
    spans: Sequence[Span], words: Sequence[tuple[str, int]], labels: Sequence[str | None], frame_s: Seconds
) -> list[Word]:
    """Words of a lexicon with times. The confidence of a word is the lowest confidence of its labels.

    Args:
        spans: Spans of all labels of a text, in order.
        words: Each word, and the number of labels that spell it, a space after it included.
        labels, frame_s: See `words_of`.
    """
    found = []
    at = 0
    for word, count in words:
        own = [span for span in spans[at : at + count] if labels[span.label] != " "]
        at += count
        found.append(_word(word, [_token(str(labels[span.label]), span, frame_s) for span in own]))
    return found


def _word(text: str, tokens: Sequence[Token]) -> Word:
    confidence = min(token.confidence for token in tokens)
    return Word(text, tokens[0].start, tokens[-1].end, confidence, tuple(tokens))


def _token(text: str, span: Span, frame_s: Seconds) -> Token:
    return Token(text, span.begin * frame_s, span.end * frame_s, span.confidence)
