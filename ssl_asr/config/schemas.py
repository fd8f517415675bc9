"""The configuration of every command: one frozen dataclass each, with the parts that commands share as base classes.

Field types are the types that commands get. A field marked by `group` is an option: Hydra composes it from a YAML file
under ``conf/``, and `ssl_asr.config.options.build_option` turns its node into the option's dataclass. All other fields
are plain values, and their annotations say which values are allowed.

Annotations stay text until a command line is checked, so that importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Interval, MinLen

from ssl_asr.config import exporting, parts, serving, tools
from ssl_asr.config.exporting import ExportConfig, ImportConfig
from ssl_asr.config.parts import (
    Confidence,
    Decoding,
    Extended,
    Format,
    Formats,
    Languages,
    LongRecordings,
    ModelInput,
    Named,
    Normalizers,
    Running,
    Scoring,
    Sides,
    SomeNamed,
    SubtitleStyle,
    TimedFormat,
    TimedFormats,
    Writing,
    group,
)
from ssl_asr.config.run_folder import other_results, other_run
from ssl_asr.config.serving import ServeConfig
from ssl_asr.config.tools import CheckConfig, CompareConfig, CorpusConfig, DashboardConfig, DemoConfig, PrepareConfig
from ssl_asr.errors import ConfigError, did_you_mean, missing_extra
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
    RecognitionPrecision,
    WorkerCount,
)

if TYPE_CHECKING:
    from ssl_asr.data.augment import AudioAugment
    from ssl_asr.data.options import DataConfig
    from ssl_asr.data.tokenizer import TokenizerOption
    from ssl_asr.decoding.ctc import CtcBeam
    from ssl_asr.decoding.option import DecoderOption
    from ssl_asr.models.encoder import Backbone
    from ssl_asr.models.freezing import FreezePolicy
    from ssl_asr.models.heads import Head
    from ssl_asr.models.spec_augment import Augment
    from ssl_asr.models.states import StatesOption
    from ssl_asr.training.callback_options import CallbackOption
    from ssl_asr.training.loggers import LoggerConfig
    from ssl_asr.training.optimizers import OptimizerConfig
    from ssl_asr.training.schedulers import SchedulerConfig
    from ssl_asr.training.state_cache import DiskStateCache, NoStateCache
    from ssl_asr.training.tasks import Task
    from ssl_asr.training.trainer import TrainerConfig

# Short forms of the keys of a command that writes one file per recording.
FILE_FLAGS = {"-f": "format", "--format": "format", "-o": "output", "--output": "output"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Extended):
    """Fine-tune a pretrained speech model and report its WER.

    Attributes:
        backbone: Pretrained model.
        task: ``ctc``, ``joint`` CTC-attention, or ``seq2seq`` (Whisper's encoder and decoder).
        states: Encoder states that the head reads.
        head: New layers on the encoder.
        tokenizer: Vocabulary of the targets.
        decoder: How dev and test sets are decoded.
        freeze_policy: Which layers train. See ``freeze``.
        augment: Masking of the encoder's input in training.
        audio_augment: Changes of the training audio, in order. Several options may be chosen:
            audio_augment=[rooms,noise].
        state_cache: Where the states of a frozen encoder are kept between epochs.
        data: Manifests and batches.
        optimizers: Optimizer of the encoder and of the rest.
        schedulers: Learning-rate schedule of the encoder and of the rest.
        trainer: Epochs, precision, devices, checkpoints.
        logger: Where metrics are logged.
        callbacks: Lightning callbacks. Several options may be chosen: callbacks=[early_stopping,lr_monitor].
        freeze: false trains every weight. true applies freeze_policy, and the policy ``encoder`` if none is named. null
            applies the named policy, and the recommendation of the backbone if none is named.
        seed: Seed of everything random.
        normalizers: Text normalizers. Scores are reported under each. The first one's WER chooses the best checkpoint.
        resume: Checkpoint to continue from, or ``auto`` for the last checkpoint in ``run_dir`` if there is one.
        run_dir: Folder of all results. A new folder named by the time if not given. If the folder holds a run,
            ``resume`` has to continue that run.
        run_name: Name shown by loggers. null takes the name of the folder.
        samples: Number of aligned hypotheses shown at each validation.
        verbose: Show progress bars and tables.
    """

    section: ClassVar[str] = "Run"
    needs_data: ClassVar[bool] = True

    backbone: Backbone = field(metadata=group("backbone", "ssl_asr.models.encoder.Backbone"))
    task: Task = field(metadata=group("task", "ssl_asr.training.tasks.Task"))
    states: StatesOption = field(metadata=group("states", "ssl_asr.models.states.StatesOption"))
    head: Head = field(metadata=group("head", "ssl_asr.models.heads.Head"))
    tokenizer: TokenizerOption = field(metadata=group("tokenizer", "ssl_asr.data.tokenizer.TokenizerOption"))
    decoder: DecoderOption = field(metadata=group("decoder", "ssl_asr.decoding.option.DecoderOption"))
    freeze_policy: FreezePolicy = field(metadata=group("freeze_policy", "ssl_asr.models.freezing.FreezePolicy"))
    augment: Augment = field(metadata=group("augment", "ssl_asr.models.spec_augment.Augment"))
    audio_augment: dict[str, AudioAugment] = field(default_factory=dict, metadata=group("audio_augment"))
    state_cache: NoStateCache | DiskStateCache = field(metadata=group("state_cache"))
    data: DataConfig = field(metadata=group("data"))
    optimizers: Sides[OptimizerConfig] = field(
        metadata=group("optimizer", "ssl_asr.training.optimizers.OptimizerConfig")
    )
    schedulers: Sides[SchedulerConfig] = field(
        metadata=group("scheduler", "ssl_asr.training.schedulers.SchedulerConfig")
    )
    trainer: TrainerConfig = field(metadata=group("trainer", "ssl_asr.training.trainer.TrainerConfig"))
    logger: LoggerConfig = field(metadata=group("logger", "ssl_asr.training.loggers.LoggerConfig"))
    callbacks: dict[str, CallbackOption] = field(default_factory=dict, metadata=group("callbacks"))
    freeze: bool | None = None
    seed: NonNegativeInt = 0
    normalizers: Normalizers = field(default_factory=lambda: ["lower", "whisper_english"])
    resume: InputPath | None = None
    run_dir: OutputPath
    run_name: str | None = None
    samples: NonNegativeInt = 4
    verbose: bool = True

    def conflicts(self) -> Iterator[ConfigError]:
        """A folder that holds another run. A development run writes no files, so it may use any folder."""
        if self.trainer.fast_dev_run is False:
            yield from other_run(self.resume, Path(self.run_dir))

    def logged_metrics(self) -> list[str]:
        """Names of the metrics that a validation logs."""
        named = [f"val/{kind}/{name}" for kind in ("wer", "cer") for name in self.normalizers]
        return ["val/loss", "val/wer", "val/cer", *named]

    def callback_name(self, option: object) -> str:
        """Name of the callback that has this very option."""
        return next(name for name, each in self.callbacks.items() if each is option)

    def check_monitor(self, key: str, monitor: str) -> Iterator[ConfigError]:
        """An error if no validation logs the metric that the key names."""
        logged = self.logged_metrics()
        if monitor not in logged:
            yield ConfigError(key, f"no metric {shown(monitor)}", did_you_mean(monitor, logged))


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(TrainConfig):
    """Check this machine, and the training run of a command line: that it learns, and the time and memory it takes.

    Takes every key of ``train``. Without data.train, only the machine is checked.
    """

    section: ClassVar[str] = "Doctor"
    needs_data: ClassVar[bool] = False

    def conflicts(self) -> Iterator[ConfigError]:
        """None: nothing is written to ``run_dir``."""
        return iter(())


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainConfig):
    """Estimate the memory and the time of a training run before it starts, also for a GPU that is not at hand.

    Takes every key of ``train``. Short batches are run, and the memory of the largest batch is extrapolated from them.

    Attributes:
        gpu: The GPU of the run: its memory in GB (gpu=24), or its name (gpu="RTX 4090"), which also tells the time of
            an epoch. null plans for the device of the trainer on this machine, and measures the time.
        mfu: Fraction of the peak of the GPU that training is assumed to reach, for the time of an epoch.
    """

    section: ClassVar[str] = "Plan"

    gpu: PositiveFloat | str | None = None
    mfu: Annotated[float, Interval(gt=0, le=1)] = 0.3

    def conflicts(self) -> Iterator[ConfigError]:
        """Sharded weights, which are not counted. Nothing is written to ``run_dir``."""
        if self.trainer.strategy.startswith("fsdp"):
            what = f"is {self.trainer.strategy}, and the memory of sharded weights is not estimated"
            yield ConfigError("trainer.strategy", what, "plan with trainer.strategy=auto, which needs more")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelInput, Languages, Decoding, LongRecordings, Scoring, Writing, Running):
    """Score a run, a checkpoint or a pretrained model on manifests.

    Attributes:
        model: Run directory, checkpoint file, ``backbone`` option, or name of a pretrained checkpoint.
        manifest: Manifests to score: a path, a list of paths, or paths by name.
        predictions: predictions.jsonl to score again, in place of a model.
        max_tokens_per_s: Limit of the tokens that an attention decoder writes for a second of audio.
        detect_language: Detect the language of every utterance. If the manifest has ``lang``, also report the accuracy
            of the detection.
        reference: Key of the manifest that holds the reference, such as ``translation``. A list holds several. Of
            several references, the one closest to the hypothesis counts.
        only: Score only utterances with these tags: {tag: value, …}.
        on_bad_audio: ``skip`` counts and names utterances that cannot be read. ``error`` stops at the first one.
        max_skip_fraction: Largest fraction of a manifest that may be skipped.
        output_dir: Folder of predictions and results. A new folder named by the time if not given.
        by: Group errors by these: tags of the manifest, ``lang``, or ``length``.
        confusions: Number of most frequent errors shown.
        worst: Number of worst utterances shown.
        samples: Number of aligned hypotheses shown.
    """

    section: ClassVar[str] = "Evaluation"

    model: ModelName | None = None  # type: ignore[assignment]
    manifest: Named = field(default_factory=dict)
    predictions: InputPath | None = None
    max_tokens_per_s: PositiveFloat | None = None
    detect_language: bool = False
    reference: str = "text"
    only: Annotated[dict[str, Any], Expected("{tag: value, …}")] | None = None
    on_bad_audio: Literal["skip", "error"] = "skip"
    max_skip_fraction: Fraction = 0.05
    output_dir: OutputPath
    by: list[str] = field(default_factory=list)
    confusions: NonNegativeInt = 10
    worst: NonNegativeInt = 5
    samples: NonNegativeInt = 0

    def conflicts(self) -> Iterator[ConfigError]:
        """Values that do not go together."""
        yield from super().conflicts()
        if self.model is None and self.predictions is None:
            yield ConfigError("model", "is missing", "give model=… and manifest=…, or predictions=…")
        if self.model is not None and self.predictions is not None:
            yield ConfigError("predictions", "is given together with model", "give one of them")
        if self.model is not None and not self.manifest:
            yield ConfigError("manifest", "is missing", "give manifest=…")
        if self.whisper_task == "translate" and find_spec("sacrebleu") is None:
            yield missing_extra("whisper_task=translate", "sacrebleu", "translation")
        yield from other_results(Path(self.output_dir), overwrite=self.overwrite)


@dataclass(frozen=True, kw_only=True)
class TranscribeConfig(ModelInput, Languages, Decoding, LongRecordings, SubtitleStyle, Writing, Running):
    """Transcribe files, folders or manifests with a run, a checkpoint or a pretrained model.

    Attributes:
        input: Audio files, folders, wildcards, manifests (.jsonl), or ``-`` for paths on standard input. The key may be
            left out.
        output: File, with the format in its name, or folder. null prints the text. A summary is written beside it.
        format: Output format, or a list of several formats, for which ``output`` is a folder. ``json`` is one file for
            each recording. null takes the format from the name of ``output``.
        times: Write the times of words, with this measure of confidence. null leaves it to the format.
        max_skip_fraction: Largest fraction of the recordings that may be skipped. If more are skipped, the transcripts
            of the other recordings are written, and the command ends with an error.
    """

    section: ClassVar[str] = "Transcription"
    positional: ClassVar[tuple[str, ...]] = ("input",)
    flags: ClassVar[dict[str, str]] = FILE_FLAGS

    input: list[InputPath]
    output: OutputPath | None = None
    format: Format | Formats | None = None
    times: Confidence | None = None
    max_skip_fraction: Fraction = 0.05
    num_workers: WorkerCount = 0


@dataclass(frozen=True, kw_only=True)
class AlignConfig(ModelInput, SubtitleStyle, Writing, Running):
    """Find the time of each word of known texts, by CTC forced alignment.

    Attributes:
        model: Run directory, checkpoint file, or name of a checkpoint that is fine-tuned with CTC.
        manifest: Manifests of utterances with their texts: a path, a list of paths, or paths by name.
        output: File, with the format in its name, or folder.
        format: Output format, or a list of several formats, for which ``output`` is a folder. null takes the format
            from the name of ``output``.
        times: Measure of confidence.
    """

    section: ClassVar[str] = "Alignment"
    flags: ClassVar[dict[str, str]] = FILE_FLAGS

    manifest: SomeNamed
    output: OutputPath
    format: TimedFormat | TimedFormats | None = None
    times: Confidence = "max_prob"
    num_workers: WorkerCount = 0


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(ModelInput, Running):
    """Write the states of an encoder's layers to safetensors shards.

    Attributes:
        input: Audio files, folders, wildcards, manifests (.jsonl), or ``-`` for paths on standard input.
        output_dir: Folder of the shards. Utterances that are already there are not encoded again.
        layers: ``last``, ``all``, or a list of numbers. 0 is the input of the first layer, n the output of layer n.
        dtype: ``float32``, or ``float16`` for half the space.
        silence: Also write the frames after the speech that Whisper's encoder computes.
        downmix: Several channels, as ``data.downmix`` of the training of the states: ``mean``, ``first`` or ``refuse``.
        precision: As for other commands. By default float32 on every device, so that the states are those of training.
    """

    section: ClassVar[str] = "Extraction"
    positional: ClassVar[tuple[str, ...]] = ("input",)

    input: list[InputPath]
    output_dir: OutputPath
    layers: Literal["last", "all"] | Annotated[list[NonNegativeInt], MinLen(1)] = "last"
    dtype: Literal["float32", "float16"] = "float32"
    silence: bool = False
    downmix: Downmix = "mean"
    precision: RecognitionPrecision = "32-true"


@dataclass(frozen=True, kw_only=True)
class TuneDecodingConfig(ModelInput, Writing, Running):
    """Find the weights of a CTC beam search on dev data. The model runs once.

    Attributes:
        model: Run directory, checkpoint file, or name of a checkpoint that is fine-tuned with CTC.
        manifest: Dev manifests, never test: a path, a list of paths, or paths by name.
        decoder: Beam search to start from, with its language model.
        lm_weights: Values of decoder.lm_weight, each tried with each of ``word_scores``.
        word_scores: Values of decoder.word_score.
        unknown_scores: Values of decoder.unknown_score, tried with the best values so far.
        beam_sizes: Values of decoder.beam_size, tried with the best values so far. The smallest with the best WER is
            chosen.
        rescore_weights: Values of decoder.rescore_weight, each tried with each of ``rescore_word_scores``. Used if
            decoder.rescore_lm is set.
        rescore_word_scores: Values of decoder.rescore_word_score.
        output: File for the decoder's settings. Pass it to evaluate and transcribe as decoder_file.
        normalizer: Text normalizer of the WER that decides.
        max_skip_fraction: Largest fraction of a manifest that may be unreadable.
    """

    section: ClassVar[str] = "Tuning"

    manifest: SomeNamed
    decoder: CtcBeam = field(metadata=group("decoder", "ssl_asr.decoding.ctc.CtcBeam"))
    lm_weights: Annotated[list[float], MinLen(1)] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    word_scores: Annotated[list[float], MinLen(1)] = field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    unknown_scores: Annotated[list[float], MinLen(1)] = field(default_factory=lambda: [-5.0, -10.0, -15.0, -20.0])
    beam_sizes: Annotated[list[PositiveInt], MinLen(1)] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    rescore_weights: Annotated[list[float], MinLen(1)] = field(
        default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0]
    )
    rescore_word_scores: Annotated[list[float], MinLen(1)] = field(
        default_factory=lambda: [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    )
    output: OutputPath
    normalizer: NormalizerName = "lower"
    max_skip_fraction: Fraction = 0.05


Command = (
    TrainConfig
    | DoctorConfig
    | PlanConfig
    | EvaluateConfig
    | TranscribeConfig
    | AlignConfig
    | ExtractConfig
    | ExportConfig
    | ImportConfig
    | PrepareConfig
    | CompareConfig
    | tools.ReportConfig
    | tools.LmConfig
    | TuneDecodingConfig
    | ServeConfig
    | CheckConfig
    | CorpusConfig
    | DashboardConfig
    | DemoConfig
)
SCHEMAS: dict[str, type[Command]] = {
    "train": TrainConfig,
    "doctor": DoctorConfig,
    "plan": PlanConfig,
    "evaluate": EvaluateConfig,
    "transcribe": TranscribeConfig,
    "align": AlignConfig,
    "extract": ExtractConfig,
    "export": ExportConfig,
    "import": ImportConfig,
    "prepare": PrepareConfig,
    "compare": CompareConfig,
    "report": tools.ReportConfig,
    "lm": tools.LmConfig,
    "tune_decoding": TuneDecodingConfig,
    "serve": ServeConfig,
    "check": CheckConfig,
    "corpus": CorpusConfig,
    "dashboard": DashboardConfig,
    "demo": DemoConfig,
}


def known_keys(name: str) -> list[str]:
    """Top-level keys of a command."""
    return [f.name for f in fields(SCHEMAS[name])]


def annotation_of(field: Field[Any]) -> Any:
    """The type of a field that is not an option, from its text."""
    assert isinstance(field.type, str)
    return eval(field.type, {**vars(parts), **vars(exporting), **vars(serving), **vars(tools), **globals()})
