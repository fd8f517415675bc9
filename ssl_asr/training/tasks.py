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
        ctc_weight: the share of the loss that is CTC's, over characters, on the encoder's states; 0 for none.
        ctc_lr_scale: the learning rate of that new layer, in times ``optimizers.rest.lr``, which is the decoder's.
    """

    label_smoothing: float
    ctc_weight: float
    ctc_lr_scale: float


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A pretrained encoder, a new trunk, CTC and an attention decoder: `ssl_asr.training.joint.JointModule`.

    Attributes:
        ctc_weight: CTC's share of the loss, the attention decoder's being the rest.
        ctc_weight_end, ctc_weight_updates: the share it moves to in a straight line, and by which update it is
            there; null and null leave it.
        label_smoothing: share of a target's mass spread over the vocabulary by the decoder, in training.
    """

    ctc_weight: float
    ctc_weight_end: float | None
    ctc_weight_updates: int | None
    label_smoothing: float

    def ctc_share(self, update: int) -> float:
        """CTC's share of the loss once so many updates are made."""
        if self.ctc_weight_end is None or self.ctc_weight_updates is None:
            return self.ctc_weight
        done = min(1.0, update / self.ctc_weight_updates)
        return self.ctc_weight + done * (self.ctc_weight_end - self.ctc_weight)
