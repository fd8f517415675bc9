"""A model that the threads of many requests share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor

from ssl_asr.decoding.alignment import Measure
from ssl_asr.inference.long_recordings import TimestampModule, WindowedModule
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.serve.worker import Ticket, Worker
from ssl_asr.training.module import TEXT_ONLY, ASRModule, LongFormMethod, TranscribeOptions
from ssl_asr.types import Batch, Example, Hypothesis, Seconds, Segment, Utterance

Result = TypeVar("Result")


class SharedModel:
    """A `Recognizer` for one request. The model runs in the thread of a `Worker`, which batches rows of all requests.

    While the request waits for the model, its reader slot is free for another request.

    Args:
        module: The model.
        worker: Runs it.
        ticket: The place of the request.
        readers: Slots of the threads that read audio. The caller holds one.
    """

    def __init__(self, module: ASRModule, worker: Worker, ticket: Ticket, readers: threading.Semaphore) -> None:
        self._module, self._worker, self._ticket, self._readers = module, worker, ticket, readers
        # Both are the same object, with the interface of `ASRModule.long_form`.
        self._windowed = cast(WindowedModule, module)
        self._timestamped = cast(TimestampModule, module)

    # Answered without the model ------------------------------------------------------------------------------------

    @property
    def speech_encoder(self) -> SpeechEncoder:
        """The encoder."""
        return self._module.speech_encoder

    @property
    def device(self) -> torch.device:
        """The CPU: the worker moves its batches to the device of the model."""
        return torch.device("cpu")

    @property
    def long_form(self) -> LongFormMethod | None:
        """See `ASRModule`."""
        return self._module.long_form

    @property
    def frame_s(self) -> Seconds:
        """Seconds from a frame to the next."""
        return self._windowed.frame_s

    def longest_pass_s(self, chunk_s: Seconds) -> Seconds:
        """Longest recording that is transcribed in one pass."""
        return self._module.longest_pass_s(chunk_s)

    def detects_language(self, utterance: Utterance) -> bool:
        """Whether the language of an utterance is detected."""
        return self._module.detects_language(utterance)

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Number of frames for a number of samples."""
        return self._windowed.frame_lengths(lengths_B)

    def confidence_measure(self, measure: Measure, *, required: bool) -> Measure | None:
        """The measure if the model can time words."""
        return self._module.confidence_measure(measure, required=required)

    def segments_of(self, hypothesis: Hypothesis, duration: Seconds) -> tuple[list[Segment], Seconds]:
        """The complete segments of a hypothesis, and their last timestamp."""
        return self._timestamped.segments_of(hypothesis, duration)

    # Answered by the model -----------------------------------------------------------------------------------------

    def transcribe(
        self, batch: Batch, out: EncoderOutput | None = None, options: TranscribeOptions = TEXT_ONLY
    ) -> list[Hypothesis]:
        """One hypothesis for each utterance. Without ``out``, they are batched with those of other requests."""
        if out is not None:
            module = self._module
            return self._call(lambda: module.transcribe(batch.to(module.device), out, options))
        lengths = batch.lengths_B.tolist()
        examples = [
            Example(utterance, batch.waveform_BT[row, : lengths[row]], [])
            for row, utterance in enumerate(batch.utterances)
        ]
        with self._reader_free():
            return self._worker.transcribe(self._ticket, self._module, examples, options)

    def encode(self, batch: Batch) -> EncoderOutput:
        """The encoder's output, on the device of the model."""
        return self._call(lambda: self._module.encode(batch.to(self._module.device)))

    def language_probabilities(self, out: EncoderOutput) -> list[dict[str, float]]:
        """Probability of each language for each utterance."""
        return self._call(lambda: self._module.language_probabilities(out))

    def log_probs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """``log_probs_BFV`` and the number of frames of each utterance."""
        return self._call(lambda: self._windowed.log_probs(batch.to(self._module.device)))

    def transcribe_log_probs(self, utterance_id: str, log_probs_FV: Tensor, options: TranscribeOptions) -> Hypothesis:
        """The search's best text given all log-probabilities of a recording."""
        return self._call(lambda: self._windowed.transcribe_log_probs(utterance_id, log_probs_FV, options))

    def _call(self, function: Callable[[], Result]) -> Result:
        with self._reader_free():
            return self._worker.call(self._ticket, function)

    @contextmanager
    def _reader_free(self) -> Iterator[None]:
        self._readers.release()
        try:
            yield
        finally:
            self._readers.acquire()
