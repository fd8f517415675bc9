"""The configuration of commands that are not about one model: comparison, checks, synthesized corpora."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ssl_asr.config.parts import Extended, Named, Scoring
from ssl_asr.errors import ConfigError
from ssl_asr.types import Downmix, InputPath, ModelName, NonNegativeInt, NormalizerName, OutputPath, PositiveInt


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Scoring):
    """Test whether one system is better than another on the same utterances.

    Attributes:
        first: predictions.jsonl, or the folder of a run or an evaluation. The key may be left out.
        second: What to compare with it. The key may be left out.
        output: JSON file for the results.
        worst: Number of shown utterances whose errors changed most.
        verbose: Show tables.
    """

    section: ClassVar[str] = "Comparison"
    positional: ClassVar[tuple[str, ...]] = ("first", "second")

    first: InputPath
    second: InputPath
    output: OutputPath | None = None
    worst: NonNegativeInt = 5
    verbose: bool = True


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
