"""What all ``decoder`` options share."""

from typing import ClassVar, Protocol

from ssl_asr.decoding.rescoring import Rescorer


class DecoderOption(Protocol):
    """A ``decoder`` option: a frozen dataclass. Each kind of decoder adds how it searches.

    See `ssl_asr.decoding.ctc.CtcDecoder` for CTC, `ssl_asr.decoding.seq2seq.WhisperDecoder` for Whisper, and
    `ssl_asr.decoding.seq2seq.AttentionDecoder` for the attention decoder of joint models.
    """

    tasks: ClassVar[frozenset[str]]
    """Tasks of the models that the option decodes: a subset of ctc, joint and seq2seq."""

    @property
    def n_best(self) -> int:
        """Number of texts in each hypothesis, the best text included."""

    def rescorer(self) -> Rescorer | None:
        """Ranks the search's texts again, or None."""
