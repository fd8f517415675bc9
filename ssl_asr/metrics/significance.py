"""Significance of the differences between systems on the same utterances."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_asr.errors import ManifestError
from ssl_asr.metrics.edit import Edits, Unit, wer_unit, word_edits
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Normalizer

BOOTSTRAP_SAMPLES = 10_000
TEST = "exact sign-flip test of matched pairs"
_REMEDY = "compare systems on the same manifest"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same utterances.

    Attributes:
        wer_unit: What the WER counts; see `ssl_asr.metrics.edit`.
        first, second: Errors of each system in these units.
        low, high: Bounds of the 95 % interval of ``second - first`` in WER, by paired bootstrap over utterances.
        better: Share of the bootstrap samples in which the second system has fewer errors (Bisani and Ney, 2004,
            "probability of improvement"). Ties count one half.
        p: Two-sided p-value of matched pairs with utterances as segments, by the exact test of `sign_flip`.
        first_only, second_only: Number of utterances that only one system transcribes without an error.
        utterances: Number of utterances.
    """

    wer_unit: Unit
    first: Edits
    second: Edits
    low: float
    high: float
    better: float
    p: float
    first_only: int
    second_only: int
    utterances: int

    def __str__(self) -> str:
        """WERs of both systems, their difference with its interval, and its p-value, in one line."""
        rates = f"WER {100 * self.first.rate:.2f} % and {100 * self.second.rate:.2f} %"
        interval = f"95 % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}"
        return f"{rates}, difference {100 * self.difference:+.2f}, {interval}, p {shown_p(self.p)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"first": self.first.record(), "second": self.second.record(), "test": TEST}

    @property
    def difference(self) -> float:
        """WER of the second system minus WER of the first."""
        return self.second.rate - self.first.rate


def compare(
    first: Sequence[Prediction], second: Sequence[Prediction], normalize: Normalizer, seed: int = 0
) -> Comparison:
    """Compare the predictions of two systems for the same utterances.

    Args:
        first, second: Predictions of each system, in any order.
        normalize: Text normalizer.
        seed: Seed of the bootstrap.

    Raises:
        ManifestError: The utterances or their references differ.
    """
    return compare_all([first, second], normalize, seed)[0, 1]


def compare_all(
    systems: Sequence[Sequence[Prediction]], normalize: Normalizer, seed: int = 0
) -> dict[tuple[int, int], Comparison]:
    """Compare each pair of several systems on the same utterances. All pairs share the samples of the bootstrap.

    Args:
        systems: Predictions of each system, in any order.
        normalize: Text normalizer.
        seed: Seed of the bootstrap.

    Returns:
        The comparisons by the indices of both systems, the smaller index first.

    Raises:
        ManifestError: The utterances or their references differ.
    """
    first, *others = systems
    by_id = [{prediction.id: prediction for prediction in other} for other in others]
    for number, other in enumerate(by_id, start=2):
        _check_same(first, other, number if len(others) > 1 else None)
    rows = sorted(first, key=lambda prediction: prediction.id)
    paired = [rows, *([other[row.id] for row in rows] for other in by_id)]
    edits = [[_edits(*pair, normalize) for pair in zip(rows, each, strict=True)] for each in paired]
    errors_PN = np.array([[each.errors for each in system] for system in edits])
    sums_PS, refs_PS = _bootstrap_sums(errors_PN, np.array([[each.ref for each in system] for system in edits]), seed)
    unit = wer_unit(each.pair(normalize) for each in first)
    totals = [sum(system, Edits()) for system in edits]
    found = {}
    for a, b in combinations(range(len(systems)), 2):
        pair = [a, b]
        rates_S = _differences(sums_PS[pair], refs_PS[pair])
        low, high = np.quantile(rates_S, [0.025, 0.975]) if len(rates_S) else (math.nan, math.nan)
        right_PN = errors_PN[pair] == 0
        found[a, b] = Comparison(
            wer_unit=unit,
            first=totals[a],
            second=totals[b],
            low=float(low),
            high=float(high),
            better=float((rates_S < 0).mean() + 0.5 * (rates_S == 0).mean()) if len(rates_S) else math.nan,
            p=sign_flip((errors_PN[b] - errors_PN[a]).tolist()),
            first_only=int((right_PN[0] & ~right_PN[1]).sum()),
            second_only=int((~right_PN[0] & right_PN[1]).sum()),
            utterances=errors_PN.shape[1],
        )
    return found


def _edits(first: Prediction, prediction: Prediction, normalize: Normalizer) -> Edits:
    """Edits of a system, in the language of the first one. Of several references, each may be closest to another."""
    return word_edits(*replace(prediction, lang=first.lang).pair(normalize))


def _bootstrap_sums(
    errors_PN: NDArray[np.int64], refs_PN: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Errors and reference units of each system in each bootstrap sample, both of shape (systems, samples)."""
    rng = np.random.default_rng(seed)
    count = errors_PN.shape[1]
    both_QN = np.concatenate([errors_PN, refs_PN])
    sums = [both_QN[:, rng.integers(0, count, count)].sum(1) for _ in range(BOOTSTRAP_SAMPLES)]
    sums_QS = np.stack(sums, axis=1)
    return sums_QS[: len(errors_PN)], sums_QS[len(errors_PN) :]


def _differences(errors_PS: NDArray[np.int64], refs_PS: NDArray[np.int64]) -> NDArray[np.float64]:
    """Difference in WER of each bootstrap sample. Samples in which a system has no reference word are left out."""
    kept_S = (refs_PS > 0).all(0)
    (first_S, second_S), (first_refs_S, second_refs_S) = errors_PS[:, kept_S], refs_PS[:, kept_S]
    # One division where both are equal, so that systems with as many errors differ by exactly 0.
    rates_S: NDArray[np.float64] = np.where(
        first_refs_S == second_refs_S,
        (second_S - first_S) / first_refs_S,
        second_S / second_refs_S - first_S / first_refs_S,
    )
    return rates_S


def sign_flip(differences: Sequence[int]) -> float:
    """Two-sided p-value of the exact sign-flip test of matched pairs (Fisher, 1935).

    If the systems are equally good, each difference has either sign with probability 1/2. The test counts the signs
    whose sum is as far from 0 as the sum of ``differences`` is:

        p = P(|sum of s_i |d_i|| >= |sum of d_i|)    over all signs s_i in {-1, +1}

    All 2^n signs are counted, by the distribution of the sum of the positive differences, one difference at a time.
    The p-value of n differences that are not 0 is at least 2 / 2^n.

    Args:
        differences: Difference in errors of each utterance.

    Returns:
        The p-value. 1.0 if all differences are 0.

    Example:
        >>> sign_flip([1, 1, 0, 1, -1, 1, 0, 1, 1, 0])
        0.125
    """
    sizes = sorted(abs(difference) for difference in differences if difference)
    total, reach = sum(sizes), 0
    # Probability of each sum of the positive differences.
    chance_S = np.zeros(total + 1)
    chance_S[0] = 1.0
    for size in sizes:
        chance_S[size : reach + size + 1] += chance_S[: reach + 1].copy()
        reach += size
        chance_S[: reach + 1] *= 0.5
    observed = abs(sum(differences))
    # The sum of all differences is the positive ones minus the rest: 2 S - total.
    return min(1.0, 2 * float(chance_S[(total + observed) // 2 :].sum())) if observed else 1.0


def shown_p(p: float) -> str:
    """A p-value with four decimals.

    Example:
        >>> shown_p(0.04), shown_p(1e-9)
        ('0.0400', '<0.0001')
    """
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _check_same(first: Sequence[Prediction], other: dict[str, Prediction], number: int | None) -> None:
    """Refuse two systems with different utterances. ``number`` is the place of the other one, if there are several."""
    ids = {prediction.id for prediction in first}
    unpaired = sorted(ids ^ set(other))
    pair = "the two files" if number is None else f"files 1 and {number}"
    if unpaired or not ids:
        what = f"{len(unpaired)} utterances are in one of {pair} only: {unpaired[:3]}"
        raise ManifestError("predictions", what if unpaired else "both files are empty", _REMEDY)
    changed = [prediction.id for prediction in first if prediction.refs != other[prediction.id].refs]
    if changed:
        what = f"{len(changed)} utterances have different references, the first is {changed[0]}"
        raise ManifestError("predictions", what if number is None else f"{what}, in {pair}", _REMEDY)
