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
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ssl_asr.decoding.word_breaks import is_spoken, joined_text, space_between, starts_word
from ssl_asr.types import Seconds, Token, Word

Measure = Literal["max_prob", "entropy"]

# Spelling of the unknown label.
UNKNOWN_TEXT = "⁇"
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

    A space starts a word. So does each character of a script without spaces; see `word_breaks.starts_word`.
    Punctuation counts for neither the times nor the confidence of its word.

    Args:
        spans: Spans of all labels of a text, in order.
        labels: Spelling of each id, None for the unknown label. A label may hold several words, as in " a b".
        frame_s: Seconds per frame.
    """
    words: list[list[Token]] = []
    spaced: list[bool] = []
    text = ""
    for span in spans:
        label = labels[span.label]
        # The spaces are kept: "a b" gives "a" and " b".
        for piece in re.findall(r"\s*\S+|\s+", UNKNOWN_TEXT if label is None else label):
            if starts_word(text, piece):
                words.append([])
                # Several spaces are one.
                spaced.append(piece[0].isspace() or text.isspace())
                text = ""
            text += piece
            if piece.strip():
                words[-1].append(_token(piece.strip(), span, frame_s))
    found = zip(words, spaced, strict=True)
    return [_word("".join(token.text for token in own), own, spaced=space) for own, space in found if own]


def listed_words(
    spans: Sequence[Span], words: Sequence[tuple[str, int]], labels: Sequence[str | None], frame_s: Seconds
) -> list[Word]:
    """Words of a lexicon with times. The confidence of a word is the lowest confidence of its labels.

    Args:
        spans: Spans of all labels of a text, in order.
        words: Each word, and the number of labels that spell it, a space after it included.
        labels, frame_s: See `words_of`.
    """
    found: list[Word] = []
    at = 0
    for word, count in words:
        own = [span for span in spans[at : at + count] if labels[span.label] != " "]
        at += count
        tokens = [_token(str(labels[span.label]), span, frame_s) for span in own]
        spaced = not found or " " in labels or space_between(found[-1].text, word)
        found.append(_word(word, tokens, spaced=spaced))
    return found


def listed_text(words: Sequence[tuple[str, int]], labels: Sequence[str | None]) -> str:
    """The text of a lexicon's words. Arguments as for `listed_words`."""
    texts = [word for word, _ in words]
    return " ".join(texts) if " " in labels else joined_text(texts)


def evenly_spread(tokens: Sequence[int], frames: int) -> list[Span]:
    """Spans of equal length for labels that do not fit the frames. Their confidence is 0."""
    bounds = [i * frames // len(tokens) for i in range(len(tokens) + 1)]
    rows = zip(tokens, itertools.pairwise(bounds), strict=True)
    return [Span(token, begin, end, 0.0) for token, (begin, end) in rows]


def _word(text: str, tokens: Sequence[Token], *, spaced: bool) -> Word:
    spoken = [token for token in tokens if is_spoken(token.text)] or tokens
    confidence = min(token.confidence for token in spoken)
    start, end = spoken[0].start, spoken[-1].end
    kept = tuple(replace(t, start=min(max(t.start, start), end), end=min(max(t.end, start), end)) for t in tokens)
    return Word(text, start, end, confidence, kept, spaced)


def _token(text: str, span: Span, frame_s: Seconds) -> Token:
    return Token(text, span.begin * frame_s, span.end * frame_s, span.confidence)
