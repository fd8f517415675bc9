"""Stretches of sound in a waveform, and words moved out of the pauses between them.

Attention and time warping give the pause between two words to one of the words. The level of the waveform shows where
the pause is::

    level     ___####_##________###___
    stretch      |-----|        |-|        a short dip does not split a stretch
    word 1    |------------------|
    word 2                       |----|
    moved        |-----|        |-|
"""

from dataclasses import replace

import torch
from torch import Tensor

from ssl_asr.types import SAMPLE_RATE, Seconds, Word

# Length of the frames whose level is measured.
_FRAME_S: Seconds = 0.01
_FRAME = round(_FRAME_S * SAMPLE_RATE)
# Shorter dips in the level, as in a plosive, do not split a stretch.
_SHORTEST_PAUSE_S: Seconds = 0.2
# Shorter sounds, as clicks, are no stretch.
_SHORTEST_SOUND_S: Seconds = 0.03
# Level in decibels of the quietest and the loudest frames, as shares of all frames.
_QUIET, _LOUD = 0.05, 0.95
# The threshold is at this share of the way from the quietest to the loudest level, but at most this far below it.
_SHARE = 0.28
_RANGE_DB = 40.0
# A recording with less contrast has no measurable pauses.
_LEAST_CONTRAST_DB = 12.0


def sounds(waveform_T: Tensor) -> list[tuple[Seconds, Seconds]]:
    """Start and end of each stretch of sound, in order. Empty if the recording has no measurable pauses.

    Args:
        waveform_T: Float32 samples at 16 kHz.
    """
    frames = len(waveform_T) // _FRAME
    if frames == 0:
        return []
    power_F = waveform_T[: frames * _FRAME].float().view(frames, _FRAME).square().mean(1)
    level_F = 10 * power_F.clamp(min=1e-10).log10()
    quiet, loud = level_F.quantile(torch.tensor([_QUIET, _LOUD], device=level_F.device)).tolist()
    if loud - quiet < _LEAST_CONTRAST_DB:
        return []
    loud_F = level_F > max(loud - _RANGE_DB, quiet + _SHARE * (loud - quiet))
    return _stretches(loud_F.nonzero()[:, 0].tolist())


def _stretches(loud: list[int]) -> list[tuple[Seconds, Seconds]]:
    """Stretches of loud frames, given by their indices."""
    pause = round(_SHORTEST_PAUSE_S / _FRAME_S)
    found: list[list[int]] = []
    for frame in loud:
        if found and frame - found[-1][1] < pause:
            found[-1][1] = frame + 1
        else:
            found.append([frame, frame + 1])
    shortest = round(_SHORTEST_SOUND_S / _FRAME_S)
    return [(first * _FRAME_S, end * _FRAME_S) for first, end in found if end - first >= shortest]


def without_pauses(words: list[Word], stretches: list[tuple[Seconds, Seconds]]) -> list[Word]:
    """Words moved out of the pauses. Each word keeps the part of it in the stretch that it overlaps most.

    If two words are next to each other and a pause lies between their parts, each of them is extended to the end of
    its stretch on the side of the pause. A word without sound is not changed.

    Args:
        words: In order, without overlaps.
        stretches: See `sounds`.
    """
    own = [_longest_overlap(word, stretches) for word in words]
    moved = [
        word if at is None else replace(word, start=max(word.start, at[0]), end=min(word.end, at[1]))
        for word, at in zip(words, own, strict=True)
    ]
    for i in range(len(moved) - 1):
        left, right = own[i], own[i + 1]
        if left is None or right is None or left == right:
            continue
        moved[i] = replace(moved[i], end=left[1])
        moved[i + 1] = replace(moved[i + 1], start=right[0])
    return moved


def _longest_overlap(word: Word, stretches: list[tuple[Seconds, Seconds]]) -> tuple[Seconds, Seconds] | None:
    overlaps = [(min(word.end, end) - max(word.start, start), (start, end)) for start, end in stretches]
    seconds, stretch = max(overlaps, default=(0.0, None))
    return stretch if seconds > 0 else None
