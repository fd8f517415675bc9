"""Parts that the configurations of several commands share. See `ssl_asr.config.schemas`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

from annotated_types import MinLen

from ssl_asr.errors import ConfigError, missing_extra
from ssl_asr.types import (
    CueSeconds,
    Expected,
    LineWidth,
    NonNegativeFloat,
    NonNegativeInt,
    NormalizerName,
    PositiveFloat,
    PositiveInt,
    Precision,
    TailSeconds,
)

if TYPE_CHECKING:
    from ssl_asr.decoding.option import DecoderOption

T = TypeVar("T")

Window = Literal["real", "30s"]
WhisperTask = Literal["transcribe", "translate"]
Confidence = Literal["max_prob", "entropy"]
Normalizers = Annotated[list[NormalizerName], MinLen(1)]
Named = Annotated[dict[str, str], Expected("a path, a list of paths, or {name: path, …}")]
"""Manifest paths by name. A path or a list of paths is given names by `ssl_asr.config.nodes.named_manifests`."""


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

    model: str
    window: Window | None = None
    tail_s: TailSeconds | None = None


@dataclass(frozen=True, kw_only=True)
class Languages:
    """The language of a multilingual Whisper.

    Attributes:
        language: Language of the speech where the manifest has none. null detects it. MMS loads this language's
            adapter.
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
    decoder_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class LongRecordings:
    """How recordings that are too long for the model are split.

    Attributes:
        chunk_s: Seconds of a window of a CTC model. Whisper's window is 30 s.
        stride_s: Seconds at both ends of a window that only give context to its middle.
        vad: Split at silence, found by voice activity detection, and decode the parts in batches.
    """

    section: ClassVar[str] = "Long recordings"

    chunk_s: PositiveFloat = 30.0
    stride_s: NonNegativeFloat = 4.0
    vad: bool = False

    def conflicts(self) -> Iterator[ConfigError]:
        """Values that do not go together."""
        if 2 * self.stride_s >= self.chunk_s:
            what = f"is {self.chunk_s}, and stride_s={self.stride_s} at both ends leaves nothing"
            yield ConfigError("chunk_s", what, "make it more than twice stride_s")
        if self.vad and find_spec("silero_vad") is None:
            yield missing_extra("vad=true", "silero-vad", "vad", "vad=false")


@dataclass(frozen=True, kw_only=True)
class SubtitleStyle:
    """How words are laid out as subtitles, for srt, vtt, ass and tsv. The limits are never exceeded.

    Attributes:
        max_line_width: Characters of a line. A full-width character (Chinese, Japanese, Korean) counts as two. A longer
            word is broken.
        max_line_count: Lines of a cue.
        max_cue_s: Seconds that a cue is shown.
        max_characters_per_s: Reading speed. A cue of faster speech is shown until the next cue begins.
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
class Running:
    """How a command runs.

    Attributes:
        max_batch_s: Seconds of audio in a batch, padding included.
        num_workers: Processes that read audio. 0 reads in the main process.
        accelerator: Lightning's accelerator: auto, cpu, gpu and others.
        precision: Lightning's precision.
        verbose: Show progress bars and tables.
    """

    section: ClassVar[str] = "Running"

    max_batch_s: PositiveFloat = 120.0
    num_workers: NonNegativeInt = 2
    accelerator: str = "auto"
    precision: Precision = "32-true"
    verbose: bool = True
