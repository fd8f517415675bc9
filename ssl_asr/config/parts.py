"""Parts that the configurations of several commands share. See `ssl_asr.config.schemas`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from annotated_types import MinLen

from ssl_asr.errors import ConfigError
from ssl_asr.types import (
    CueSeconds,
    Downmix,
    Expected,
    InputPath,
    IsPath,
    LineWidth,
    ModelName,
    NonNegativeFloat,
    NormalizerName,
    PositiveFloat,
    PositiveInt,
    RecognitionPrecision,
    TailSeconds,
    WorkerCount,
)

if TYPE_CHECKING:
    from ssl_asr.decoding.option import DecoderOption

T = TypeVar("T")

Window = Literal["real", "30s"]
WhisperTask = Literal["transcribe", "translate"]
Confidence = Literal["max_prob", "entropy"]
Format = Literal["text", "jsonl", "json", "srt", "vtt", "ass", "tsv", "ctm", "textgrid"]
Formats = Annotated[list[Format], MinLen(1)]
TimedFormat = Literal["jsonl", "json", "srt", "vtt", "ass", "tsv", "ctm", "textgrid"]
TimedFormats = Annotated[list[TimedFormat], MinLen(1)]
Normalizers = Annotated[list[NormalizerName], MinLen(1)]
Named = Annotated[dict[str, str], IsPath("manifest"), Expected("a path, a list of paths, or {name: path, …}")]
"""Manifest paths by name. A path or a list of paths is given names by `ssl_asr.config.nodes.named_manifests`."""


SomeNamed = Annotated[Named, MinLen(1), Expected("a path, a list of paths, or {name: path, …}")]
"""At least one manifest."""


def group(name: str, kind: str = "") -> dict[str, Any]:
    """Field metadata that marks an option.

    Args:
        name: Config group, a folder under ``conf/``.
        kind: Path of the class or Protocol that the option must fit. Empty for no check.
    """
    return {"group": name, "kind": kind}


@dataclass(frozen=True, kw_only=True)
class Sides(Generic[T]):
    """One option for the pretrained encoder and one for the rest of the model.

    Attributes:
        encoder: Option of the pretrained encoder.
        rest: Option of the head, or of Whisper's decoder.
    """

    encoder: T
    rest: T

    def items(self) -> Iterator[tuple[str, T]]:
        """Each side's name and option, the encoder first."""
        yield from (("encoder", self.encoder), ("rest", self.rest))

    def side_of(self, option: object) -> str:
        """Name of the side that has this very option."""
        return "encoder" if option is self.encoder else "rest"


# Parts that several commands share ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Extended:
    """Commands that build options.

    Attributes:
        extensions: Installed packages, besides ssl_asr, with classes that a ``_target_`` may name. A checkpoint that
            uses such a class needs the same list.
    """

    section: ClassVar[str] = "Extensions"

    extensions: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ModelInput(Extended):
    """The model of a command that does not train.

    Attributes:
        model: Run directory, checkpoint file, ``backbone`` option, or name of a pretrained checkpoint.
        window: Input window of Whisper: ``real`` (the speech and tail_s of silence) or ``30s``. null takes the
            checkpoint's window, which is 30s for a pretrained Whisper.
        tail_s: Seconds of silence after the speech for window=real. null takes the checkpoint's value.
    """

    section: ClassVar[str] = "Model"

    model: ModelName
    window: Window | None = None
    tail_s: TailSeconds | None = None


@dataclass(frozen=True, kw_only=True)
class Languages:
    """The language of a multilingual Whisper.

    Attributes:
        language: Language of the speech where the manifest has none, as a code (de, deu, de-DE) or a name. null and
            auto detect it. MMS loads this language's adapter.
        whisper_task: ``transcribe``, or ``translate`` into English.
    """

    section: ClassVar[str] = "Language"

    language: str | None = None
    whisper_task: WhisperTask = "transcribe"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a model decodes.

    Attributes:
        decoder: Search and its settings. null takes the model's own.
        decoder_file: File with the settings of a decoder, as tune_decoding writes it, in place of ``decoder``.
    """

    section: ClassVar[str] = "Decoding"

    decoder: DecoderOption | None = field(
        default=None, metadata=group("decoder", "ssl_asr.decoding.option.DecoderOption")
    )
    decoder_file: InputPath | None = None


@dataclass(frozen=True, kw_only=True)
class LongRecordings:
    """How recordings that are too long for the model are split.

    Attributes:
        chunk_s: Seconds of a window of a CTC model. Whisper's window is 30 s.
        stride_s: Seconds at both ends of a window that only give context to its middle.
        vad: Voice activity detection. null transcribes the parts with speech of long recordings; transcribe also gives
            short recordings without speech an empty text. true transcribes only the parts with speech of every
            recording. false uses none.
        detect_every_min: Minutes after which the language of a long recording is detected again. null detects it once.
    """

    section: ClassVar[str] = "Long recordings"

    chunk_s: PositiveFloat = 30.0
    stride_s: NonNegativeFloat = 4.0
    vad: bool | None = None
    detect_every_min: PositiveFloat | None = None

    def conflicts(self) -> Iterator[ConfigError]:
        """Values that do not go together."""
        if 2 * self.stride_s >= self.chunk_s:
            what = f"is {self.chunk_s}, and stride_s={self.stride_s} at both ends leaves nothing"
            yield ConfigError("chunk_s", what, "make it more than twice stride_s")
        if self.vad is False and self.detect_every_min is not None:
            what = "needs voice activity detection, which finds the parts whose language is detected"
            yield ConfigError("detect_every_min", what, "remove vad=false")


@dataclass(frozen=True, kw_only=True)
class SubtitleStyle:
    """How words are laid out as subtitles, for srt, vtt, ass and tsv.

    Lines, their number and the time of a cue are never exceeded. The reading speed is, where speech is faster: cues may
    begin up to half a second before or after their speech to keep it, and the summary counts those that do not.

    Attributes:
        max_line_width: Characters of a line. A full-width character (Chinese, Japanese, Korean) counts as two. A longer
            word is broken.
        max_line_count: Lines of a cue.
        max_cue_s: Seconds that a cue is shown.
        max_characters_per_s: Reading speed. A cue of faster speech is shown as long as its neighbors leave time.
        highlight_words: Underline each word of srt and vtt while it is spoken, and color it in ass.
    """

    section: ClassVar[str] = "Subtitles"

    max_line_width: LineWidth = 42
    max_line_count: PositiveInt = 2
    max_cue_s: CueSeconds = 6.0
    max_characters_per_s: PositiveFloat = 17.0
    highlight_words: bool = False


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How transcripts are scored.

    Attributes:
        normalizers: Text normalizers. Scores are reported under each. The first one decides where one score is needed.
    """

    section: ClassVar[str] = "Scoring"

    normalizers: Normalizers = field(default_factory=lambda: ["lower", "whisper_english"])


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What a command writes.

    Attributes:
        overwrite: Replace the results of an earlier command. Without it, results that exist are an error.
    """

    section: ClassVar[str] = "Output"

    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a command runs.

    Attributes:
        max_batch_s: Seconds that the encoder computes for a batch, padding included. A Whisper with window=30s computes
            30 seconds for each utterance. null is 120; or, with Whisper, 480 with window=30s and 180 with window=real.
        num_workers: Processes that read audio. 0 reads in the main process.
        downmix: What to do with several channels: ``mean``, ``first`` or ``refuse``. Channels that cancel when mixed
            become one of them. null takes the value that a run was trained with, and mean for a pretrained model.
        accelerator: Lightning's accelerator: auto, cpu, gpu and others.
        precision: ``bf16-true`` and ``16-true`` hold the weights in 16 bits, ``32-true`` in float32. auto is bf16-true
            on an NVIDIA GPU (16-true if the GPU has no bfloat16) and 32-true on other devices.
        root: Folder that all audio of manifests must lie in, symbolic links resolved. null reads any file that a
            manifest names.
        verbose: Show progress bars and tables.
    """

    section: ClassVar[str] = "Running"

    max_batch_s: PositiveFloat | None = None
    num_workers: WorkerCount = 2
    downmix: Downmix | None = None
    accelerator: str = "auto"
    precision: RecognitionPrecision = "auto"
    root: InputPath | None = None
    verbose: bool = True
