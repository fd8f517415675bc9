"""The ``task`` options. A task builds its module from `ModuleParts`, for training and for inference.

Modules are imported when they are built, so that checking a configuration does not import Lightning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import nn

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.decoding.option import DecoderOption
from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.models.freezing import FreezePolicy
from ssl_asr.models.heads import Head
from ssl_asr.models.spec_augment import Augment
from ssl_asr.models.states import StatesOption
from ssl_asr.models.whisper import WhisperSeq2Seq
from ssl_asr.types import (
    Dropout,
    Fraction,
    LabelTokenizer,
    Normalizer,
    PositiveFloat,
    PositiveInt,
    Tokenizer,
    Utterance,
)

if TYPE_CHECKING:
    from ssl_asr.config.schemas import TrainConfig
    from ssl_asr.training.ctc import CTCModule
    from ssl_asr.training.joint import JointModule
    from ssl_asr.training.module import ASRModule
    from ssl_asr.training.seq2seq import AuxiliaryCtc, Seq2SeqModule
    from ssl_asr.training.sides import OptimConfig

DetectLanguage = Literal["missing", "all"]
"""Detect the language of utterances without ``lang`` in the manifest, or of all utterances.

Decoding uses the manifest's ``lang`` if it is given, also with ``all``.
"""


class ModelSource(Protocol):
    """Where the pretrained model comes from: a pretrained checkpoint, or the description in a checkpoint of ssl_asr."""

    def encoder(self) -> SpeechEncoder:
        """The encoder alone."""

    def seq2seq(self) -> WhisperSeq2Seq:
        """The encoder with its decoder."""

    def copy_head(self, head: nn.Module, tokenizer: LabelTokenizer) -> None:
        """Copy the output rows of a checkpoint fine-tuned with CTC into a new head, for the labels that both have."""


@dataclass(frozen=True, kw_only=True)
class ModuleParts:
    """Everything that a task's module is built from.

    Attributes:
        source: Where the pretrained model comes from.
        tokenizer: Spells targets and hypotheses.
        decoder: The ``decoder`` option.
        policy: Which layer groups train.
        states: Which of the encoder's states the head reads. Not used by ``seq2seq``.
        head: The ``head`` option. Not used by ``seq2seq``.
        augment: The ``augment`` option, or None outside of training.
        optim: How updates are made, or None for a module that only transcribes.
        normalizers: Text normalizers by name, empty for a module that only transcribes.
        train: Utterances of the train split, or None outside of training.
        detect_language: For which utterances a multilingual Whisper detects the language.
    """

    source: ModelSource
    tokenizer: Tokenizer
    decoder: DecoderOption
    policy: FreezePolicy
    states: StatesOption
    head: Head
    augment: Augment | None = None
    optim: "OptimConfig | None" = None
    normalizers: dict[str, Normalizer]
    train: Sequence[Utterance] | None = None
    detect_language: DetectLanguage | None = None


class Task(Protocol):
    """A ``task`` option. Other options list the ``name`` of each task that they support in ``tasks``."""

    name: ClassVar[str]

    def build(self, parts: ModuleParts) -> "ASRModule":
        """The module, with pretrained weights loaded and new weights initialized."""


def _augmented(encoder: SpeechEncoder, parts: ModuleParts) -> SpeechEncoder:
    """The encoder, with the masking of the ``augment`` option in training."""
    if parts.augment is not None:
        parts.augment.apply_to(encoder)
    return encoder


def _states_and_head(encoder: SpeechEncoder, parts: ModuleParts) -> dict[str, Any]:
    """The modules on top of an encoder, as constructor arguments of `CTCModule`."""
    tokenizer: Any = parts.tokenizer
    states = parts.states.build(encoder)
    parts.policy.prepare(encoder, None)
    head = parts.head.build(dim=states.dim, vocab_size=tokenizer.vocab_size)
    if parts.head.copies_checkpoint:
        if not parts.states.as_is:
            what = "the pretrained head reads the encoder's last states unchanged"
            raise ConfigError("states", what, "use states=last states.stride=1")
        parts.source.copy_head(head, tokenizer)
    return {
        "encoder": encoder,
        "states": states,
        "head": head,
        "decoder": parts.decoder,
        "tokenizer": tokenizer,
        "policy": parts.policy,
        "optim": parts.optim,
        "normalizers": parts.normalizers,
    }


@dataclass(frozen=True, kw_only=True)
class Ctc:
    """CTC on a pretrained encoder with a new head: `ssl_asr.training.ctc.CTCModule`."""

    name: ClassVar[str] = "ctc"

    def build(self, parts: ModuleParts) -> "CTCModule":
        """Encoder, states, head and search."""
        from ssl_asr.training.ctc import CTCModule

        return CTCModule(**_states_and_head(_augmented(parts.source.encoder(), parts), parts))


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Joint CTC-attention on a pretrained encoder with a new trunk: `ssl_asr.training.joint.JointModule`.

    Attributes:
        ctc_weight: Weight ``w`` of CTC in the loss ``w * CTC + (1 - w) * attention``.
        ctc_weight_end: Weight at the end of a linear change, or null for a constant weight.
        ctc_weight_updates: Update at which the change ends, or null.
        label_smoothing: Share of a target's probability mass spread over the vocabulary, in training.
    """

    name: ClassVar[str] = "joint"

    ctc_weight: Dropout
    ctc_weight_end: Fraction | None
    ctc_weight_updates: PositiveInt | None
    label_smoothing: Dropout

    def ctc_share(self, update: int) -> float:
        """CTC's share of the loss after a number of updates."""
        if self.ctc_weight_end is None or self.ctc_weight_updates is None:
            return self.ctc_weight
        done = min(1.0, update / self.ctc_weight_updates)
        return self.ctc_weight + done * (self.ctc_weight_end - self.ctc_weight)

    def build(self, parts: ModuleParts) -> "JointModule":
        """Encoder, states, trunk with CTC and attention decoder."""
        from ssl_asr.training.joint import JointModule

        return JointModule(task=self, **_states_and_head(_augmented(parts.source.encoder(), parts), parts))

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """A weight of 0, or only one of ``ctc_weight_end`` and ``ctc_weight_updates``."""
        if self.ctc_weight == 0:
            yield ConfigError(
                "task.ctc_weight", "is 0, so the CTC layer would not train", "use a number greater than 0, such as 0.2"
            )
        if (self.ctc_weight_end is None) != (self.ctc_weight_updates is None):
            what = f"is {self.ctc_weight_end}, and task.ctc_weight_updates is {self.ctc_weight_updates}"
            yield ConfigError("task.ctc_weight_end", what, "give both, or neither")


@dataclass(frozen=True, kw_only=True)
class Seq2Seq:
    """Whisper's encoder and decoder: `ssl_asr.training.seq2seq.Seq2SeqModule`.

    Attributes:
        label_smoothing: Share of a target's probability mass spread over the vocabulary, in training.
        ctc_weight: Share of the loss of an auxiliary CTC over characters on the encoder's states; 0 for none.
        ctc_lr_scale: Learning rate of the auxiliary CTC layer as a multiple of ``optimizers.rest.lr``.
    """

    name: ClassVar[str] = "seq2seq"

    label_smoothing: Dropout
    ctc_weight: Dropout
    ctc_lr_scale: PositiveFloat

    def build(self, parts: ModuleParts) -> "Seq2SeqModule":
        """Encoder and decoder, and in training the auxiliary CTC layer."""
        from ssl_asr.training.seq2seq import Seq2SeqModule

        assert isinstance(parts.tokenizer, WhisperTokenizer)
        model = parts.source.seq2seq()
        _augmented(model.encoder, parts)
        parts.policy.prepare(model.encoder, model.net)
        return Seq2SeqModule(
            model=model,
            decoder=parts.decoder,
            label_smoothing=self.label_smoothing,
            auxiliary=self._auxiliary(model.encoder, parts.train),
            tokenizer=parts.tokenizer,
            policy=parts.policy,
            optim=parts.optim,
            normalizers=parts.normalizers,
            detect_language=parts.detect_language,
        )

    def _auxiliary(self, encoder: SpeechEncoder, train: Sequence[Utterance] | None) -> "AuxiliaryCtc | None":
        if self.ctc_weight == 0 or train is None:
            return None
        from ssl_asr.training.seq2seq import AuxiliaryCtc

        tokenizer = CharTokenizer.from_texts(train, normalizer="lower")
        layer = nn.Linear(encoder.dim, tokenizer.vocab_size)
        return AuxiliaryCtc(layer=layer, tokenizer=tokenizer, weight=self.ctc_weight, lr_scale=self.ctc_lr_scale)

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """An auxiliary CTC for an encoder that does not train, or states that the decoder cannot read."""
        if self.ctc_weight > 0 and run.freeze_policy.freezes_encoder:
            what = f"is {self.ctc_weight}, and has no effect on a frozen encoder"
            yield ConfigError("task.ctc_weight", what, "use task.ctc_weight=0, or freeze=false")
        if not run.states.as_is:
            what = "Whisper's decoder reads the encoder's last states unchanged"
            yield ConfigError("states", what, "use states=last states.stride=1")
