"""Several systems on the same utterances: their order, and which of them differ significantly.

Each pair is tested by `ssl_asr.metrics.significance`. Among N (N - 1) / 2 tests some are below 0.05 by chance, so their
p-values are corrected by Holm's method, for each split and normalizer on its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ssl_asr.console import TitledTable
from ssl_asr.metrics.report import Prediction, Score, score_predictions
from ssl_asr.metrics.significance import TEST, Comparison, compare_all, shown_p
from ssl_asr.types import Normalizer

LEVEL = 0.05
# Columns of a console for a name of a system, and for its difference from another one.
_NAME_WIDTH, _PAIR_WIDTH = 20, 10
Pair = tuple[int, int]


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for multiple tests (Holm, 1979). They bound the probability of any false positive.

        sorted p_1 <= … <= p_m        corrected p_k = max over j <= k of min(1, (m - j + 1) p_j)

    Example:
        >>> [round(one, 3) for one in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, highest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda each: p[each])):
        highest = max(highest, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Several systems on the utterances of one split, under one normalizer.

    Attributes:
        scores: Error rates of each system.
        order: Indices of the systems, the lowest WER first. Of equal ones, the one that is given first.
        pairs: Comparison of each pair by the indices of its systems, the smaller one first.
        p_holm: Corrected p-value of each pair.
    """

    scores: list[Score]
    order: list[int]
    pairs: dict[Pair, Comparison]
    p_holm: dict[Pair, float]

    def p(self, one: int, other: int) -> float:
        """Corrected p-value of two systems in any order; 1.0 for a system and itself."""
        return 1.0 if one == other else self.p_holm[min(one, other), max(one, other)]

    @property
    def leaders(self) -> list[int]:
        """The best system, and those that the test cannot tell from it: corrected p >= 0.05. The best first."""
        return [each for each in self.order if self.p(self.order[0], each) >= LEVEL]

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain data for JSON.

        Args:
            names: Name of each system.
        """
        leaders = self.leaders
        systems = [
            {"name": names[each], "rank": rank, "leader": each in leaders, **self.scores[each].as_dict()}
            for rank, each in enumerate(self.order, start=1)
        ]
        pairs = [
            {"names": [names[one], names[other]], **found.as_dict(), "p_holm": self.p_holm[one, other]}
            for (one, other), found in self.pairs.items()
        ]
        return {"systems": systems, "pairs": pairs, "correction": "holm", "level": LEVEL}


def rank(systems: Sequence[Sequence[Prediction]], name: str, normalize: Normalizer, seed: int = 0) -> Ranking:
    """Rank systems by their WER, and compare each pair.

    Args:
        systems: Predictions of each system, at least two.
        name: Name of the normalizer.
        normalize: Text normalizer.
        seed: Seed of the bootstrap of the pairs.

    Raises:
        ManifestError: The utterances or their references differ.
    """
    pairs = compare_all(systems, normalize, seed)
    scores = [score_predictions(each, name, normalize) for each in systems]
    return Ranking(
        scores=scores,
        order=sorted(range(len(systems)), key=lambda each: scores[each].wer),
        pairs=pairs,
        p_holm=dict(zip(pairs, holm([one.p for one in pairs.values()]), strict=True)),
    )


def compare_several(
    split: str,
    systems: Sequence[Sequence[Prediction]],
    names: Sequence[str],
    normalizers: Mapping[str, Normalizer],
    console: Console | None,
) -> tuple[dict[str, Any], float]:
    """Rank systems on a split, and print tables, or one line for each normalizer if there is no console.

    Args:
        split: Name of the split.
        systems: Predictions of each system.
        names: Name of each system.
        normalizers: Text normalizers by name.
        console: Where tables are printed.

    Returns:
        Plain data for JSON, and the difference in WER of the second system minus the first under the first normalizer.
    """
    rankings = {name: rank(systems, name, each) for name, each in normalizers.items()}
    if console is not None:
        print_rankings(split, rankings, names, console)
    else:
        for name, ranking in rankings.items():
            wers = (f"{names[each]} {100 * ranking.scores[each].wer:.2f} %" for each in ranking.order)
            leading = ", ".join(names[each] for each in ranking.leaders)
            print(f"{split}: WER {', '.join(wers)}; leading: {leading} ({name})")
    records = {name: ranking.record(names) for name, ranking in rankings.items()}
    return records, next(iter(rankings.values())).pairs[0, 1].difference


def print_rankings(split: str, rankings: Mapping[str, Ranking], names: Sequence[str], console: Console) -> None:
    """Print the order of the systems, and a matrix of the pairs, for each normalizer."""
    for normalizer, ranking in rankings.items():
        console.print(_order(f"{split}, {normalizer}, WER of {ranking.scores[0].wer_unit}", ranking, names))
        places = range(len(names))
        width = max(1, (console.width - _NAME_WIDTH) // _PAIR_WIDTH)
        for start in places[::width]:
            console.print(_matrix(ranking, names, places[start : start + width]))
    meaning = f"leading: cannot be told from the best (p >= {LEVEL:g})"
    console.print(f"{meaning}. p: {TEST}, corrected for {len(names) * (len(names) - 1) // 2} tests (Holm)")


def _order(title: str, ranking: Ranking, names: Sequence[str]) -> Table:
    table = TitledTable(title)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("system")
    for column in ("WER %", "95 % interval", "sub", "ins", "del"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("p against the best", justify="right")
    table.add_column("leading", no_wrap=True)
    best, leaders = ranking.order[0], ranking.leaders
    for place, each in enumerate(ranking.order, start=1):
        one = ranking.scores[each]
        counts = (f"{n:,}" for n in (one.words.sub, one.words.ins, one.words.dele))
        interval = f"{100 * one.wer_low:.2f} - {100 * one.wer_high:.2f}"
        p = "" if each == best else shown_p(ranking.p(best, each))
        leads = "yes" if each in leaders else "no"
        table.add_row(str(place), names[each], f"{100 * one.wer:.2f}", interval, *counts, p, leads)
    return table


def _matrix(ranking: Ranking, names: Sequence[str], places: Sequence[int]) -> Table:
    """WER of the column's system minus that of the row's, and the corrected p-value. Columns have the rank.

    Args:
        ranking: The systems.
        names: Name of each system.
        places: Ranks of the columns, from 0.
    """
    table = TitledTable("difference in WER %, column minus row, and p")
    table.add_column("system")
    for column in places:
        table.add_column(str(column + 1), justify="right", no_wrap=True)
    for place, row in enumerate(ranking.order, start=1):
        cells = []
        for column in (ranking.order[each] for each in places):
            difference = ranking.scores[column].wer - ranking.scores[row].wer
            cells.append("" if row == column else f"{100 * difference:+.2f}\n{shown_p(ranking.p(row, column))}")
        table.add_row(f"{place} {names[row]}", *cells)
    return table
