"""When words were said, from where an attention decoder looked (OpenAI's ``whisper.timing``).

Some heads of Whisper's cross-attention follow the speech. What they look at, smoothed and averaged, is a table of
tokens against frames; the way through it that goes down by tokens and right by frames and collects the most is the
alignment.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssl_asr.types import Seconds, Word

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

# Frames of the median that takes out single looks elsewhere, as OpenAI has it.
_MEDIAN = 7
# Written without spaces, so that a word is as good as a character.
_NO_SPACES = {"zh", "ja", "th", "lo", "my", "yue"}


def smoothed(weights_HUF: Tensor) -> Float64s:
    """Attention of the heads that follow the speech as one table of tokens against frames."""
    deviation, mean = torch.std_mean(weights_HUF.double(), dim=1, keepdim=True, correction=0)
    normal_HUF = (weights_HUF - mean) / deviation.clamp(min=1e-12)
    half = _MEDIAN // 2
    if normal_HUF.shape[-1] > half:
        padded = functional.pad(normal_HUF, (half, half), mode="reflect")
        normal_HUF = padded.unfold(-1, _MEDIAN, 1).sort(-1).values[..., half]
    table: Float64s = normal_HUF.mean(0).cpu().numpy()
    return table


def first_frames(table_UF: Float64s) -> Int64s:
    """The frame at which each row of a table begins, on the path that collects the most.

    Dynamic time warping, a diagonal of the table at a time. Where steps are equally good, time passes first.
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
    """Words with times, and their tokens; a word is as sure as its least sure token.

    Args:
        tokens: of the text, and nothing else.
        weights_HUF: what the heads looked at when each token was foretold, and when the end was: a row more than
            there are tokens, over the frames of the speech.
        probabilities: of each token.
        spell: tokens to text, a space where a word begins.
        frame_s: seconds of a frame.
        lang: of the text; some are written without spaces.
    """
    if not tokens:
        return []
    starts = first_frames(smoothed(weights_HUF))
    words: list[Word] = []
    for first, end, text in _grouped(tokens, spell, spaces=lang not in _NO_SPACES):
        times = [float(start) * frame_s for start in starts[first : end + 1]]
        pieces = tuple(
            Word(spell([tokens[first + i]]), times[i], times[i + 1], probabilities[first + i])
            for i in range(end - first)
        )
        words.append(Word(text, times[0], times[-1], min(probabilities[first:end]), pieces))
    return words


def _grouped(tokens: Sequence[int], spell: Callable[[list[int]], str], *, spaces: bool) -> list[tuple[int, int, str]]:
    """Places of the tokens of each word, and the word. Tokens that are parts of a character stay together."""
    characters: list[tuple[int, int, str]] = []
    first = 0
    for end in range(1, len(tokens) + 1):
        text = spell(list(tokens[first:end]))
        if "�" not in text or end == len(tokens):
            characters.append((first, end, text))
            first = end
    words: list[tuple[int, int, str]] = []
    for first, end, text in characters:
        begins = not words or text.startswith(" ") or (not spaces and any(c.isalnum() for c in text))
        if begins:
            words.append((first, end, text))
        else:
            words[-1] = (words[-1][0], end, words[-1][2] + text)
    return [(first, end, text.strip()) for first, end, text in words if text.strip()]
