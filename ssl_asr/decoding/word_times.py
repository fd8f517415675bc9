"""Word times from the cross-attention of an autoregressive decoder (OpenAI's ``whisper.timing``).

Some attention heads of Whisper follow the speech. Their weights, smoothed and averaged, form a table of tokens by
frames. Dynamic time warping finds the best monotonic path through the table::

              frames
    tokens    # # . . . . .        best(i, j) = table(i, j) + max(best(i-1, j-1),  next token, next frame
              . . # . . . .                                       best(i-1, j),    next token, same frame
              . . . # # # #                                       best(i, j-1))    same token, next frame

A token starts at the first frame of its row of the path.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssl_asr.types import Seconds, Token, Word

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

# Width of the median filter in frames, as in OpenAI's code.
_MEDIAN = 7
# Languages written without spaces. Each character counts as a word.
_NO_SPACES = {"zh", "ja", "th", "lo", "my", "yue"}


def smoothed(weights_HUF: Tensor) -> Float64s:
    """Normalized, median-filtered attention weights, averaged over heads: a table of shape (tokens, frames)."""
    deviation, mean = torch.std_mean(weights_HUF.double(), dim=1, keepdim=True, correction=0)
    normal_HUF = (weights_HUF - mean) / deviation.clamp(min=1e-12)
    half = _MEDIAN // 2
    if normal_HUF.shape[-1] > half:
        padded = functional.pad(normal_HUF, (half, half), mode="reflect")
        normal_HUF = padded.unfold(-1, _MEDIAN, 1).sort(-1).values[..., half]
    table: Float64s = normal_HUF.mean(0).cpu().numpy()
    return table


def first_frames(table_UF: Float64s) -> Int64s:
    """First frame of each row of a table, on the path with the largest sum.

    Dynamic time warping, one anti-diagonal of the table at a time. If steps are equally good, the path stays on its
    row.
    """
    rows, columns = table_UF.shape
    best = np.full((rows + 1, columns + 1), np.inf)
    best[0, 0] = 0.0
    step = np.zeros((rows + 1, columns + 1), dtype=np.int8)
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        both, down, right = best[i - 1, j - 1], best[i - 1, j], best[i, j - 1]
        which = np.where((both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2))
        step[i, j] = which
        best[i, j] = np.choose(which, [both, down, right]) - table_UF[i - 1, j - 1]
    return _backtrace(step)


def _backtrace(step: NDArray[np.int8]) -> Int64s:
    """First frame of each row, from the steps into each cell: 0 diagonal, 1 next row, 2 next column."""
    rows, columns = step.shape[0] - 1, step.shape[1] - 1
    firsts = np.zeros(rows, dtype=np.int64)
    i, j = rows, columns
    while i > 0:
        firsts[i - 1] = max(0, j - 1)
        move = step[i, j] if j > 0 else 1
        i, j = i - (move != 2), j - (move != 1)
    return firsts


def words_of_tokens(
    tokens: Sequence[int],
    weights_HUF: Tensor,
    probabilities: Sequence[float],
    *,
    spell: Callable[[list[int]], str],
    frame_s: Seconds,
    lang: str | None,
) -> list[Word]:
    """Words and tokens with times. The confidence of a word is the lowest probability of its tokens.

    Args:
        tokens: Text tokens only.
        weights_HUF: Attention weights of the heads, over the frames of the speech. One row per token, at the step
            that predicts the token, and one row for the end token.
        probabilities: Of each token.
        spell: Converts tokens to text, with a space before each word.
        frame_s: Seconds per frame.
        lang: Language code of the text. Some languages are written without spaces.
    """
    if not tokens:
        return []
    starts = first_frames(smoothed(weights_HUF))
    words: list[Word] = []
    for span in _word_spans(tokens, spell, spaces=lang not in _NO_SPACES):
        times = [float(start) * frame_s for start in starts[span.first : span.end + 1]]
        own = probabilities[span.first : span.end]
        pieces = tuple(
            Token(spell([tokens[span.first + i]]), times[i], times[i + 1], probability)
            for i, probability in enumerate(own)
        )
        words.append(Word(span.text, times[0], times[-1], min(own), pieces))
    return words


@dataclass(frozen=True, slots=True)
class _TextSpan:
    """Tokens ``first`` to ``end`` (exclusive), and their text."""

    first: int
    end: int
    text: str


def _word_spans(tokens: Sequence[int], spell: Callable[[list[int]], str], *, spaces: bool) -> list[_TextSpan]:
    """The tokens of each word. Without ``spaces``, every letter or digit starts a word."""
    words: list[_TextSpan] = []
    for span in _character_spans(tokens, spell):
        starts_word = span.text.startswith(" ") or (not spaces and any(c.isalnum() for c in span.text))
        if starts_word or not words:
            words.append(span)
        else:
            words[-1] = _TextSpan(words[-1].first, span.end, words[-1].text + span.text)
    return [_TextSpan(word.first, word.end, word.text.strip()) for word in words if word.text.strip()]


def _character_spans(tokens: Sequence[int], spell: Callable[[list[int]], str]) -> list[_TextSpan]:
    """The shortest runs of tokens that spell whole characters: a token may be one byte of a character."""
    spans: list[_TextSpan] = []
    first = 0
    for end in range(1, len(tokens) + 1):
        text = spell(list(tokens[first:end]))
        if "�" not in text or end == len(tokens):
            spans.append(_TextSpan(first, end, text))
            first = end
    return spans
