"""Changes of training audio that change its length: speed and tempo.

    speed    the audio is resampled. A factor above 1 makes speech faster, shorter and higher (Ko et al., Interspeech
             2015, "Audio augmentation for speech recognition")
    tempo    the audio is stretched in time. Speech gets faster and shorter, and its pitch stays

Both lengths are known before any audio is read, so that batches keep their budget:

    after speed    ceil(samples * 16000 / round(speed * 16000))
    after tempo    round(samples / tempo)
"""

from collections.abc import Sequence
from fractions import Fraction

import av.filter
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_asr.data.audio import audio_frame
from ssl_asr.data.filters import Limits, exceeding
from ssl_asr.data.targets import Targets
from ssl_asr.types import SAMPLE_RATE, Samples

# Silence after the audio that is stretched. The filter holds back up to 0.04 s at its end.
_TAIL: Samples = SAMPLE_RATE // 10


class SpeedPerturbation:
    """A random speed and a random tempo for each utterance and epoch.

    A pair of factors is never drawn for an utterance that would exceed the limits with it (minimum and maximum
    duration, CTC frames for its labels). If no pair is within the limits, the utterance keeps its speed and tempo.

    Args:
        speeds: Speed factors. An empty list leaves the speed unchanged.
        tempos: Tempo factors. An empty list leaves the tempo unchanged. Each pair of factors has equal probability.
        durations_N: float64, seconds of the training utterances, all within the limits at their own speed.
        limits: Limits of the model.
        targets: What their targets need, which must fit the frames. None for no targets.
        seed: Seed of the draws. Equal seed and epoch give equal factors.
    """

    def __init__(
        self,
        speeds: Sequence[float],
        tempos: Sequence[float],
        durations_N: NDArray[np.float64],
        limits: Limits,
        *,
        targets: Targets | None,
        seed: int,
    ) -> None:
        pairs = [(speed, tempo) for speed in speeds or [1.0] for tempo in tempos or [1.0]]
        self._pairs_K2 = np.array(pairs, dtype=np.float64)
        self._seed = seed
        changed = (changed_durations(durations_N, pair_2[None]) for pair_2 in self._pairs_K2)
        self._allowed_NK = np.stack([~exceeding(each_N, targets, limits) for each_N in changed], axis=1)

    def draw(self, epoch: int) -> NDArray[np.float64]:
        """Speed and tempo factor of each utterance in an epoch, float64 of shape (N, 2)."""
        rng = np.random.default_rng([self._seed, epoch, 1])
        counts_N = self._allowed_NK.sum(axis=1)
        nth_N = (rng.random(len(counts_N)) * counts_N).astype(np.int64)
        drawn_N = (np.cumsum(self._allowed_NK, axis=1, dtype=np.int32) > nth_N[:, None]).argmax(axis=1)
        factors_N2: NDArray[np.float64] = np.where(counts_N[:, None] > 0, self._pairs_K2[drawn_N], 1.0)
        return factors_N2


def changed_lengths(samples_N: NDArray[np.int64], factors_N2: NDArray[np.float64]) -> NDArray[np.int64]:
    """Lengths of waveforms after speed and tempo, in samples.

    Args:
        samples_N: int64, lengths at 16 kHz.
        factors_N2: float64 of shape (N, 2), speed and tempo factor of each waveform.

    Example:
        >>> changed_lengths(np.array([16000]), np.array([[0.9, 1.1]])).tolist()
        [16162]
    """
    rates_N = np.round(factors_N2[:, 0] * SAMPLE_RATE).astype(np.int64)
    faster_N = -(-samples_N * SAMPLE_RATE // rates_N)
    lengths_N: NDArray[np.int64] = np.round(faster_N / factors_N2[:, 1]).astype(np.int64)
    return lengths_N


def changed_durations(durations_N: NDArray[np.float64], factors_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Durations in seconds after speed and tempo, see `changed_lengths`."""
    return changed_lengths(np.round(durations_N * SAMPLE_RATE).astype(np.int64), factors_N2) / SAMPLE_RATE


def stretched(waveform_T: Tensor, tempo: float) -> Tensor:
    """A waveform at another tempo and the same pitch, by FFmpeg's ``atempo`` (waveform-similarity overlap-add).

    The filter gives up to 0.04 s more or less than asked for. Silence is appended to its input and its output is cut,
    so that the length is exact.

    Args:
        waveform_T: float32, 16 kHz.
        tempo: From 0.5 to 2. Above 1, speech is faster and shorter.

    Returns:
        float32 of ``round(len(waveform_T) / tempo)`` samples.
    """
    wanted = round(len(waveform_T) / tempo)
    if tempo == 1 or not wanted:
        return waveform_T[:wanted]
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_abuffer(format="flt", sample_rate=SAMPLE_RATE, layout="mono", time_base=Fraction(1, SAMPLE_RATE))
    graph.link_nodes(source, graph.add("atempo", f"tempo={tempo:.6f}"), graph.add("abuffersink")).configure()
    graph.push(audio_frame(torch.nn.functional.pad(waveform_T, (0, _TAIL)), SAMPLE_RATE))
    graph.push(None)
    parts, got = [], 0
    while got < wanted:
        parts.append(graph.pull().to_ndarray()[0])
        got += len(parts[-1])
    return torch.from_numpy(np.concatenate(parts)[:wanted])
