"""The ``task`` options."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ctc:
    """A pretrained encoder, a new head, CTC: `ssl_asr.training.ctc.CTCModule`."""


@dataclass(frozen=True, kw_only=True)
class Seq2Seq:
    """Whisper as a whole: `ssl_asr.training.seq2seq.Seq2SeqModule`.

    Attributes:
        label_smoothing: share of the target's mass spread over the vocabulary, in training.
    """

    label_smoothing: float
