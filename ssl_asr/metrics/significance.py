"""Significance of the difference between two systems on the same utterances."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_asr.errors import ManifestError
from ssl_asr.metrics.edit import Edits, Unit, wer_unit, word_edits
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Normalizer

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same utterances.

    Attributes:
        wer_unit: What the WER counts; see `ssl_asr.metrics.edit`.
        first, second: Errors of each system in these units.
        low, high: Bounds of the 95 % interval of ``second - first`` in WER, by paired bootstrap over utterances.
        better: Share of the bootstrap samples in which the second system has fewer errors (Bisani and Ney, 2004,
            "probability of improvement"). Ties count one half.
        p: Two-sided p-value of the matched pairs test with utterances as segments (Gillick and Cox, 1989).
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
        return f"{rates}, difference {100 * self.difference:+.2f}, {interval}, p {self.p:.4f}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"first": self.first.record(), "second": self.second.record()}

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
    by_id = {prediction.id: prediction for prediction in second}
    _check_same(first, by_id)
    edits = [_edits_of_pair(prediction, by_id[prediction.id], normalize) for prediction in _sorted(first)]
    one, two = [pair[0] for pair in edits], [pair[1] for pair in edits]
    errors_PN = np.array([[each.errors for each in system] for system in (one, two)])
    refs_PN = np.array([[each.ref for each in system] for system in (one, two)])
    differences_N = errors_PN[1] - errors_PN[0]
    rates_S = _bootstrap_differences(errors_PN, refs_PN, seed)
    low, high = np.quantile(rates_S, [0.025, 0.975]) if len(rates_S) else (math.nan, math.nan)
    right_PN = errors_PN == 0
    return Comparison(
        wer_unit=wer_unit(each.pair(normalize) for each in first),
        first=sum(one, Edits()),
        second=sum(two, Edits()),
        low=float(low),
        high=float(high),
        better=float((rates_S < 0).mean() + 0.5 * (rates_S == 0).mean()) if len(rates_S) else math.nan,
        p=matched_pairs(differences_N.tolist()),
        first_only=int((right_PN[0] & ~right_PN[1]).sum()),
        second_only=int((~right_PN[0] & right_PN[1]).sum()),
        utterances=len(differences_N),
    )


def _sorted(predictions: Sequence[Prediction]) -> list[Prediction]:
    return sorted(predictions, key=lambda prediction: prediction.id)


def _edits_of_pair(first: Prediction, second: Prediction, normalize: Normalizer) -> tuple[Edits, Edits]:
    """Edits of both systems. Of several references, each system may be closest to another one."""
    one, two = (word_edits(*replace(each, lang=first.lang).pair(normalize)) for each in (first, second))
    return one, two


def _bootstrap_differences(errors_PN: NDArray[np.int64], refs_PN: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Difference in WER of each bootstrap sample. Samples in which a system has no reference word are left out."""
    rng = np.random.default_rng(seed)
    count, rates = errors_PN.shape[1], []
    for _ in range(BOOTSTRAP_SAMPLES):
        drawn_N = rng.integers(0, count, count)
        (first, second), (first_refs, second_refs) = errors_PN[:, drawn_N].sum(1), refs_PN[:, drawn_N].sum(1)
        if first_refs == second_refs > 0:
            rates.append((second - first) / first_refs)
        elif first_refs > 0 and second_refs > 0:
            rates.append(second / second_refs - first / first_refs)
    return np.array(rates, dtype=np.float64)


def matched_pairs(differences: Sequence[int]) -> float:
    """Two-sided p-value of the matched pairs test, with the normal distribution.

        z = mean(d) / (std(d) / sqrt(n))        p = erfc(|z| / sqrt(2))

    Args:
        differences: Difference in errors of each utterance.

    Returns:
        The p-value. 1.0 if there are fewer than two utterances or all differences are 0.

    Example:
        >>> round(matched_pairs([1, 1, 0, 1, -1, 1, 0, 1, 1, 0]), 3)
        0.025
    """
    differences_N = np.array(differences, dtype=np.float64)
    if len(differences_N) < 2 or not differences_N.any():
        return 1.0
    deviation = differences_N.std(ddof=1)
    if deviation == 0:
        return 0.0
    z = abs(differences_N.mean()) / (deviation / math.sqrt(len(differences_N)))
    return math.erfc(z / math.sqrt(2))


def _check_same(first: Sequence[Prediction], second: dict[str, Prediction]) -> None:
    ids = {prediction.id for prediction in first}
    unpaired = sorted(ids ^ set(second))
    if unpaired or not ids:
        what = f"{len(unpaired)} utterances are in one of the two files only: {unpaired[:3]}"
        raise ManifestError(
            "predictions", what if unpaired else "both files are empty", "compare two systems on the same manifest"
        )
    changed = [prediction.id for prediction in first if prediction.refs != second[prediction.id].refs]
    if changed:
        what = f"{len(changed)} utterances have different references, the first is {changed[0]}"
        raise ManifestError("predictions", what, "compare two systems on the same manifest")
