"""Word times from the cross-attention of an autoregressive decoder (OpenAI's ``whisper.timing``).

Some attention heads of Whisper follow the speech. Their weights, smoothed and averaged, form a table of tokens by
frames. Dynamic time warping finds the best monotonic path through the table::

              frames
    tokens    # # . . . . .        best(i, j) = table(i, j) + max(best(i-1, j-1),  next token, next frame
              . . # . . . .                                       best(i-1, j),    next token, same frame
              . . . # # # #                                       best(i, j-1))    same token, next frame

A token starts at the first frame of its row of the path. A word ends where its last spoken token ends: the pause that
follows a comma is in the comma's row.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssl_asr.decoding.word_breaks import is_spoken, starts_word
from ssl_asr.types import Seconds, Token, Word

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

# Width of the median filter in frames, as in OpenAI's code.
_MEDIAN = 7
# Spelling of bytes that are no whole character.
_BROKEN = "\ufffd"


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
    breaks: Collection[int] = (),
) -> list[list[Word]]:
    """Words and tokens with times, for each part of a text.

    The times and the confidence of a word are those of its spoken tokens. A word of punctuation alone takes all its
    tokens. The confidence is the lowest probability of the tokens.

    Args:
        tokens: Text tokens only.
        weights_HUF: Attention weights of the heads, over the frames of the speech. One row per token, at the step
            that predicts the token, and one row for the end token.
        probabilities: Of each token.
        spell: Converts tokens to text, with a space before each word.
        frame_s: Seconds per frame.
        breaks: Numbers of tokens before which a new part starts, in order. No word extends over a break.
    """
    bounds = [0, *breaks, len(tokens)]
    if not tokens:
        return [[] for _ in bounds[1:]]
    times = [float(frame) * frame_s for frame in first_frames(smoothed(weights_HUF))]
    parts = []
    for first, end in itertools.pairwise(bounds):
        pieces = [
            _Piece(first + piece.first, first + piece.end, piece.text) for piece in _pieces(tokens[first:end], spell)
        ]
        words = [_timed(word, tokens, times, probabilities, spell) for word in _words(pieces)]
        parts.append([word for word in words if word.text])
    return parts


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens ``first`` to ``end`` (exclusive), which spell whole characters, and their text."""

    first: int
    end: int
    text: str


def _timed(
    pieces: list[_Piece],
    tokens: Sequence[int],
    times: Sequence[Seconds],
    probabilities: Sequence[float],
    spell: Callable[[list[int]], str],
) -> Word:
    """The word that pieces spell."""
    spoken = [piece for piece in pieces if is_spoken(piece.text)] or pieces
    start, end = times[spoken[0].first], times[spoken[-1].end]
    own = range(pieces[0].first, pieces[-1].end)
    parts = tuple(
        Token(
            spell([tokens[i]]),
            min(max(times[i], start), end),
            min(max(times[i + 1], start), end),
            probabilities[i],
        )
        for i in own
    )
    text = "".join(piece.text for piece in pieces)
    confidence = min(p for piece in spoken for p in probabilities[piece.first : piece.end])
    return Word(" ".join(text.split()), start, end, confidence, parts, spaced=text[:1].isspace())


def _words(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """The pieces of each word."""
    words: list[list[_Piece]] = []
    text = ""
    for piece in pieces:
        if starts_word(text, piece.text):
            words.append([])
            text = ""
        words[-1].append(piece)
        text += piece.text
    return words


def _pieces(tokens: Sequence[int], spell: Callable[[list[int]], str]) -> list[_Piece]:
    """The shortest runs of tokens that spell whole characters: a token may be one byte of a character.

    Tokens without text at the end are left out.
    """
    whole = spell(list(tokens))
    pieces: list[_Piece] = []
    first, at = 0, 0
    for end in range(1, len(tokens) + 1):
        text = spell(list(tokens[first:end]))
        # A byte that belongs to no character is broken in the whole text as well.
        complete = _BROKEN not in text or whole.startswith(text, at)
        if text and (complete or end == len(tokens)):
            pieces.append(_Piece(first, end, text))
            first, at = end, at + len(text)
    return pieces
