r"""Voice activity detection: where the speech of a recording is. See `ssl_asr.data.silero` for the network.

probability      ____/~~~~~\_/~~~~\____________/~~~~~~\_____     one number for each frame of 32 ms
speech               |----------|              |------|          above 0.5, until it stays below 0.35; no tones
padded             |==============|          |==========|        0.4 s at both ends, at most half of the pause
parts              |================================|            at most as long as the model's window
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ssl_asr.data.silero import FRAME, FRAME_S, speech_probabilities
from ssl_asr.types import SAMPLE_RATE, Samples, Seconds

Span = tuple[Seconds, Seconds]
"""Start and end in seconds."""

# Audio in memory at a time. A whole number of frames.
_BLOCK: Samples = 9375 * FRAME
# Speech starts at a frame above the first probability, and ends where frames stay below the second for 3 frames.
_ENTER, _LEAVE, _PAUSE_FRAMES = 0.5, 0.35, 3
# Fewest frames above the first probability in a span. Clicks raise one frame.
_MIN_FRAMES = 2
# The network needs half a second to settle: without it, 17 of 300 isolated digits are missed, with it none.
_LEAD: Samples = 16 * FRAME
# Quiet recordings are amplified, so that the loudest frame has this level. The network misses speech below -60 dBFS.
_LEVEL, _MAX_GAIN = 0.05, 100.0
# A span whose frames have equal spectra, or all energy in two peaks, is a tone. The highest values of 600 utterances
# of speech are 0.978 and 0.972, the lowest of tones that the network takes for speech 0.997 and 0.9996.
_STEADY, _PURE = 0.99, 0.99
# Padding at both ends of speech, because the network is late at unvoiced consonants: with 0.1 s, Whisper has read
# "Printing" as "counting". On 24 short utterances of LibriSpeech, paddings from 0 to 0.4 s gave 2 or 3 wrong first
# words each, so the value is a choice on the safe side.
PAD_S: Seconds = 0.4
# Longer pauses separate parts, so that a model does not get long silence to make words of.
_MAX_PAUSE_S: Seconds = 3.0


@dataclass(frozen=True)
class Activity:
    """Features of the frames of one recording, float32 on the CPU, shape (frames,).

    Attributes:
        probability_F: Of speech.
        level_F: Root mean square of the samples.
        steady_F: Cosine similarity of the spectrum to the spectrum of the frame before.
        pure_F: Share of the energy in the two largest peaks of the spectrum.
    """

    probability_F: Tensor
    level_F: Tensor
    steady_F: Tensor
    pure_F: Tensor

    def first(self, frames: int) -> "Activity":
        """The first frames only."""
        return Activity(
            self.probability_F[:frames], self.level_F[:frames], self.steady_F[:frames], self.pure_F[:frames]
        )

    def speech(self) -> list[tuple[int, int]]:
        """First frame and end (exclusive) of each stretch of speech."""
        found: list[tuple[int, int]] = []
        first, last = -1, -1
        for frame, probability in enumerate([*self.probability_F.tolist(), *[0.0] * _PAUSE_FRAMES]):
            if probability >= _ENTER and first < 0:
                first = frame
            if probability >= _LEAVE:
                last = frame
            elif first >= 0 and frame - last >= _PAUSE_FRAMES:
                found.append((first, last + 1))
                first = -1
        return [span for span in found if self._is_speech(*span)]

    def _is_speech(self, first: int, end: int) -> bool:
        """Whether a stretch is long enough and not a tone."""
        sure = (self.probability_F[first:end] >= _ENTER).nonzero()[:, 0] + first
        if len(sure) < _MIN_FRAMES:
            return False
        # The first frame follows something else.
        steady, pure = self.steady_F[sure[1:]].median(), self.pure_F[sure].median()
        return bool(steady < _STEADY and pure < _PURE)

    def quietest(self, first: int, end: int) -> int:
        """The frame where a cut harms least: the probability and the level around it are lowest."""
        low = max(0, first - 1)
        score_F = self.probability_F[low : end + 1] + self.level_F[low : end + 1] / self.level_F[low : end + 1].max()
        smooth_F = functional.avg_pool1d(functional.pad(score_F[None], (1, 1), mode="replicate"), 3, 1)[0]
        return first + int(smooth_F[first - low : first - low + max(1, end - first)].argmin())


def _features(block_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``level_BF``, ``steady_BF`` and ``pure_BF`` of consecutive frames. The first frame is steady by definition."""
    frames_BFT = block_BT.view(len(block_BT), -1, FRAME)
    level_BF = frames_BFT.square().mean(-1).sqrt()
    spectra_BFD = torch.fft.rfft(frames_BFT * torch.hann_window(FRAME, device=block_BT.device)).abs()
    steady_BF = functional.cosine_similarity(spectra_BFD[:, 1:], spectra_BFD[:, :-1], dim=-1)
    energy_BFD = spectra_BFD.square()
    total_BF = energy_BFD.sum(-1).clamp(min=1e-12)
    peaks_BF = torch.zeros_like(total_BF)
    around = torch.arange(-2, 3, device=block_BT.device)
    for _ in range(2):
        bins_BFN = (energy_BFD.argmax(-1, keepdim=True) + around).clamp(0, energy_BFD.shape[-1] - 1)
        peaks_BF += energy_BFD.gather(-1, bins_BFN).sum(-1)
        energy_BFD = energy_BFD.scatter(-1, bins_BFN, 0.0)
    return level_BF, functional.pad(steady_BF, (1, 0), value=1.0), peaks_BF / total_BF


@torch.no_grad()
def activity(blocks: Iterator[Tensor]) -> list[Activity]:
    """The frames of each row. A row does not depend on the rows beside it, nor on the zeros after it.

    Args:
        blocks: Consecutive samples of the same rows, float, shape (batch, samples), 16 kHz. All blocks but the last
            have a multiple of 512 samples.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def amplified() -> Iterator[Tensor]:
        for number, block_BT in enumerate(blocks):
            samples_BT = functional.pad(block_BT.float(), (0, -block_BT.shape[1] % FRAME))
            features = _features(samples_BT)
            found.append(tuple(feature.cpu() for feature in features))  # type: ignore[arg-type]  # three of them
            gain_B1 = (_LEVEL / features[0].amax(1, keepdim=True).clamp(min=1e-9)).clamp(1.0, _MAX_GAIN)
            yield functional.pad(samples_BT * gain_B1, (_LEAD if number == 0 else 0, 0))

    probability_BF = speech_probabilities(amplified())[:, _LEAD // FRAME :]
    features_BF = [torch.cat(parts, dim=1) for parts in zip(*found, strict=True)]
    return [Activity(*row) for row in zip(probability_BF, *features_BF, strict=True)]


def parts_of(active: Activity, *, duration: Seconds, longest_s: Seconds) -> list[Span]:
    """Parts of a recording that contain all its speech, in order and without overlap.

    Args:
        active: The frames of the recording.
        duration: Length of the recording in seconds.
        longest_s: Maximum length of a part in seconds. Longer speech is cut where it is quietest.
    """
    spans: list[Span] = []
    for start, end in _padded(active.speech(), duration):
        while end - start > longest_s:
            cut = (0.5 + active.quietest(_frame(start + longest_s / 2), _frame(start + longest_s))) * FRAME_S
            cut = min(cut, start + longest_s)
            spans.append((start, cut))
            start = cut
        spans.append((start, end))
    return packed(spans, longest_s=longest_s)


def _frame(second: Seconds) -> int:
    return int(second / FRAME_S)


def _padded(speech: list[tuple[int, int]], duration: Seconds) -> list[Span]:
    """Stretches of frames in seconds, padded into the pauses on both sides. Two neighbors share a pause."""
    spans = [(first * FRAME_S, min(duration, end * FRAME_S)) for first, end in speech]
    middles = [(one[1] + other[0]) / 2 for one, other in itertools.pairwise(spans)]
    bounds = [0.0, *middles, duration]
    return [(max(bounds[i], start - PAD_S), min(bounds[i + 1], end + PAD_S)) for i, (start, end) in enumerate(spans)]


def batch_parts(waveform_BT: Tensor, lengths_B: Tensor, *, longest_s: Seconds) -> list[list[Span]]:
    """Parts with speech of each recording of a padded batch. See `parts_of`.

    Args:
        waveform_BT: Float, 16 kHz, padded at the end.
        lengths_B: Number of samples of each recording, int64, on the CPU.
        longest_s: Maximum length of a part in seconds.
    """
    rows = zip(activity(iter([waveform_BT])), lengths_B.tolist(), strict=True)
    return [
        parts_of(active.first(-(-samples // FRAME)), duration=samples / SAMPLE_RATE, longest_s=longest_s)
        for active, samples in rows
    ]


def packed(spans: list[Span], *, longest_s: Seconds) -> list[Span]:
    """Merge neighboring spans, with the pauses between them, into spans of at most ``longest_s`` seconds.

    Spans with a pause of more than 3 seconds between them are not merged.

    Example:
        >>> packed([(0.0, 2.0), (3.0, 9.0), (12.0, 13.0)], longest_s=10.0)
        [(0.0, 9.0), (12.0, 13.0)]
    """
    merged: list[Span] = []
    for start, end in spans:
        if merged and end - merged[-1][0] <= longest_s and start - merged[-1][1] <= _MAX_PAUSE_S:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def speech_parts(read: Callable[[Seconds, Seconds], Tensor], *, duration: Seconds, longest_s: Seconds) -> list[Span]:
    """Parts of a recording that contain all its speech, found in constant memory.

    Args:
        read: ``read(start, duration)`` gives the samples of a stretch, float32, shape (samples,), 16 kHz.
        duration: Length of the recording in seconds.
        longest_s: Maximum length of a part in seconds.

    Raises:
        AudioError: The audio cannot be read.
        CheckpointError: silero-vad is not installed.
    """
    total = round(duration * SAMPLE_RATE)

    def blocks() -> Iterator[Tensor]:
        for first in range(0, total, _BLOCK):
            yield read(first / SAMPLE_RATE, min(_BLOCK, total - first) / SAMPLE_RATE)[None]

    found = activity(blocks())
    return parts_of(found[0], duration=duration, longest_s=longest_s) if found else []
