"""How often each corpus, language or other group of training utterances is drawn.

    share of a group      weight * hours ** (1 / temperature), divided by the sum over all groups
    draws in an epoch     share * hours of all groups, in utterances of the group's mean length
    draws of epoch e      a slice of an endless row of permutations:

        epoch 0           epoch 1           epoch 2
        | c a b d | b d   c a | a c b d |   ...            4 utterances, 6 draws in each epoch

An epoch has as many hours as the manifests. Over all epochs, the utterances of a group are drawn equally often, give or
take one. With a temperature of 1 and without weights, each utterance is drawn once in an epoch. Above 1, small groups
are drawn more often: Conneau et al. (2020, "Unsupervised Cross-lingual Representation Learning for Speech Recognition")
use 2.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_asr.console import TitledTable, shortened
from ssl_asr.data.languages import find_language
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.options import DataConfig
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.types import Utterance


class Mixture:
    """The utterances of each epoch, drawn by groups. Equal seeds and epochs give equal draws.

    Args:
        names: Name of each group.
        group_N: int64, index of the group of each utterance.
        durations_N: float64, duration of each utterance in seconds.
        weights: Weight of a group by its name. Other groups have the weight 1. A group of weight 0 is left out.
        temperature: Exponent of the hours is its inverse.
        seed: Seed of the permutations.

    Raises:
        ConfigError: A weight is that of no group, or all groups have the weight 0.
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        group_N: NDArray[np.int64],
        durations_N: NDArray[np.float64],
        weights: Mapping[str, float],
        temperature: float,
        seed: int,
    ) -> None:
        unknown = sorted(set(weights) - set(names))
        if unknown:
            what = f"has a weight for '{unknown[0]}', which no training utterance has"
            raise ConfigError("data.mix_weights", what, f"the groups are {shortened(names)}")
        self.names = list(names)
        self._members = [np.flatnonzero(group_N == group) for group in range(len(names))]
        self.seconds_G = np.array([float(durations_N[members].sum()) for members in self._members])
        weights_G = np.array([weights.get(name, 1.0) for name in names])
        scores_G = weights_G * self.seconds_G ** (1 / temperature)
        if not scores_G.sum() > 0:
            raise ConfigError("data.mix_weights", "every group has the weight 0", "give some groups a larger weight")
        self.shares_G = scores_G / scores_G.sum()
        means_G = self.seconds_G / np.array([len(members) for members in self._members])
        draws_G = np.round(self.shares_G * self.seconds_G.sum() / means_G).astype(np.int64)
        # A group with a weight is never left out.
        self.draws_G = np.maximum(draws_G, weights_G > 0)
        self._seed = seed

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Indices of the utterances of an epoch, int64, grouped. An utterance may be drawn several times."""
        return np.concatenate([self._slice(group, epoch) for group in range(len(self.names))])

    def _slice(self, group: int, epoch: int) -> NDArray[np.int64]:
        members, count = self._members[group], int(self.draws_G[group])
        if count == 0:
            return members[:0]
        first, last = epoch * count // len(members), ((epoch + 1) * count - 1) // len(members)
        rounds = [self._permuted(group, number) for number in range(first, last + 1)]
        start = epoch * count - first * len(members)
        return np.concatenate(rounds)[start : start + count]

    def _permuted(self, group: int, number: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._seed, 2, group, number])
        permuted: NDArray[np.int64] = rng.permutation(self._members[group])
        return permuted

    def print(self, console: Console) -> None:
        """Print a table of the groups: what there is, and what is drawn in an epoch."""
        table = TitledTable("Mixture")
        table.add_column("group")
        for column in ("utterances", "hours", "% of the hours of an epoch", "times an epoch"):
            table.add_column(column, justify="right")
        for group, (name, members) in enumerate(zip(self.names, self._members, strict=True)):
            hours, share = self.seconds_G[group] / 3600, 100 * self.shares_G[group]
            times = self.draws_G[group] / len(members)
            table.add_row(name, f"{len(members):,}", f"{hours:.2f}", f"{share:.1f}", f"{times:.2f}")
        console.print(table)


def mixture_of(train: Manifest, config: DataConfig, *, seed: int) -> Mixture | None:
    """How often the groups of a training split are drawn, or None if each utterance is drawn once in an epoch."""
    if not config.mix_weights and config.mix_temperature == 1:
        return None
    groups = train.corpora if config.mix_by == "corpus" else [group_of(one, config.mix_by) for one in train]
    names, group_N = np.unique(np.array(groups, dtype=str), return_inverse=True)
    return Mixture(
        names=names.tolist(),
        group_N=group_N,
        durations_N=train.durations_N,
        weights=config.mix_weights or {},
        temperature=config.mix_temperature,
        seed=seed,
    )


def group_of(utterance: Utterance, key: str) -> str:
    """The group of an utterance: what its line has for a key, as text.

    Raises:
        ManifestError: The line does not have the key.
    """
    value = utterance.lang if key == "lang" else utterance.tags.get(key)
    if value is None:
        remedy = "add the key to every line of the train split, or group by another key"
        raise ManifestError(utterance.where, f"has no '{key}', which data.mix_by names", remedy)
    language = find_language(value) if key == "lang" else None
    return str(value) if language is None else language.code
