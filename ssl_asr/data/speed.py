"""Speed perturbation of training audio (Ko et al., Interspeech 2015, "Audio augmentation for speech recognition")."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.filters import Limits, fault_of
from ssl_asr.types import Tokenizer, Utterance


class SpeedPerturbation:
    """A random speed factor for each utterance and epoch. A factor above 1 makes speech faster, shorter and higher.

    A factor is never drawn for an utterance that would exceed the limits with it (maximum duration, CTC frames for
    its labels). If no factor is within the limits, the utterance keeps its speed.

    Args:
        factors: Factors with equal probability.
        utterances: Training utterances, all within the limits at their own speed.
        limits: Limits of the model.
        tokenizer: Encodes the targets, which must fit the frames. None for no targets.
        seed: Seed of the draws. Equal seed and epoch give equal factors.
    """

    def __init__(
        self,
        factors: Sequence[float],
        utterances: Sequence[Utterance],
        limits: Limits,
        *,
        tokenizer: Tokenizer | None,
        seed: int,
    ) -> None:
        self._factors_K = np.asarray(factors, dtype=np.float64)
        self._allowed_NK = np.array(
            [
                [_is_within_limits(utterance, factor, limits, tokenizer) for factor in self._factors_K.tolist()]
                for utterance in utterances
            ]
        )
        self._seed = seed

    def draw(self, epoch: int) -> NDArray[np.float64]:
        """Speed factor of each utterance in an epoch, float64 of shape (N,)."""
        rng = np.random.default_rng([self._seed, epoch, 1])
        counts_N = self._allowed_NK.sum(axis=1)
        nth_N = (rng.random(len(counts_N)) * counts_N).astype(np.int64)
        allowed_first_NK = np.argsort(~self._allowed_NK, axis=1, kind="stable")
        drawn_N = self._factors_K[allowed_first_NK[np.arange(len(counts_N)), nth_N]]
        factors_N: NDArray[np.float64] = np.where(counts_N > 0, drawn_N, 1.0)
        return factors_N


def _is_within_limits(utterance: Utterance, factor: float, limits: Limits, tokenizer: Tokenizer | None) -> bool:
    changed = replace(utterance, duration=utterance.duration / factor)
    return fault_of(changed, limits, tokenizer) is None
