"""Scores of translations (BLEU and chrF, by sacrebleu) and of language detection."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.console import Console

from ssl_asr.console import TitledTable
from ssl_asr.errors import ManifestError, optional_import

BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TranslationScore:
    """A corpus-level translation score.

    Attributes:
        name: ``BLEU`` or ``chrF2``.
        score: From 0 to 100.
        margin: Half the width of the 95 % bootstrap interval.
        signature: sacrebleu's signature of the metric.
    """

    name: str
    score: float
    margin: float
    signature: str


def translation_scores(refs: Sequence[Sequence[str]], hyps: Sequence[str]) -> list[TranslationScore]:
    """BLEU (13a tokenizer, mixed case) and chrF of texts without a normalizer.

    Several references count as in sacrebleu: BLEU takes the n-grams of all of them and the length that is closest to
    the hypothesis, chrF takes the reference with the best score of the segment.

    Args:
        refs: References of each text, one or more.
        hyps: Hypotheses.

    Raises:
        ManifestError: There is no text.
        ConfigError: sacrebleu is not installed.
    """
    with optional_import("reference=translation", "sacrebleu", "translation"):
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

    if not refs:
        raise ManifestError("predictions", "no utterance was translated", "see the table of dropped utterances")
    # Lists of the first references, the second ones, and so on. None stands for a reference that there is not.
    lists = list(zip_longest(*refs))
    scores = []
    for metric in (BLEU(), CHRF()):
        # One segment cannot be resampled.
        samples = BOOTSTRAP_SAMPLES if len(refs) > 1 else 1
        found = metric.corpus_score(list(hyps), lists, n_bootstrap=samples)
        interval = getattr(found, "_ci", None)
        margin = 0.0 if interval is None else float(interval)
        scores.append(TranslationScore(found.name, float(found.score), margin, str(metric.get_signature())))
    return scores


def print_translation(scores: Sequence[TranslationScore], console: Console) -> None:
    """Print BLEU and chrF with their intervals."""
    table = TitledTable("Translation")
    for column in ("metric", "score", "95 % interval", "signature"):
        table.add_column(column, justify="right" if column in ("score", "95 % interval") else "left")
    for one in scores:
        table.add_row(one.name, f"{one.score:.2f}", f"± {one.margin:.2f}", one.signature)
    console.print(table)


@dataclass(frozen=True, slots=True)
class LanguageScore:
    """How often a language is detected.

    Attributes:
        lang: Language of the manifest.
        utterances: Number of utterances in this language.
        taken_for: Number of utterances for each detected language, most frequent first.
    """

    lang: str
    utterances: int
    taken_for: dict[str, int]

    @property
    def accuracy(self) -> float:
        """Share of utterances with a correctly detected language."""
        return self.taken_for.get(self.lang, 0) / self.utterances


def language_scores(pairs: Sequence[tuple[str, str]]) -> list[LanguageScore]:
    """Scores from pairs of the language in the manifest and the detected language, sorted by language."""
    scores = []
    for lang in sorted({spoken for spoken, _ in pairs}):
        found = [detected for spoken, detected in pairs if spoken == lang]
        counts = sorted(((found.count(other), other) for other in set(found)), key=lambda pair: (-pair[0], pair[1]))
        scores.append(LanguageScore(lang, len(found), {other: count for count, other in counts}))
    return scores


def print_languages(scores: Sequence[LanguageScore], console: Console) -> None:
    """Print the accuracy of language detection for each language."""
    table = TitledTable("Language detection")
    for column in ("language", "utterances", "accuracy %", "detected as"):
        table.add_column(column, justify="left" if column in ("language", "detected as") else "right")
    for one in scores:
        taken = ", ".join(f"{other} {count:,}" for other, count in one.taken_for.items())
        table.add_row(one.lang, f"{one.utterances:,}", f"{100 * one.accuracy:.1f}", taken)
    console.print(table)
