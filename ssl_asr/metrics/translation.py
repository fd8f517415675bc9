"""Scores of translations, by sacrebleu: BLEU and chrF with their signatures and intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ssl_asr.errors import ManifestError, missing_extra

BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class TranslationScore:
    """A corpus-level score from 0 to 100, half the width of its 95 % interval, and sacrebleu's signature of it."""

    name: str
    score: float
    margin: float
    signature: str


def translation_scores(refs: Sequence[str], hyps: Sequence[str]) -> list[TranslationScore]:
    """BLEU (13a, mixed case) and chrF of texts as they are, one reference each.

    Raises:
        ManifestError: there is nothing to score.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise missing_extra("reference=translation", "sacrebleu", "translation") from None

    if not refs:
        raise ManifestError("predictions", "no utterance was translated", "see the table of what was dropped")
    scores = []
    for metric in (BLEU(), CHRF()):
        # With one segment there is nothing to draw anew.
        samples = BOOTSTRAP_SAMPLES if len(refs) > 1 else 1
        found = metric.corpus_score(list(hyps), [list(refs)], n_bootstrap=samples)
        margin = float(getattr(found, "_ci", 0.0) or 0.0)
        scores.append(TranslationScore(found.name, float(found.score), margin, str(metric.get_signature())))
    return scores


def print_translation(scores: Sequence[TranslationScore], console: Console) -> None:
    """Print scores of translations."""
    table = Table(title="Translation", title_justify="left")
    for column in ("metric", "score", "95 % interval", "signature"):
        table.add_column(column, justify="right" if column in ("score", "95 % interval") else "left")
    for one in scores:
        table.add_row(one.name, f"{one.score:.2f}", f"± {one.margin:.2f}", one.signature)
    console.print(table)


@dataclass(frozen=True, slots=True)
class LanguageScore:
    """Utterances of a language, and what they were taken for, the most frequent first."""

    lang: str
    utterances: int
    taken_for: dict[str, int]

    @property
    def accuracy(self) -> float:
        """The share that was recognised."""
        return self.taken_for.get(self.lang, 0) / self.utterances


def language_scores(pairs: Sequence[tuple[str, str]]) -> list[LanguageScore]:
    """How often each language was recognised, of pairs of the language spoken and the one detected."""
    scores = []
    for lang in sorted({spoken for spoken, _ in pairs}):
        heard = [detected for spoken, detected in pairs if spoken == lang]
        counts = sorted(((heard.count(other), other) for other in set(heard)), key=lambda pair: (-pair[0], pair[1]))
        scores.append(LanguageScore(lang, len(heard), {other: count for count, other in counts}))
    return scores


def print_languages(scores: Sequence[LanguageScore], console: Console) -> None:
    """Print how often each language was recognised."""
    table = Table(title="Language detected", title_justify="left")
    for column in ("spoken", "utterances", "right %", "taken for"):
        table.add_column(column, justify="left" if column in ("spoken", "taken for") else "right")
    for one in scores:
        taken = ", ".join(f"{other} {count:,}" for other, count in one.taken_for.items())
        table.add_row(one.lang, f"{one.utterances:,}", f"{100 * one.accuracy:.1f}", taken)
    console.print(table)
