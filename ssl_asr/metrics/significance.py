"""Whether one system is better than another on the same utterances, or only luckier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_asr.errors import ManifestError
from ssl_asr.metrics.edit import Edits, word_edits
from ssl_asr.metrics.report import Normalizer, Prediction

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same utterances.

    Attributes:
        first, second: their word errors.
        low, high: bounds of the 95 % interval of ``second - first`` in WER, utterances drawn anew in pairs.
        better: the share of those samples in which the second has fewer errors (Bisani and Ney, 2004, "probability
            of improvement"); ties count by half.
        p: of the matched pairs test with utterances as segments (Gillick and Cox, 1989), two-sided: how likely so
            large a difference is where there is none.
        first_only, second_only: utterances that only one of them has no error in.
        utterances: how many.
    """

    first: Edits
    second: Edits
    low: float
    high: float
    better: float
    p: float
    first_only: int
    second_only: int
    utterances: int

    @property
    def difference(self) -> float:
        """WER of the second less that of the first."""
        return self.second.rate - self.first.rate


def compare(
    first: Sequence[Prediction], second: Sequence[Prediction], normalize: Normalizer, seed: int = 0
) -> Comparison:
    """Compare two systems' predictions for the same utterances.

    Raises:
        ManifestError: they are not of the same utterances, or their references differ.
    """
    others = {prediction.id: prediction for prediction in second}
    _check_same(first, others)
    one, two = [], []
    for prediction in sorted(first, key=lambda p: p.id):
        other = others[prediction.id]
        ref = normalize(prediction.ref, prediction.lang)
        one.append(word_edits(ref, normalize(prediction.hyp, prediction.lang)))
        two.append(word_edits(ref, normalize(other.hyp, other.lang)))
    errors_PN = np.array([[edits.errors for edits in own] for own in (one, two)])
    refs_N = np.array([edits.ref for edits in one])
    differences_N = errors_PN[1] - errors_PN[0]
    rng = np.random.default_rng(seed)
    sums = []
    for _ in range(BOOTSTRAP_SAMPLES):
        drawn_N = rng.integers(0, len(refs_N), len(refs_N))
        sums.append((differences_N[drawn_N].sum(), refs_N[drawn_N].sum()))
    sums_SP = np.array([pair for pair in sums if pair[1] > 0], dtype=np.float64).reshape(-1, 2)
    rates_S = sums_SP[:, 0] / sums_SP[:, 1]
    low, high = np.quantile(rates_S, [0.025, 0.975]) if len(rates_S) else (math.nan, math.nan)
    right_PN = errors_PN == 0
    return Comparison(
        first=sum(one, Edits()),
        second=sum(two, Edits()),
        low=float(low),
        high=float(high),
        better=float((rates_S < 0).mean() + 0.5 * (rates_S == 0).mean()) if len(rates_S) else math.nan,
        p=matched_pairs(differences_N.tolist()),
        first_only=int((right_PN[0] & ~right_PN[1]).sum()),
        second_only=int((~right_PN[0] & right_PN[1]).sum()),
        utterances=len(refs_N),
    )


def matched_pairs(differences: Sequence[int]) -> float:
    """Two-sided p of a mean difference of errors per segment, by the normal distribution.

    Example:
        >>> round(matched_pairs([1, 1, 0, 1, -1, 1, 0, 1, 1, 0]), 3)
        0.024
    """
    differences_N = np.array(differences, dtype=np.float64)
    if len(differences_N) < 2 or not differences_N.any():
        return 1.0
    deviation = differences_N.std(ddof=1)
    if deviation == 0:
        return 0.0
    z = abs(differences_N.mean()) / (deviation / math.sqrt(len(differences_N)))
    return math.erfc(z / math.sqrt(2))


def _check_same(first: Sequence[Prediction], others: dict[str, Prediction]) -> None:
    ids = {prediction.id for prediction in first}
    apart = sorted(ids ^ set(others))
    if apart or not ids:
        what = (
            f"{len(apart)} utterances are in one of the two only, such as {apart[:3]}" if apart else "nothing is there"
        )
        raise ManifestError("predictions", what, "compare two systems on the same manifest")
    changed = [prediction.id for prediction in first if prediction.ref != others[prediction.id].ref]
    if changed:
        what = f"{len(changed)} utterances have other references, such as {changed[0]}"
        raise ManifestError("predictions", what, "compare two systems on the same manifest")
