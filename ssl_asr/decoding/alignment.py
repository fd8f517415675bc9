"""When labels and words were said, by CTC's forced alignment, and how sure the model was of them."""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ssl_asr.types import Seconds, Word

Measure = Literal["max_prob", "entropy"]

# Tsallis' entropy with this order tells right from wrong words best (Laptev and Ginsburg, 2023, arXiv:2212.08703).
_TSALLIS = 1 / 3


@dataclass(frozen=True, slots=True)
class Span:
    """A label's frames, the end exclusive, and how sure the model was of it, from 0 to 1."""

    label: int
    begin: int
    end: int
    confidence: float


def frame_confidence(log_probs_FV: Tensor, labels_F: Tensor, measure: Measure) -> Tensor:
    """How sure each frame is, ``(F,)``: of its label, or, by its entropy, of anything at all."""
    if measure == "max_prob":
        return log_probs_FV.gather(1, labels_F[:, None])[:, 0].exp()
    size = log_probs_FV.shape[1]
    entropy_F = ((_TSALLIS * log_probs_FV).exp().sum(1) - 1) / (1 - _TSALLIS)
    most = (size ** (1 - _TSALLIS) - 1) / (1 - _TSALLIS)
    least_F = math.exp(-most)
    return ((-entropy_F).exp() - least_F) / (1 - least_F)


def align(log_probs_FV: Tensor, tokens: Sequence[int], *, blank: int, measure: Measure) -> list[Span] | None:
    """Where each label lies on the best path that spells them all; None where they do not fit the frames.

    Args:
        log_probs_FV: of an utterance's own frames, float32.
        tokens: labels, without the blank.
        blank: its id.
        measure: of confidence; a label's is the mean over its frames.
    """
    repeats = sum(one == other for one, other in itertools.pairwise(tokens))
    if not tokens or len(tokens) + repeats > len(log_probs_FV):
        return None if tokens else []
    path_F = _viterbi(log_probs_FV, tokens, blank)
    confidence_F = frame_confidence(log_probs_FV.cpu(), path_F, measure)
    path = path_F.tolist()
    begins = [t for t, label in enumerate(path) if label != blank and (t == 0 or path[t - 1] != label)]
    spans = []
    for begin in begins:
        end = begin + 1
        while end < len(path) and path[end] == path[begin]:
            end += 1
        spans.append(Span(path[begin], begin, end, float(confidence_F[begin:end].mean())))
    assert [span.label for span in spans] == list(tokens)
    return spans


def spans_at(log_probs_FV: Tensor, tokens: Sequence[int], frames: Sequence[int], *, measure: Measure) -> list[Span]:
    """Labels at the frames a search began them in, a frame each; see `align`."""
    at_N = torch.tensor(frames, dtype=torch.int64)
    confidence_N = frame_confidence(log_probs_FV.cpu()[at_N], torch.tensor(tokens, dtype=torch.int64), measure)
    rows = zip(tokens, frames, confidence_N.tolist(), strict=True)
    return [Span(token, frame, frame + 1, sure) for token, frame, sure in rows]


def _viterbi(log_probs_FV: Tensor, tokens: Sequence[int], blank: int) -> Tensor:
    from torchaudio.functional import forced_align

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path_BF, _ = forced_align(
            # Minus infinity times nothing is no number in there.
            log_probs_FV.float().clamp(min=-1e4)[None].cpu(),
            torch.tensor([list(tokens)], dtype=torch.int32),
            blank=blank,
        )
    path: Tensor = path_BF[0].long()
    return path


def words_of(spans: Sequence[Span], labels: Sequence[str | None], frame_s: Seconds) -> list[Word]:
    """The words that spans spell, with times, and their labels; a word is as sure as its least sure label.

    Args:
        spans: of all labels of a text, in order.
        labels: how each id is spelt; a space in it ends the word before.
        frame_s: seconds of a frame.
    """
    words: list[Word] = []
    letters: list[tuple[str, Span]] = []

    def finish() -> None:
        if letters:
            begin, end = letters[0][1].begin, letters[-1][1].end
            sure = min(span.confidence for _, span in letters)
            tokens = tuple(_token(text, span, frame_s) for text, span in letters)
            words.append(Word("".join(text for text, _ in letters), begin * frame_s, end * frame_s, sure, tokens))
            letters.clear()

    for span in spans:
        text = labels[span.label]
        head, *rest = ("⁇" if text is None else text).split(" ")
        if head:
            letters.append((head, span))
        for part in rest:
            finish()
            if part:
                letters.append((part, span))
    finish()
    return words


def listed_words(
    spans: Sequence[Span], words: Sequence[tuple[str, int]], labels: Sequence[str | None], frame_s: Seconds
) -> list[Word]:
    """Words that a lexicon spells, with times; a word is as sure as its least sure label.

    Args:
        spans: of all labels of a text, in order.
        words: each, and how many of the labels spell it, a space after it counted.
        labels, frame_s: see `words_of`.
    """
    found = []
    at = 0
    for word, count in words:
        own = [span for span in spans[at : at + count] if labels[span.label] != " "]
        at += count
        sure = min(span.confidence for span in own)
        tokens = tuple(_token(str(labels[span.label]), span, frame_s) for span in own)
        found.append(Word(word, tokens[0].start, tokens[-1].end, sure, tokens))
    return found


def _token(text: str, span: Span, frame_s: Seconds) -> Word:
    return Word(text, span.begin * frame_s, span.end * frame_s, span.confidence)
