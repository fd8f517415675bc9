"""What recordings of any length are transcribed with: a model, or a model that several threads share."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.module import TEXT_ONLY, LongFormMethod, TranscribeOptions
from ssl_asr.types import Batch, Hypothesis, Seconds, Segment, Utterance

SegmentsCallback = Callable[[Sequence[Segment]], None]
"""Called with the next segments of a recording, in order of time, as soon as they are transcribed."""


class Recognizer(Protocol):
    """The part of `ASRModule` that transcription uses. See `ASRModule` for the methods."""

    @property
    def speech_encoder(self) -> SpeechEncoder:
        """The encoder, which says what a batch costs."""

    @property
    def device(self) -> torch.device:
        """Where batches are moved to before they are transcribed."""

    @property
    def long_form(self) -> LongFormMethod | None:
        """How long recordings are transcribed without voice activity detection; None if they cannot be."""

    def longest_pass_s(self, chunk_s: Seconds) -> Seconds:
        """Longest recording that is transcribed in one pass."""

    def detects_language(self, utterance: Utterance) -> bool:
        """Whether `transcribe` detects the language of an utterance."""

    def encode(self, batch: Batch) -> EncoderOutput:
        """The encoder's output."""

    def language_probabilities(self, out: EncoderOutput) -> list[dict[str, float]]:
        """Probability of each language for each utterance."""

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """One hypothesis for each utterance, in batch order."""
