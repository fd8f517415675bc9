"""The scores of a run: computed from its predictions, and compared with what the run recorded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from ssl_asr.data.text import get_normalizers
from ssl_asr.metrics.edit import Edits
from ssl_asr.metrics.report import Score, score_predictions
from ssl_asr.report.runs import Run
from ssl_asr.types import Normalizer, NormalizerName

# Scored if a run does not say under which normalizers it was scored.
_USUAL = ("lower", "whisper_english")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A run with its scores.

    Attributes:
        run: The run.
        normalizers: Text normalizers by name. The first one is used where one score is needed.
        scores: Scores of each split, one for each normalizer. Those of a split without predictions are the recorded
            ones.
        notes: Remarks on the scores.
    """

    run: Run
    normalizers: Mapping[str, Normalizer]
    scores: dict[str, list[Score]]
    notes: list[str] = field(default_factory=list)

    @property
    def normalize(self) -> Normalizer:
        """The first normalizer."""
        return next(iter(self.normalizers.values()))

    def wer(self, split: str) -> float:
        """WER of a split under the first normalizer; NaN without."""
        return self.scores[split][0].wer if split in self.scores else math.nan


def known_normalizers(runs: Sequence[Run]) -> list[str]:
    """The normalizers that all runs with recorded scores were scored under. The usual ones if there are none.

    Normalizers of other packages, which cannot be found here, are left out.
    """
    each = [dict.fromkeys(name for split in run.results for name in run.recorded(split)) for run in runs]
    scored = [names for names in each if names]
    shared = [name for name in scored[0] if all(name in names for names in scored)] if scored else []
    return [name for name in shared if name in get_args(NormalizerName)] or list(_USUAL)


def score(run: Run, normalizers: Sequence[str], splits: Sequence[str] | None) -> Scored:
    """Score a run.

    Args:
        run: The run.
        normalizers: Names of text normalizers, the one that decides first.
        splits: Names of splits. None takes all.
    """
    notes: list[str] = []
    found = get_normalizers(normalizers)
    wanted = [name for name in _ordered([*run.splits, *run.results]) if splits is None or name in splits]
    scores: dict[str, list[Score]] = {}
    for split in wanted:
        if split in run.splits:
            scores[split] = [score_predictions(run.splits[split], name, each) for name, each in found.items()]
            notes += _differences(run, split, scores[split])
        elif recorded := [one for name in found if (one := _recorded(run.recorded(split).get(name, {}))) is not None]:
            scores[split] = recorded
            notes.append(f"{split}: no predictions, so the scores are those of results.json")
    return Scored(run=run, normalizers=found, scores=scores, notes=notes)


def _ordered(names: Sequence[str]) -> list[str]:
    """Test sets first, and the dev set last, as it chose the checkpoint."""
    return sorted(dict.fromkeys(names), key=lambda name: name == "dev")


def _differences(run: Run, split: str, scores: Sequence[Score]) -> list[str]:
    """Where the recorded scores are others, as after an edit of the predictions."""
    recorded = run.recorded(split)
    pairs = [(one, recorded[one.normalizer].get("wer")) for one in scores if one.normalizer in recorded]
    return [
        f"{split}, {one.normalizer}: results.json has a WER of {100 * wer:.2f} %, and the predictions "
        f"{100 * one.wer:.2f} %: one of the files is of another evaluation"
        for one, wer in pairs
        if isinstance(wer, int | float) and not math.isclose(wer, one.wer, abs_tol=1e-9)
    ]


def _recorded(row: dict[str, Any]) -> Score | None:
    """A score of ``results.json``, or None if it lacks something."""
    try:
        edits = {key: _edits(row[key]) for key in ("words", "chars")}
        return Score(**{one.name: edits.get(one.name, row.get(one.name)) for one in fields(Score)})  # type: ignore[arg-type]
    except (KeyError, TypeError):
        return None


def _edits(row: dict[str, int]) -> Edits:
    dele = row["del"] if "del" in row else row["dele"]
    return Edits(row["sub"], row["ins"], dele, row["ref"])
