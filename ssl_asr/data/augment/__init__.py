"""Augmentation of training audio: an ordered list of changes, each with a probability.

    speech -> room (0.3) -> noise (0.5) -> codec (0.2) -> ...

What happens to an utterance depends on the seed, the epoch and its id only, so batches are the same whatever the number
of worker processes and ranks, and after resuming. No change alters the length of an utterance. Speed and tempo, which
do, are settings of the data: see `ssl_asr.data.speed`.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from ssl_asr.data.line_index import id_hash
from ssl_asr.errors import ConfigError, UserError, collecting, raise_all
from ssl_asr.types import Utterance


class Change(Protocol):
    """A random change of a waveform."""

    def __call__(self, waveform_T: Tensor, rng: np.random.Generator) -> Tensor:
        """The changed waveform, of the same length.

        Args:
            waveform_T: float32, 16 kHz.
            rng: Source of everything random.
        """


class AudioAugment(Protocol):
    """An ``audio_augment`` option.

    Each option has its own name below ``audio_augment``, so that several can be chosen, in the order in which they are
    applied: ``audio_augment=[rooms,noise]``.
    """

    @property
    def probability(self) -> float:
        """Probability that an utterance is changed in an epoch."""

    def build(self) -> Change:
        """The change.

        Raises:
            UserError: Files that it needs cannot be read. The key of a ConfigError is that below the option.
        """


class Augmentation:
    """Applies changes to utterances, each with its probability.

    Args:
        options: Options by name, in the order in which they are applied.
        seed: Equal seeds, epochs and ids give equal changes.

    Raises:
        UserError: Files that options need cannot be read. Lists the errors of all options.
    """

    def __init__(self, options: Mapping[str, AudioAugment], *, seed: int) -> None:
        self._changes: list[tuple[float, Change]] = []
        errors: list[UserError] = []
        for name, option in options.items():
            with collecting(errors):
                self._changes.append((option.probability, option.build()))
            errors = [_below(name, error) for error in errors]
        raise_all(errors)
        self._seed = seed

    def __call__(self, waveform_T: Tensor, utterance: Utterance, epoch: int) -> Tensor:
        """The waveform of an utterance in an epoch, float32 of the same shape."""
        for place, (probability, change) in enumerate(self._changes):
            rng = np.random.default_rng([self._seed, epoch, id_hash(utterance.id), place])
            if rng.random() < probability:
                waveform_T = change(waveform_T, rng)
        return waveform_T


def _below(name: str, error: UserError) -> UserError:
    """An error of an option with its whole key."""
    if not isinstance(error, ConfigError) or error.where.startswith("audio_augment."):
        return error
    return ConfigError(f"audio_augment.{name}.{error.where}", error.what, error.remedy)
