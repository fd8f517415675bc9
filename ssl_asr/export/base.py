"""The model that is exported, and the interface of an export format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from ssl_asr.errors import UserError
from ssl_asr.models.encoder import Window
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Seconds

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ExportModel:
    """A trained model in float32 on the CPU, in eval mode, with adapters merged into the weights.

    Attributes:
        module: The model as this package runs it: the reference of all parity checks.
        net: The same weights as a model of transformers (``WhisperForConditionalGeneration`` or ``…ForCTC``), or None
            if transformers has no class of this shape, such as a head with several layers or a Whisper encoder with
            CTC.
        window, tail_s: Window of a Whisper model with its decoder, or None for other models. ``real`` encodes the
            utterance and ``tail_s`` seconds of silence.
        reason: Why ``net`` is None.
    """

    module: ASRModule
    net: "PreTrainedModel | None"
    window: Window | None
    tail_s: Seconds | None
    reason: UserError | None = None


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word of a runtime and its start in seconds."""

    text: str
    start: Seconds


class Runtime(Protocol):
    """An exported model in the runtime of its format, such as faster-whisper or onnxruntime."""

    def transcribe(self, waveforms: Sequence[Tensor], *, real_length: bool) -> Iterator[str]:
        """Greedy transcripts, one at a time so that a progress bar can follow.

        Args:
            waveforms: Float32 waveforms of shape (samples,) at 16 kHz.
            real_length: Encode only the utterance and a short tail instead of 30 s, if the runtime can.
        """
        ...

    def words(self, waveforms: Sequence[Tensor]) -> Iterator[list[TimedWord]] | None:
        """Words of each utterance, timed as a user of the runtime gets them, Whisper at 30 s.

        None if the runtime does not time words by the frames or the attention of the model.
        """
        ...


class Format(Protocol):
    """An export format. Formats are listed by name in ``ssl_asr/export/formats.py``.

    Attributes:
        name: The name in ``to=``.
        extra: Extra of this package that writes and checks the format, or None.
        packages: Modules of the extra that are imported.
        quantizations: Allowed values of ``quantization``, the default first.
        real_length: Whether the runtime can encode less than 30 s.
    """

    name: ClassVar[str]
    extra: ClassVar[str | None]
    packages: ClassVar[tuple[str, ...]]
    quantizations: ClassVar[tuple[str, ...]]
    real_length: ClassVar[bool]

    def refusal(self, model: ExportModel) -> UserError | None:
        """Why the format cannot hold this model, and which format can."""
        ...

    def write(self, model: ExportModel, folder: Path, *, quantization: str) -> None:
        """Write all files that the runtime needs into an empty folder."""
        ...

    def runtime(self, folder: Path, model: ExportModel) -> Runtime:
        """Load the written files in the runtime of the format."""
        ...

    def usage(self, folder: str, model: ExportModel) -> str:
        """Markdown for the model card: how to run the files, first at 30 s, then with real lengths if it can."""
        ...
