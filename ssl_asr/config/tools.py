"""The configuration of commands that are not about one model: manifests, checks, comparison, test corpora."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval, MinLen

from ssl_asr.config.parts import Extended, Named, Normalizers, Scoring, Writing
from ssl_asr.config.run_folder import training_run
from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import shown
from ssl_asr.types import (
    Downmix,
    Expected,
    Fraction,
    InputPath,
    ModelName,
    NonNegativeInt,
    NormalizerName,
    OutputPath,
    PositiveFloat,
    PositiveInt,
)

SourceKind = Literal[
    "auto",
    "folder",
    "table",
    "manifest",
    "nemo",
    "kaldi",
    "speechbrain_csv",
    "speechbrain_json",
    "lhotse",
    "lhotse_shar",
    "audiofolder",
    "huggingface",
    "librispeech",
    "mls",
    "common_voice",
    "fleurs",
    "voxpopuli",
    "ljspeech",
    "tedlium",
    "an4",
]
CorpusFormat = Literal[
    "manifest", "nemo", "kaldi", "speechbrain_csv", "speechbrain_json", "lhotse", "audiofolder", "shar"
]
COLUMNS = ("audio", "text", "id", "speaker", "lang", "offset", "end", "duration", "split", "channel", "tier")
Columns = Annotated[dict[str, str | None], Expected("{key: name of a column, …}")]
Splits = Annotated[dict[str, float], MinLen(1), Expected("{name: fraction, …}, such as {train: 0.8, dev: 0.2}")]
_DIGEST = re.compile(r"md5:[0-9a-fA-F]{32}|sha1:[0-9a-fA-F]{40}|sha256:[0-9a-fA-F]{64}")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Extended):
    """Make manifests from corpora, datasets and the formats of other toolkits, and convert them.

    Attributes:
        input: Folders, files, archives (.tar.gz, .zip), addresses (https://…), Hugging Face datasets (name/name), or
            corpora to download: librispeech:PART, mini_librispeech:PART, ljspeech, tedlium3. The key may be left out.
        output_dir: Folder of the manifests, of skipped.jsonl, and of everything that is downloaded or extracted. Audio
            below it, or below the folder it is in, has relative paths in the manifests, so that audio and manifests
            can be moved together. Other audio has absolute paths.
        overwrite: Replace what an earlier preparation wrote in ``output_dir``.
        kind: What the input is. auto finds it out and says it.
        format: What is written: a manifest for each split, or the format of another toolkit. ``shar`` writes the audio
            to shards of tar that lhotse reads, and manifests that name their members.
        shard_size: For format=shar, utterances in a shard.
        shard_address: For format=shar, where ``output_dir`` will be uploaded: s3://bucket/name. The manifests name the
            shards there. null names the local files.
        columns: Name of the column of each key in a table, JSON or dataset: columns.text=sentence. Others are guessed.
            A table without names takes numbers from 1. tier names a tier of TextGrid. For a folder of audio,
            columns.speaker=folder takes the name of a file's folder as its speaker.
        audio_dir: Folder that relative paths of audio start at. null takes the folder of the file that names them.
        segments: For transcripts with times, ``rows`` makes each segment an utterance, and ``keep`` each recording.
        model: Model that finds the times of words in recordings longer than ``longest_s`` that have one text without
            times, so that they can be cut: a run directory, checkpoint file, or name of a pretrained checkpoint.
        longest_s: Longest utterance that ``model`` cuts, in seconds. Cuts are at ends of sentences, and in pauses.
        subset: Subset of a Hugging Face dataset, such as a language.
        require_text: Leave out audio without a transcript. Otherwise its text is empty, as for noise.
        digest: Digest of a file to download, as sha256:… or md5:…, if the corpus publishes none.
        splits: Fraction of the hours by name: splits={train: 0.8, dev: 0.1, test: 0.1}. null keeps the source's splits.
        split_by: What is in one split only.
        seed: Seed of the splits.
        max_skip_fraction: Largest fraction of the utterances that may be left out.
        verbose: Show progress bars and tables.
    """

    section: ClassVar[str] = "Preparation"
    positional: ClassVar[tuple[str, ...]] = ("input",)
    flags: ClassVar[dict[str, str]] = {
        "-f": "format",
        "--format": "format",
        "-o": "output_dir",
        "--output": "output_dir",
    }

    input: list[InputPath]
    output_dir: OutputPath
    overwrite: bool = False
    kind: SourceKind = "auto"
    format: CorpusFormat = "manifest"
    shard_size: PositiveInt = 1000
    shard_address: str | None = None
    columns: Columns | None = None
    audio_dir: InputPath | None = None
    segments: Literal["rows", "keep"] = "rows"
    model: ModelName | None = None
    longest_s: PositiveFloat = 30.0
    subset: str | None = None
    require_text: bool = True
    digest: str | None = None
    splits: Splits | None = None
    split_by: Literal["speaker", "recording", "utterance"] = "speaker"
    seed: NonNegativeInt = 0
    max_skip_fraction: Fraction = 0.05
    verbose: bool = True

    def conflicts(self) -> Iterator[ConfigError]:
        """Values that do not go together."""
        for name, fraction in (self.splits or {}).items():
            if fraction <= 0:
                yield ConfigError(f"splits.{name}", f"is {fraction:g}, expected a fraction above 0", "leave it out")
        total = sum((self.splits or {"": 1.0}).values())
        if abs(total - 1) > 1e-6:
            yield ConfigError("splits", f"is {total:g} in sum, expected 1", "write for example {train: 0.9, dev: 0.1}")
        if self.digest is not None and _DIGEST.fullmatch(self.digest) is None:
            yield ConfigError("digest", f"is {shown(self.digest)}, expected sha256:… or md5:… with all its digits")
        given = {"shard_size": self.shard_size != 1000, "shard_address": self.shard_address is not None}
        for name in (name for name, is_given in given.items() if is_given and self.format != "shar"):
            yield ConfigError(name, f"changes nothing for format={self.format}", "leave it out, or set format=shar")
        if self.model is None and self.longest_s != 30:
            yield ConfigError("longest_s", "changes nothing without a model", "give model=…, or leave it out")
        if self.shard_address is not None and "://" not in self.shard_address:
            what = f"is {shown(self.shard_address)}, expected an address"
            yield ConfigError("shard_address", what, "write for example s3://bucket/name")
        yield from training_run(Path(self.output_dir))


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Scoring, Writing):
    """Test whether one system is better than another on the same utterances, or rank several.

    With more than two systems, each pair is tested, and p-values are corrected by Holm's method.

    Attributes:
        first: predictions.jsonl, or the folder of a run or an evaluation. The key may be left out.
        second: What to compare with it. The key may be left out.
        others: Further systems. The key may be left out.
        output: JSON file for the results.
        worst: With two systems, number of shown utterances whose errors changed most.
        verbose: Show tables.
    """

    section: ClassVar[str] = "Comparison"
    positional: ClassVar[tuple[str, ...]] = ("first", "second", "others")

    first: InputPath
    second: InputPath
    others: list[InputPath] = field(default_factory=list)
    output: OutputPath | None = None
    worst: NonNegativeInt = 5
    verbose: bool = True


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Extended, Writing):
    """Write runs as one HTML file, which opens from a disk: curves, errors with audio, settings.

    Several runs are ranked and compared by paired tests. Of a sweep, the effect of each choice is plotted.

    Attributes:
        runs: Folders of runs, evaluations and sweeps, wildcards, or files of predictions. The key may be left out.
        output: HTML file.
        normalizers: Text normalizers. null takes those that the runs were scored under.
        splits: Names of the splits to show. null shows all.
        by: Keys to group errors by: tags of the manifest, lang, or length. null takes length and the tags that have 2
            to 30 values.
        confusions: Number of most frequent substitutions, insertions and deletions each.
        worst: Number of utterances with the most errors, for each split.
        audio: Audio of these utterances: ``embed`` writes it into the page, ``link`` refers to its files.
        audio_mb: Largest size of all embedded audio together, in MB. What exceeds it is left out and counted.
        pictures: Draw CTC posteriors or cross-attention of two utterances. This loads the model.
        details: Of several runs, number of the best ones that are shown in full.
        verbose: Show progress bars.
    """

    section: ClassVar[str] = "Report"
    positional: ClassVar[tuple[str, ...]] = ("runs",)
    flags: ClassVar[dict[str, str]] = {"-o": "output", "--output": "output"}

    runs: Annotated[list[InputPath], MinLen(1)]
    output: OutputPath = "report.html"
    normalizers: Normalizers | None = None
    splits: list[str] | None = None
    by: list[str] | None = None
    confusions: NonNegativeInt = 15
    worst: NonNegativeInt = 10
    audio: Literal["embed", "link", "none"] = "embed"
    audio_mb: PositiveFloat = 8.0
    pictures: bool = False
    details: NonNegativeInt = 4
    verbose: bool = True


@dataclass(frozen=True, kw_only=True)
class LmConfig(Writing, Extended):
    """Estimate an n-gram language model (interpolated modified Kneser-Ney) and write it as ARPA.

    Attributes:
        input: Manifests (.jsonl) and text files (.txt, .txt.gz) with one sentence a line.
        output: ARPA file. A name that ends in .gz is compressed.
        order: Length of the longest n-grams.
        unit: ``word``, ``char``, or ``label`` for the labels of a model.
        model: For unit=label, run directory or checkpoint with the labels.
        normalizer: Text normalizer that is applied first.
        prune: For each order, n-grams that occur at most this often are removed. The last number holds for all longer
            n-grams. Unigrams are kept. An empty list prunes nothing.
        check: Manifests and text files to measure the perplexity of.
        verbose: Show tables.
    """

    section: ClassVar[str] = "Language model"
    positional: ClassVar[tuple[str, ...]] = ("input",)

    input: list[InputPath]
    output: OutputPath
    order: Annotated[int, Interval(ge=1, le=100)] = 4
    unit: Literal["word", "char", "label"] = "word"
    model: ModelName | None = None
    normalizer: NormalizerName = "lower"
    prune: list[NonNegativeInt] = field(default_factory=list)
    check: list[InputPath] = field(default_factory=list)
    verbose: bool = True

    def conflicts(self) -> Iterator[ConfigError]:
        """Values that do not go together."""
        if self.unit == "label" and self.model is None:
            yield ConfigError(
                "model", "is missing, and unit=label needs its labels", "give model=RUN, or use unit=word"
            )
        if self.unit != "label" and self.model is not None:
            yield ConfigError("model", f"is not used with unit={self.unit}", "use unit=label, or remove model")
        if sorted(self.prune) != self.prune:
            yield ConfigError("prune", f"is {self.prune}", "list the numbers in rising order, such as [0,0,1]")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Extended):
    """Report what is wrong with the audio and the texts of manifests. The exit code is 1 if there are errors.

    Everything is decoded and read. Writes check.json, check.html with plots, a cleaned copy of each manifest in clean/,
    and skipped.jsonl with the reason of each line that is left out. Warnings and notes are no errors. The exit code is
    2 if the check cannot run.

    Attributes:
        manifest: Manifests: a path, a list of paths, or paths by name. The key may be left out. A manifest whose name
            contains ``train`` is a training split. Without such a name, the first manifest is.
        output_dir: Folder of the report and of the cleaned manifests.
        model: Run directory, checkpoint file, ``backbone`` option, or name of a pretrained checkpoint. Training lines
            have to fit it. null checks no limits.
        transcribe: Also transcribe every utterance with the model, to find texts that do not go with their audio.
        normalizer: Text normalizer of texts that are compared.
        downmix: What to do with several channels: ``mean``, ``first`` or ``refuse``.
        threads: Number of threads that decode.
        verbose: Show progress bars and tables.
    """

    section: ClassVar[str] = "Check"
    positional: ClassVar[tuple[str, ...]] = ("manifest",)

    manifest: Named
    output_dir: OutputPath = "check"
    model: ModelName | None = None
    transcribe: bool = False
    normalizer: NormalizerName = "lower"
    downmix: Downmix = "mean"
    threads: PositiveInt = 4
    verbose: bool = True

    def conflicts(self) -> Iterator[ConfigError]:
        """Values that do not go together."""
        if self.transcribe and self.model is None:
            yield ConfigError("transcribe", "needs a model", "give model=…, or leave transcribe out")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Synthesize a small corpus of a narrow domain with espeak-ng voices, for smoke tests.

    Attributes:
        output_dir: Folder of audio and manifests.
        train: Number of sentences in train. Splits share no sentence and no voice.
        dev: Number of sentences in dev.
        test: Number of sentences in test.
        seed: Seed of sentences, voices and noise.
        verbose: Show progress bars.
    """

    section: ClassVar[str] = "Corpus"

    output_dir: OutputPath
    train: PositiveInt = 240
    dev: PositiveInt = 32
    test: PositiveInt = 64
    seed: NonNegativeInt = 0
    verbose: bool = True


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Synthesize a corpus, evaluate Whisper on it, fine-tune, and evaluate again. Takes minutes.

    Attributes:
        output_dir: Folder of corpus, run and scores.
        model: ``backbone`` option of the Whisper to start from.
        train: Number of sentences in train.
        dev: Number of sentences in dev.
        test: Number of sentences in test.
        epochs: Epochs of fine-tuning.
    """

    section: ClassVar[str] = "Demo"

    output_dir: OutputPath = "demo"
    model: str = "whisper_tiny_en"
    train: PositiveInt = 240
    dev: PositiveInt = 32
    test: PositiveInt = 64
    epochs: PositiveInt = 2


@dataclass(frozen=True, kw_only=True)
class DashboardConfig(Writing):
    """Write a W&B workspace with panels of scores, utterances, training, speed and sweeps.

    Attributes:
        project: W&B project of the runs.
        entity: W&B user or team. null is the default one.
        name: Title of the workspace.
        splits: Names of the splits that runs score.
        output: JSON file to write the workspace to. null saves it in W&B, which needs an API key.
    """

    section: ClassVar[str] = "Dashboard"

    project: str = "ssl_asr"
    entity: str | None = None
    name: str = "Speech recognition"
    splits: list[str] = field(default_factory=lambda: ["dev", "test"])
    output: OutputPath | None = None
