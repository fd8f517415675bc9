"""Evaluation of a run: compute the scores of each split, write them to files, and print them as tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ssl_asr.console import results
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.metrics.breakdown import Breakdown, break_down, print_breakdown
from ssl_asr.metrics.provenance import Clock
from ssl_asr.metrics.report import (
    Prediction,
    Score,
    print_samples,
    print_scores,
    score_predictions,
    write_predictions,
)
from ssl_asr.metrics.translation import (
    LanguageScore,
    TranslationScore,
    language_scores,
    print_languages,
    print_translation,
    translation_scores,
)
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import Normalizer, Skip

Normalizers = Mapping[str, Normalizer]
"""Text normalizers by name. The first one is used wherever a single normalizer is needed."""


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What an evaluation reports in addition to error rates.

    Attributes:
        by: Keys to group errors by: tags of the manifest, ``lang`` or ``length``.
        confusions: Number of most frequent errors to show.
        worst: Number of worst utterances to show.
        translation: Whether the texts are translations. BLEU and chrF then replace the error breakdown.
        language_code: The shortest code of a language, so that ``zh_cn`` in a manifest equals a detected ``zh``.
            Default: `str` (codes are compared as they are).
        language_tag: The standard tag of a language, to group errors by ``lang``. Default: `str`.
    """

    by: list[str]
    confusions: int
    worst: int
    translation: bool = False
    language_code: Callable[[str], str] = str
    language_tag: Callable[[str], str] = str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores of one split.

    Attributes:
        split: Name of the split.
        predictions: Scored utterances.
        skipped: Utterances that could not be transcribed.
        scores: Error rates, one for each normalizer.
        languages: Accuracy of language detection. Empty if no language was detected.
        translation: BLEU and chrF. Empty if the texts are not translations.
        breakdown: Where the errors are. None if it was not requested.
    """

    split: str
    predictions: Sequence[Prediction]
    skipped: Sequence[Skip]
    scores: Sequence[Score]
    languages: Sequence[LanguageScore] = ()
    translation: Sequence[TranslationScore] = ()
    breakdown: Breakdown | None = None

    @property
    def wer(self) -> float:
        """Word error rate under the first normalizer, as a ratio."""
        return self.scores[0].wer

    def __str__(self) -> str:
        """The scores in one line."""
        if self.translation:
            scores = [f"{one.name} {one.score:.2f}" for one in self.translation]
        else:
            scores = [f"WER {100 * score.wer:.2f} % ({score.normalizer})" for score in self.scores]
        not_scored = f", {len(self.skipped):,} not scored" if self.skipped else ""
        return f"{self.split}: {', '.join(scores)}, {len(self.predictions):,} utterances{not_scored}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``. Empty parts are left out."""
        row: dict[str, Any] = {
            "scores": {score.normalizer: score.as_dict() for score in self.scores},
            "skipped": [asdict(skip) for skip in self.skipped],
        }
        if self.languages:
            row["languages"] = [asdict(one) | {"accuracy": one.accuracy} for one in self.languages]
        if self.translation:
            row["translation"] = [asdict(one) for one in self.translation]
        return row if self.breakdown is None else row | self.breakdown.as_dict()


def report(
    predictions: Mapping[str, Sequence[Prediction]],
    skips: Mapping[str, Sequence[Skip]],
    *,
    normalizers: Normalizers,
    folder: Path,
    console: Console | None,
    samples: int,
    clock: Clock,
    detail: Detail | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Evaluation]:
    """Score predictions, write ``predictions/SPLIT.jsonl`` and ``results.json``, and print the scores.

    Args:
        predictions: Transcribed utterances of each split.
        skips: Utterances of each split that could not be transcribed.
        normalizers: Text normalizers to score under.
        folder: Folder for the files.
        console: Where tables are printed. None prints one line for each split on standard output.
        samples: Number of aligned utterances to print for each split.
        clock: Started with the command.
        detail: What to report in addition to error rates. Default: None (error rates only).
        about: Plain data on the run, for ``results.json``. Default: None (nothing besides the clock's record).

    Returns:
        The evaluation of each split.

    Raises:
        ManifestError: A split has no prediction.
        ConfigError: No utterance has one of the tags to group by.
    """
    evaluations: dict[str, Evaluation] = {}
    for split, rows in predictions.items():
        # Predictions are written before they are scored, so that an error in `detail` does not lose them.
        write_predictions(folder / "predictions" / f"{split}.jsonl", _not_empty(split, rows))
        evaluations[split] = evaluate_split(split, rows, skips.get(split, ()), normalizers, detail)
        if console is not None:
            print_evaluation(evaluations[split], normalizers, console, samples)
        else:
            print(evaluations[split], file=results())
    write_results(folder / "results.json", evaluations, clock, about or {})
    if console is not None:
        console.print(f"results and predictions are in {folder}")
    return evaluations


def evaluate_split(
    split: str,
    predictions: Sequence[Prediction],
    skipped: Sequence[Skip],
    normalizers: Normalizers,
    detail: Detail | None = None,
) -> Evaluation:
    """Compute the scores of a split.

    Raises:
        ManifestError: There is no prediction.
        ConfigError: No utterance has one of the tags to group by.
    """
    rows = _not_empty(split, predictions)
    scores = [score_predictions(rows, name, normalize) for name, normalize in normalizers.items()]
    evaluation = Evaluation(split=split, predictions=rows, skipped=skipped, scores=scores)
    if detail is None:
        return evaluation
    evaluation = replace(evaluation, languages=_detected_languages(rows, detail.language_code))
    if detail.translation:
        # A translation has no word-for-word reference, so a breakdown of word errors would say little.
        return replace(
            evaluation, translation=translation_scores([row.refs for row in rows], [row.hyp for row in rows])
        )
    normalize = next(iter(normalizers.values()))
    breakdown = break_down(
        rows,
        normalize,
        by=detail.by,
        confusions=detail.confusions,
        worst=detail.worst,
        language_tag=detail.language_tag,
    )
    return replace(evaluation, breakdown=breakdown)


def _not_empty(split: str, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
    if not predictions:
        raise ManifestError(split, "no utterance was transcribed", "see the table of dropped utterances")
    return predictions


def _detected_languages(predictions: Sequence[Prediction], code: Callable[[str], str]) -> list[LanguageScore]:
    pairs = [
        (code(row.lang), code(row.detected)) for row in predictions if row.lang is not None and row.detected is not None
    ]
    return language_scores(pairs)


def print_evaluation(evaluation: Evaluation, normalizers: Normalizers, console: Console, samples: int) -> None:
    """Print the tables of a split: details first, then ``samples`` aligned utterances, then error rates."""
    normalize = next(iter(normalizers.values()))
    if evaluation.languages:
        print_languages(evaluation.languages, console)
    if evaluation.translation:
        print_translation(evaluation.translation, console)
    if evaluation.breakdown is not None:
        print_breakdown(evaluation.breakdown, normalize, console)
    print_samples(evaluation.predictions, normalize, console, samples)
    if not evaluation.translation:
        print_scores(_title(evaluation), evaluation.scores, console)


def _title(evaluation: Evaluation) -> str:
    skipped = evaluation.skipped
    if not skipped:
        return evaluation.split
    return f"{evaluation.split}; {len(skipped)} not scored: {', '.join(skip.id for skip in skipped[:5])}"


def write_results(path: Path, evaluations: Mapping[str, Evaluation], clock: Clock, about: dict[str, Any]) -> None:
    """Write the scores of all splits as one JSON object, and under ``run`` where they come from."""
    scores = {split: evaluation.as_dict() for split, evaluation in evaluations.items()}
    with written_whole(path) as file:
        file.write(to_json({"run": {**clock.record(), **about}, **scores}, indent=1) + "\n")


def with_reference(predictions: Sequence[Prediction], key: str) -> list[Prediction]:
    """Predictions with another key of the manifest as their reference text. A list of texts is several references.

    Raises:
        ConfigError: An utterance does not have the key.
    """
    if key == "text":
        return list(predictions)
    found = [(row, reference_texts(row.tags.get(key))) for row in predictions]
    lacking = [row.id for row, texts in found if not texts]
    if lacking:
        what = f"{len(lacking)} utterances have no '{key}', the first is {lacking[0]}"
        raise ConfigError("reference", what, "check the keys of the manifest")
    return [replace(row, ref=texts[0], references=texts[1:]) for row, texts in found]


def reference_texts(value: object) -> list[str]:
    """The references that a line of a manifest has under a key: a text, or a list of texts. Empty for anything else."""
    texts: list[Any] = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(texts)) if all(isinstance(text, str) for text in texts) else []
