"""The nouns of the framework, and the one legend of shape suffixes.

Tensor names end in the shape they have: ``waveform_BT``, ``tokens_BU``, ``h_BFD``.

===  ============================================================
B    utterances of a batch
T    samples, at 16 kHz
U    tokens of a text
F    encoder frames
M    mel bands
D    features of a state
V    vocabulary entries
H    attention heads
===  ============================================================

Lengths are integers, never fractions of the batch, and stay on the CPU: what follows from them is decided
without waiting for a device.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from annotated_types import Ge, Gt, Interval

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Seconds = float
Samples = int
Hertz = int

# Ranges of options, checked before a run starts.
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Fraction = Annotated[float, Interval(ge=0, le=1)]

SAMPLE_RATE: Hertz = 16_000

# Ids of every vocabulary for CTC. No text contains the blank, so an attention decoder over the same vocabulary takes it
# for the start and the end of a sentence; the unknown id stands for what training never had; labels follow.
BLANK_ID, UNKNOWN_ID, FIRST_LABEL_ID = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Utterance:
    """A manifest line: where the speech is and what was said.

    ``where`` is ``file:line`` of the manifest; ``duration`` and ``offset`` are seconds; ``tags`` holds every
    key of the line the framework does not use itself.
    """

    id: str
    audio_filepath: str
    duration: Seconds
    text: str = ""
    offset: Seconds = 0.0
    lang: str | None = None
    task: str | None = None
    channel: int | None = None
    weight: float = 1.0
    where: str = ""
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skip:
    """An utterance left out, and why: ``reason`` is a short countable name, ``detail`` the values seen."""

    id: str
    where: str
    reason: str
    detail: str
    duration: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance with its audio (float32, mono, 16 kHz) and its target tokens."""

    utterance: Utterance
    waveform_T: "Tensor"
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances side by side, padded with zeros at the end; the only place padding is made is `collate`.

    ``lengths_B`` (samples) and ``token_lengths_B`` are int64 on the CPU. ``skipped`` lists what was meant to be
    in the batch and could not be read.
    """

    waveform_BT: "Tensor"
    lengths_B: "Tensor"
    tokens_BU: "Tensor"
    token_lengths_B: "Tensor"
    utterances: list[Utterance]
    skipped: list[Skip] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Utterance ids, in batch order."""
        return [utterance.id for utterance in self.utterances]

    @property
    def weights_B(self) -> "Tensor":
        """The manifest's weight of each utterance, float32 on the CPU."""
        import torch

        return torch.tensor([utterance.weight for utterance in self.utterances])

    def __len__(self) -> int:
        return len(self.utterances)

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Batch":
        """The batch with samples and tokens on ``device``; lengths stay on the CPU."""
        return replace(
            self,
            waveform_BT=self.waveform_BT.to(device, non_blocking=non_blocking),
            tokens_BU=self.tokens_BU.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """The batch with samples and tokens in page-locked memory, as the DataLoader asks for."""
        return replace(self, waveform_BT=self.waveform_BT.pin_memory(), tokens_BU=self.tokens_BU.pin_memory())


@dataclass(frozen=True, slots=True)
class Word:
    """A word with when it was said and how sure the model was of it, from 0 to 1; its tokens likewise, if known."""

    text: str
    start: Seconds
    end: Seconds
    confidence: float
    tokens: tuple["Word", ...] = ()

    def later(self, by: Seconds) -> "Word":
        """The word so many seconds later."""
        tokens = tuple(token.later(by) for token in self.tokens)
        return replace(self, start=self.start + by, end=self.end + by, tokens=tokens)

    def record(self) -> dict[str, Any]:
        """Plain data, ``tokens`` only where there are any."""
        row: dict[str, Any] = {key: getattr(self, key) for key in ("text", "start", "end", "confidence")}
        return row | ({"tokens": [token.record() for token in self.tokens]} if self.tokens else {})

    @classmethod
    def from_record(cls, row: dict[str, Any]) -> "Word":
        """The word that `record` wrote; TypeError where it did not."""
        return cls(**(row | {"tokens": tuple(cls.from_record(token) for token in row.get("tokens", []))}))


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another text a search found, and its score on the same scale as the best one's."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a decoder heard: text, token ids, and a score (natural log).

    ``score`` is the mean log-probability of a token an autoregressive decoder chose, or what CTC ranked by, a frame.
    ``words`` are there where times were asked for, ``alternatives`` where several texts were, best first, and
    ``detected`` is the language that was heard where one was listened for. ``segments`` are the phrases of a model
    that writes times itself.
    """

    id: str
    text: str
    score: float
    tokens: list[int] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    detected: str | None = None
    segments: list[Word] = field(default_factory=list)


class Tokenizer(Protocol):
    """Text to ids and back. ``state`` is plain data from which `restore_tokenizer` makes an equal one."""

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to ``vocab_size - 1``."""

    def encode(self, utterance: Utterance) -> list[int]:
        """Target ids of an utterance's text, as the model's loss wants them."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids a decoder chose, special tokens left out."""

    def state(self) -> dict[str, Any]:
        """Plain data (str, int, list, dict) that describes this tokenizer wholly."""


class LabelTokenizer(Tokenizer, Protocol):
    """A tokenizer for CTC."""

    def labels(self) -> list[str | None]:
        """How each id is spelt, a space standing where a word ends; None for the blank and the unknown label."""
