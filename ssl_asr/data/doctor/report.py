"""The whole check of manifests, and its result as a table, JSON and cleaned manifests."""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ssl_asr.console import TitledTable
from ssl_asr.data.doctor.audio import Heard, hear
from ssl_asr.data.doctor.findings import LEVELS, Finding, Level, level_of
from ssl_asr.data.doctor.leakage import leakage, leaked_audio, leaked_speakers, speaker_of
from ssl_asr.data.doctor.text import ModelLimits, characters_of, rate_findings, text_findings, training_names
from ssl_asr.data.files import placed
from ssl_asr.data.filters import write_skips
from ssl_asr.data.identity import identity
from ssl_asr.data.manifest import Manifest
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import Downmix, Normalizer, Seconds, Skip, Utterance

# Notes of one kind in one split that are kept. All are counted.
_NOTES = 100


@dataclass(slots=True)
class Split:
    """Figures of a manifest.

    Attributes:
        path: The manifest.
        lines: Number of lines.
        hours: Sum of the durations in the manifest, and of what is decoded where the manifest has none.
        speakers: Number of speakers that the manifest names.
        rates, channels: Number of utterances by sample rate and by number of channels of the file.
        seconds, characters, rate, level_db: Of each utterance that can be decoded: seconds, characters without spaces,
            characters per second, and root mean square in dB.
    """

    path: Path
    lines: int
    hours: float
    speakers: int
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    seconds: list[Seconds] = field(default_factory=list)
    characters: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    level_db: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, manifest: Manifest) -> "Split":
        """The figures that need no audio."""
        speakers = {speaker for utterance in manifest if (speaker := speaker_of(utterance)) is not None}
        return cls(manifest.path, len(manifest), 0.0, len(speakers))

    def add(self, heard: Heard) -> None:
        """Add a decoded utterance."""
        if heard.level_db is None:
            return
        characters = len(heard.utterance.text.replace(" ", ""))
        self.rates[heard.rate] += 1
        self.channels[heard.channels] += 1
        self.seconds.append(heard.seconds)
        self.characters.append(characters)
        self.rate.append(characters / heard.seconds)
        self.level_db.append(heard.level_db)

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        quantiles = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
        figures = {"seconds": self.seconds, "characters_per_second": self.rate, "level_db": self.level_db}
        return {
            "manifest": str(self.path),
            "lines": self.lines,
            "hours": self.hours,
            "speakers": self.speakers,
            "sample_rates": {str(rate): count for rate, count in self.rates.most_common()},
            "channels": {str(channels): count for channels, count in self.channels.most_common()},
            "quantiles": {
                name: dict(zip(map(str, quantiles), np.quantile(some, quantiles).tolist(), strict=True)) if some else {}
                for name, some in figures.items()
            },
        }


@dataclass(slots=True)
class Report:
    """Result of a check.

    Attributes:
        splits: Figures of each manifest.
        training: Names of training splits.
        counts: Number of lines by split and finding.
        findings: All errors and warnings, and the first notes of each kind.
        unseen: Occurrences of characters in evaluation texts that no training text has.
    """

    splits: dict[str, Split]
    training: frozenset[str]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    unseen: Counter[str] = field(default_factory=Counter)
    _seen: set[tuple[str, str, str, str]] = field(default_factory=set)

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings, each once."""
        for one in findings:
            key = (one.split, one.where, one.id, one.finding)
            if key in self._seen:
                continue
            self._seen.add(key)
            self.counts[one.split, one.finding] += 1
            if one.level != "note" or self.counts[one.split, one.finding] <= _NOTES:
                self.findings.append(one)

    def add_invalid(self, invalid: Mapping[str, Sequence[ManifestError]]) -> None:
        """Add the lines of manifests that cannot be used, each with all that is wrong with it."""
        for split, errors in invalid.items():
            lines: dict[str, list[str]] = {}
            for error in errors:
                lines.setdefault(error.where, []).append(error.what)
            self.splits[split].lines += len(lines)
            self.add(Finding(split, "", where, "invalid_line", "; ".join(whats)) for where, whats in lines.items())

    @staticmethod
    def level(finding: str) -> Level:
        """How bad a finding is."""
        return level_of(finding)

    def lines(self, split: str) -> int:
        """Number of lines of a manifest."""
        return self.splits[split].lines

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(count for (_, finding), count in self.counts.items() if level_of(finding) == "error")

    def dropped(self, split: str) -> list[Skip]:
        """The lines of a manifest that its cleaned copy leaves out, each with its first reason."""
        reasons: dict[tuple[str, str], Skip] = {}
        for one in self.findings:
            if one.split == split and one.drops(trains=split in self.training):
                reasons.setdefault((one.where, one.id), one.skip())
        return list(reasons.values())

    def kept(self, split: str, manifest: Manifest) -> Manifest:
        """The lines of a manifest that its cleaned copy has."""
        left_out = {(skip.where, skip.id) for skip in self.dropped(split)}
        return manifest.select([i for i, one in enumerate(manifest) if (one.where, one.id) not in left_out])

    def record(self) -> dict[str, Any]:
        """Plain data for ``check.json``."""
        return {
            "errors": self.errors,
            "splits": {name: split.record() for name, split in self.splits.items()},
            "counts": [
                {"split": split, "finding": finding, "level": level_of(finding), "lines": count}
                for (split, finding), count in self.counts.items()
            ],
            "unseen_characters": dict(self.unseen.most_common()),
            "findings": [{"level": one.level} | asdict(one) for one in self.findings],
        }

    def table(self) -> Table:
        """The number of each finding, by split."""
        table = TitledTable("Findings")
        for column in ("level", "finding", *self.splits):
            table.add_column(column, justify="left" if column in ("level", "finding") else "right")
        names = list(dict.fromkeys(finding for _, finding in self.counts))
        for finding in sorted(names, key=lambda name: list(LEVELS).index(level_of(name))):
            numbers = [self.counts.get((split, finding), 0) for split in self.splits]
            table.add_row(level_of(finding), finding, *(f"{number:,}" if number else "" for number in numbers))
        table.add_section()
        table.add_row("", "lines", *(f"{split.lines:,}" for split in self.splits.values()))
        table.add_row("", "dropped", *(f"{len(self.dropped(name)):,}" for name in self.splits))
        return table


def examine(
    manifests: Mapping[str, Manifest],
    *,
    normalize: Normalizer,
    invalid: Mapping[str, Sequence[ManifestError]] | None = None,
    model: ModelLimits | None = None,
    downmix: Downmix = "mean",
    threads: int = 4,
    progress: bool = False,
) -> Report:
    """Check manifests: every audio file is decoded, and every text is read.

    Args:
        manifests: Manifests by name. See `training_names` for which of them are training splits.
        normalize: Normalizer of texts that are compared.
        invalid: Errors of the lines that are not in the manifests, by the names of the manifests. Default: None (no
            such lines).
        model: Limits and tokenizer of a model, or None.
        downmix: What several channels become.
        threads: Number of threads that decode.
        progress: Whether to show progress bars.
    """
    training = training_names(manifests)
    report = Report({name: Split.of(manifest) for name, manifest in manifests.items()}, training)
    report.add_invalid(invalid or {})
    digests: dict[str, dict[str, Utterance]] = {name: {} for name in manifests}
    usable: dict[str, list[Heard]] = {name: [] for name in manifests}
    places = {name: itertools.count() for name in manifests}
    for heard in hear(manifests, downmix=downmix, threads=threads, progress=progress):
        place, durations_N = next(places[heard.split]), manifests[heard.split].durations_N
        if math.isnan(durations_N[place]):
            durations_N[place] = heard.seconds
        report.add(heard.findings)
        report.splits[heard.split].hours += float(durations_N[place]) / 3600
        report.splits[heard.split].add(heard)
        is_silent = any(one.finding == "silent" for one in heard.findings)
        if heard.digest and not is_silent:
            report.add(_same_samples(heard, digests[heard.split]))
            if heard.utterance.text.strip():
                usable[heard.split].append(heard)
    for name, some in usable.items():
        seconds_N = np.array([heard.seconds for heard in some])
        report.add(rate_findings(name, [heard.utterance for heard in some], seconds_N))
    report.add(text_findings(manifests, training, normalize, model))
    report.add(leakage(manifests, training, normalize))
    report.add(_leaked_samples(digests, training))
    report.add(leaked_speakers(manifests, training))
    for name, manifest in manifests.items():
        report.add(_repeated(name, manifest, normalize))
    _count_unseen(report, manifests, training, normalize)
    return report


def _count_unseen(
    report: Report, manifests: Mapping[str, Manifest], training: Collection[str], normalize: Normalizer
) -> None:
    known = {character for name in training for character in characters_of(manifests[name], normalize)}
    for name in manifests.keys() - training:
        for character, count in characters_of(manifests[name], normalize).items():
            report.unseen[character] += 0 if character in known else count
    report.unseen = +report.unseen


def _same_samples(heard: Heard, digests: dict[str, Utterance]) -> Iterator[Finding]:
    first = digests.setdefault(heard.digest, heard.utterance)
    # The same file and span is `duplicate_path`.
    if first is not heard.utterance and identity(first)[:3] != identity(heard.utterance)[:3]:
        what = f"the samples are those of {first.id} at {first.where}"
        yield Finding.of(heard.split, heard.utterance, "duplicate_audio", what)


def _leaked_samples(digests: Mapping[str, Mapping[str, Utterance]], training: Collection[str]) -> Iterator[Finding]:
    """Lines of training and evaluation with the same samples, in whatever format."""
    trained = {digest: (name, one) for name in training for digest, one in digests[name].items()}
    for split in digests.keys() - set(training):
        for digest, other in digests[split].items():
            name, utterance = trained.get(digest, ("", other))
            if utterance.where != other.where:
                yield from leaked_audio(name, utterance, split, other)


def _repeated(split: str, manifest: Manifest, normalize: Normalizer) -> Iterator[Finding]:
    """Lines with the id, the file and span, or the text, of an earlier line."""
    ids: dict[str, str] = {}
    paths: dict[Any, str] = {}
    texts: dict[int, str] = {}
    for utterance in manifest:
        first = ids.setdefault(utterance.id, utterance.where)
        if first != utterance.where:
            yield Finding.of(split, utterance, "duplicate_id", f"the id is that of {first}")
        first = paths.setdefault(identity(utterance)[:3], utterance.where)
        if first != utterance.where:
            yield Finding.of(split, utterance, "duplicate_path", f"the file and span are those of {first}")
        text = normalize(utterance.text, utterance.lang).strip()
        first = texts.setdefault(hash(text), utterance.where)
        if text and first != utterance.where:
            yield Finding.of(split, utterance, "duplicate_text", f"the text is that of {first}: {text[:80]!r}")


# Files --------------------------------------------------------------------------------------------------------------


def clean_path(folder: Path, split: str) -> Path:
    """Path of the cleaned manifest of a split."""
    return folder / "clean" / f"{split}.jsonl"


def write_clean(report: Report, manifests: Mapping[str, Manifest], folder: Path) -> None:
    """Write ``clean/NAME.jsonl`` of each manifest, and ``skipped.jsonl`` with the reason of each line left out.

    Paths that are relative stay relative, to the new folder. Every line gets an ``id`` and a ``duration``.
    """
    skips = {name: report.dropped(name) for name in manifests}
    for name, manifest in manifests.items():
        path = clean_path(folder, name)
        with written_whole(path) as file:
            for utterance in report.kept(name, manifest):
                file.write(to_json(_row(utterance, manifest.path.parent, path.parent)) + "\n")
    write_skips(folder / "skipped.jsonl", skips)


def _row(utterance: Utterance, source: Path, folder: Path) -> dict[str, Any]:
    """A line for a manifest in another folder."""
    row: dict[str, Any] = {
        # A path under the folder of the manifest was relative, or can be.
        "audio_filepath": placed(utterance.audio_filepath, folder, within=source),
        "duration": utterance.duration,
        "text": utterance.text,
        "id": utterance.id,
    }
    optional = {"offset": 0.0, "lang": None, "task": None, "channel": None, "weight": 1.0}
    row |= {key: value for key, usual in optional.items() if (value := getattr(utterance, key)) != usual}
    references = {"references": list(utterance.references)} if utterance.references else {}
    return row | references | utterance.tags
