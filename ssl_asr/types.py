"""Shared data types, and the legend of shape suffixes.

From a recording to its words::

    Recording   |==============================================================|   one file, channel and offset
    Parts          |------- 28.4 s -------|      |---- 12.1 s ----|                fit the model (VAD or windows)
    Segments       |seg|  |---seg---| |seg|      |-seg-|  |--seg--|                ordered, non-overlapping
    Words           w w    w w w w w   w w        w w w    w w w w                 monotonic, inside their segment
    Tokens          tt t   t t tt t t  t tt       t t tt   tt t t t                labels or sub-words of each word

An `Utterance` is a recording, or a part of one, that is transcribed in one pass. A `Batch` holds several utterances.
A `Hypothesis` is the transcript of one utterance, with its `Segment`, `Word` and `Token` objects if the decoder gives
times.

Tensor names end in their shape: ``waveform_BT``, ``tokens_BU``, ``h_BFD``.

===  ============================================================
B    utterances in a batch
T    samples, at 16 kHz
U    tokens of a text
F    encoder frames
M    mel bands
D    feature dimension of a state
V    vocabulary entries
H    attention heads
N    rows of any other kind
K    beams of an utterance
C    candidates of an utterance
===  ============================================================

Lengths are integers, never fractions of the batch. They stay on the CPU, so that reading a length does not wait for
the device.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from annotated_types import Ge, Gt, Interval, Len, Predicate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Seconds = float
Samples = int
Hertz = int
Milliseconds = int

Text = tuple[str, str | None]
"""A reference text and the language code of its utterance, or None."""

Normalizer = Callable[[str, str | None], str]
"""``normalize(text, lang)``. ``lang`` is the language code of the utterance, or None."""

# Ranges of options, checked before a run starts.
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
# Processes that read audio.
WorkerCount = Annotated[int, Interval(ge=0, le=1024)]
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Fraction = Annotated[float, Interval(ge=0, le=1)]


def is_rising(values: list[float]) -> bool:
    """Whether no number is smaller than the one before it."""
    return sorted(values) == values


def is_length(value: float) -> bool:
    """Whether a number is a fraction of a run, or a whole number of updates."""
    return 0 <= value < 1 or (value >= 1 and value == int(value))


@dataclass(frozen=True, slots=True)
class Expected:
    """Words for the values that an annotation allows, used in error messages: ``Annotated[str, Expected("…")]``."""

    text: str


PathRole = Literal["input", "manifest", "model", "output"]
"""What a path is for: a file that is read, a manifest, a model (also by name), or a file or folder that is written."""


@dataclass(frozen=True, slots=True)
class IsPath:
    """Marks text that names a file, a folder or a model. The command line takes such text as it is typed."""

    role: PathRole


InputPath = Annotated[str, IsPath("input")]
ManifestPath = Annotated[str, IsPath("manifest")]
ModelName = Annotated[str, IsPath("model")]
OutputPath = Annotated[str, IsPath("output")]

TailSeconds = Annotated[float, Interval(ge=0, lt=30), Expected("a number of seconds from 0 to less than 30")]
TailRange = Annotated[
    list[TailSeconds],
    Len(2, 2),
    Predicate(is_rising),
    Expected("[shortest, longest] in seconds, both from 0 to less than 30"),
]
Betas = Annotated[list[Dropout], Len(2, 2), Expected("two numbers from 0 to less than 1")]
LayerDecay = Annotated[float, Interval(gt=0, le=1)]
Length = Annotated[
    float,
    Predicate(is_length),
    Expected("a fraction of the run from 0 to less than 1, or a whole number of updates"),
]
VocabularySize = Annotated[int, Ge(2)]
# A full-width character takes two columns of a subtitle, and a shown cue is visible for at least a second.
LineWidth = Annotated[int, Ge(2)]
CueSeconds = Annotated[float, Ge(1)]
RecommendedFreeze = Literal["none", "feature_encoder", "encoder"]
NormalizerName = Literal["none", "lower", "basic", "whisper_basic", "whisper_english", "by_language"]
Downmix = Literal["mean", "first", "refuse"]
"""What several channels become: their mean, the first channel, or an error."""
Precision = Literal["32-true", "bf16-true", "16-mixed", "bf16-mixed"]
RecognitionPrecision = Literal["auto", "32-true", "16-true", "bf16-true"]

SAMPLE_RATE: Hertz = 16_000

# First ids of every CTC vocabulary. No text contains the blank, so an attention decoder over the same vocabulary uses
# its id as the start and the end of a sentence. UNKNOWN_ID stands for symbols that training never saw.
BLANK_ID, UNKNOWN_ID, FIRST_LABEL_ID = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest: where the speech is, and its reference text.

    Attributes:
        id: Unique in its manifest.
        audio_filepath: Path of the audio file.
        duration: Seconds.
        text: Reference transcript.
        references: Further reference transcripts. Scores count the one that is closest to the hypothesis.
        offset: Seconds from the start of the file.
        lang: Language code. None if the manifest does not name one.
        task: ``transcribe`` or ``translate`` (Whisper). None for the tokenizer's default.
        channel: Index of the channel to read, from 0. None mixes or picks as the data option ``downmix`` says.
        weight: Weight in the loss.
        where: ``file:line`` of the manifest, for messages.
        tags: Keys of the line that the framework does not use itself.
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
    references: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All reference transcripts, ``text`` first."""
        return self.text, *self.references

    def variants(self) -> "Iterator[Utterance]":
        """The utterance with each of its references as its only one. Itself if it has one."""
        if not self.references:
            yield self
            return
        yield from (replace(self, text=text, references=()) for text in self.texts)


@dataclass(frozen=True, slots=True)
class Skip:
    """An utterance that was left out: ``reason`` is a short name to count by, ``detail`` the values seen."""

    id: str
    where: str
    reason: str
    detail: str
    duration: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A finding in the audio of an utterance that was read. `ssl_asr.data.signal` lists all findings."""

    id: str
    finding: str


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance with its audio (float32, mono, 16 kHz), its target tokens, and findings in its audio."""

    utterance: Utterance
    waveform_T: "Tensor"
    tokens: list[int]
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances padded with zeros at the end to one length. `ssl_asr.data.dataset.collate` builds it.

    Worker processes send it packed, see `ssl_asr.data.transport`. Loaders yield it unpacked.

    Attributes:
        waveform_BT: Float32, 16 kHz.
        lengths_B: Samples of each utterance, int64 on the CPU.
        tokens_BU: Target tokens, int64.
        token_lengths_B: Target tokens of each utterance, int64 on the CPU.
        utterances: In batch order.
        skipped: Utterances of this batch that could not be read.
        notices: Findings in the audio of the utterances.
    """

    waveform_BT: "Tensor"
    lengths_B: "Tensor"
    tokens_BU: "Tensor"
    token_lengths_B: "Tensor"
    utterances: list[Utterance]
    skipped: list[Skip] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Utterance ids, in batch order."""
        return [utterance.id for utterance in self.utterances]

    @property
    def weights_B(self) -> "Tensor":
        """Weight of each utterance in the loss, float32 on the CPU."""
        import torch

        return torch.tensor([utterance.weight for utterance in self.utterances])

    def __len__(self) -> int:
        return len(self.utterances)

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Batch":
        """The batch with samples and tokens on ``device``. Lengths stay on the CPU."""
        return replace(
            self,
            waveform_BT=self.waveform_BT.to(device, non_blocking=non_blocking),
            tokens_BU=self.tokens_BU.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """The batch with samples and tokens in page-locked memory. The DataLoader calls this method."""
        return replace(self, waveform_BT=self.waveform_BT.pin_memory(), tokens_BU=self.tokens_BU.pin_memory())


def on_device(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """Copies a tensor that is on the CPU to a device, without waiting for the device.

    A copy from pageable memory to a GPU waits for the work before it, so the tensor is copied to pinned memory first.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Token:
    """A label or sub-word of a word, with its times in seconds and a confidence in [0, 1]."""

    text: str
    start: Seconds
    end: Seconds
    confidence: float

    def later(self, by: Seconds) -> "Token":
        """The token shifted by ``by`` seconds."""
        return replace(self, start=self.start + by, end=self.end + by)

    def record(self) -> dict[str, Any]:
        """JSON-like data; `from_record` reads it back."""
        return _timed_record(self)

    @classmethod
    def from_record(cls, row: dict[str, Any]) -> "Token":
        """The token that `record` wrote. Raises TypeError on unknown or missing keys."""
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its times in seconds, a confidence in [0, 1], and its tokens if the decoder gives them.

    Attributes:
        text: Without spaces around it.
        start, end: Seconds from the start of the utterance.
        confidence: In [0, 1].
        tokens: Labels or sub-words of the word.
        spaced: Whether a space separates the word from the word before it. See `text_of`.
    """

    text: str
    start: Seconds
    end: Seconds
    confidence: float
    tokens: tuple[Token, ...] = ()
    spaced: bool = True

    def later(self, by: Seconds) -> "Word":
        """The word and its tokens shifted by ``by`` seconds."""
        tokens = tuple(token.later(by) for token in self.tokens)
        return replace(self, start=self.start + by, end=self.end + by, tokens=tokens)

    def record(self) -> dict[str, Any]:
        """JSON-like data; `from_record` reads it back. Defaults of ``tokens`` and ``spaced`` are left out."""
        tokens = [token.record() for token in self.tokens]
        record = _timed_record(self) | ({"tokens": tokens} if tokens else {})
        return record if self.spaced else record | {"spaced": False}

    @classmethod
    def from_record(cls, row: dict[str, Any]) -> "Word":
        """The word that `record` wrote. Raises TypeError on unknown or missing keys."""
        tokens = tuple(Token.from_record(token) for token in row.get("tokens", []))
        return cls(**(row | {"tokens": tokens}))


def text_of(words: Iterable[Word]) -> str:
    """The words joined, with spaces where they are written.

    Example:
        >>> text_of([Word("你", 0.0, 0.2, 1.0), Word("好", 0.2, 0.4, 1.0, spaced=False)])
        '你好'
    """
    return "".join(f" {word.text}" if word.spaced else word.text for word in words).strip()


@dataclass(frozen=True, slots=True)
class Segment:
    """A phrase with its times in seconds and a confidence in [0, 1].

    Attributes:
        text: Exactly `text_of` its words, if there are words.
        start, end: Seconds from the start of the utterance.
        confidence: In [0, 1].
        words: Of this segment, in order. Empty if words have no times.
    """

    text: str
    start: Seconds
    end: Seconds
    confidence: float
    words: tuple[Word, ...] = ()

    def later(self, by: Seconds) -> "Segment":
        """The segment and its words shifted by ``by`` seconds."""
        words = tuple(word.later(by) for word in self.words)
        return replace(self, start=self.start + by, end=self.end + by, words=words)

    def record(self) -> dict[str, Any]:
        """JSON-like data; `from_record` reads it back. ``words`` is left out if there are none."""
        words = [word.record() for word in self.words]
        return _timed_record(self) | ({"words": words} if words else {})

    @classmethod
    def from_record(cls, row: dict[str, Any]) -> "Segment":
        """The segment that `record` wrote. Raises TypeError on unknown or missing keys."""
        words = tuple(Word.from_record(word) for word in row.get("words", []))
        return cls(**(row | {"words": words}))


def _timed_record(timed: Token | Word | Segment) -> dict[str, Any]:
    return {"text": timed.text, "start": timed.start, "end": timed.end, "confidence": timed.confidence}


@dataclass(frozen=True, slots=True)
class Alternative:
    """A further text of the n-best list, with its score on the scale of the best text's score."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The transcript of one utterance.

    Attributes:
        id: Of the utterance.
        text: The best text.
        score: Natural logarithm. Autoregressive decoders give the mean log-probability of a token, CTC decoders the
            score they rank by, divided by the number of frames.
        tokens: Ids of the text.
        words: Words with times and confidence. Always empty if times are not requested, which `ssl_asr.load` does by
            ``times="max_prob"`` or another measure.
        alternatives: The rest of the n-best list, best first.
        detected: Language code, if the model detected the language.
        detected_probability: Of ``detected`` among all languages, in [0, 1].
        segments: Phrases with times, if the model writes timestamps.
        no_speech: Voice activity detection found no speech, so nothing was decoded and the text is empty.
    """

    id: str
    text: str
    score: float
    tokens: list[int] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)
    detected: str | None = None
    segments: list[Segment] = field(default_factory=list)
    detected_probability: float | None = None
    no_speech: bool = False


class Tokenizer(Protocol):
    """Converts text to ids and back. `ssl_asr.data.tokenizer.restore_tokenizer` restores one from `state`."""

    @property
    def unit(self) -> str:
        """Plural noun for one entry of the vocabulary, in messages: ``characters``, ``symbols``."""

    @property
    def vocab_size(self) -> int:
        """Number of ids. Ids run from 0 to ``vocab_size - 1``."""

    def encode(self, utterance: Utterance) -> list[int]:
        """Target ids of an utterance's text, as the model's loss expects them."""

    def unseen(self, utterance: Utterance) -> list[str]:
        """Parts of the text that the vocabulary cannot spell, repeats included. Empty if it can spell every text."""

    def decode(self, ids: list[int]) -> str:
        """Text of the ids that a decoder chose, without special tokens."""

    def state(self) -> dict[str, Any]:
        """JSON-like data (str, int, list, dict) that fully describes this tokenizer."""


class LabelTokenizer(Tokenizer, Protocol):
    """A tokenizer for CTC."""

    def labels(self) -> list[str | None]:
        """Spelling of each id. A space ends a word. The blank and the unknown label are None."""
