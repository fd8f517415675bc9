"""Changes to the audio of training: speed perturbation (Ko et al., Interspeech 2015, "Audio augmentation")."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.filters import Limits, fault_of
from ssl_asr.types import Tokenizer, Utterance


class SpeedPerturbation:
    """A factor for each utterance in each epoch: above 1 it is faster, shorter and higher.

    A factor under which an utterance would no longer be within the limits (30 s, frames for its labels) is
    never drawn for it; where none is left, it stays as it is.

    Args:
        factors: what is drawn from, each as likely as any other.
        utterances: those of the training split, each within the limits as it is.
        limits: what the model can take.
        tokenizer: spells targets, which have to fit into the frames.
        seed: the same seed and epoch always draw the same.
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
        self._fits_NK = np.array(
            [
                [_fits(utterance, factor, limits, tokenizer) for factor in self._factors_K.tolist()]
                for utterance in utterances
            ]
        )
        self._seed = seed

    def draw(self, epoch: int) -> NDArray[np.float64]:
        """``factors_N``: by how much each utterance is faster in this epoch."""
        rng = np.random.default_rng([self._seed, epoch, 1])
        counts_N = self._fits_NK.sum(axis=1)
        nth_N = (rng.random(len(counts_N)) * counts_N).astype(np.int64)
        fitting_first_NK = np.argsort(~self._fits_NK, axis=1, kind="stable")
        drawn_N = self._factors_K[fitting_first_NK[np.arange(len(counts_N)), nth_N]]
        factors_N: NDArray[np.float64] = np.where(counts_N > 0, drawn_N, 1.0)
        return factors_N


def _fits(utterance: Utterance, factor: float, limits: Limits, tokenizer: Tokenizer | None) -> bool:
    changed = replace(utterance, duration=utterance.duration / factor)
    return fault_of(changed, limits, tokenizer) is None
