"""A model that the threads of several recordings share.

Each thread hands over what it needs from the model as tasks, and waits. One thread runs the model: that of a server
(`ssl_asr.serve.worker`), or that of `ssl_asr.inference.together`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from ssl_asr.data.dataset import collate
from ssl_asr.decoding.alignment import Measure
from ssl_asr.inference.long_recordings import TimestampModule, WindowedModule
from ssl_asr.inference.voice import batches
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.module import TEXT_ONLY, ASRModule, LongFormMethod, TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Batch, Example, Hypothesis, Seconds, Segment, Utterance

Result = TypeVar("Result")


class Gone(Exception):
    """The result of a task is not wanted any more, or the thread of the model stops."""


@dataclass(eq=False, slots=True)
class Task(Generic[Result]):
    """Something that a thread waits for. The thread of the model calls `finish` or `fail` once."""

    _done: threading.Event = field(default_factory=threading.Event, init=False)
    _result: Result | None = field(default=None, init=False)
    _error: BaseException | None = field(default=None, init=False)

    def finish(self, result: Result) -> None:
        """Pass on the result."""
        self._result = result
        self._done.set()

    def fail(self, error: BaseException) -> None:
        """Raise an error in the thread that waits."""
        self._error = error
        self._done.set()

    def wait(self) -> Result:
        """Wait for the result. Raises what the task failed by."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return cast(Result, self._result)


@dataclass(eq=False, slots=True)
class Row(Task[Hypothesis]):
    """One utterance to transcribe.

    Attributes:
        module: The model.
        example: The utterance.
        options: What to return besides text.
        out: The encoder's output for it alone. None if it is not encoded yet.
    """

    module: ASRModule
    example: Example
    options: TranscribeOptions
    out: EncoderOutput | None = None

    @property
    def seconds(self) -> Seconds:
        """Length of the utterance."""
        return len(self.example.waveform_T) / SAMPLE_RATE

    def goes_with(self, other: "Row") -> bool:
        """Whether both can be in one batch."""
        same_model = self.module is other.module and self.options == other.options
        return same_model and (self.out is None) == (other.out is None)


@dataclass(eq=False, slots=True)
class Call(Task[object]):
    """A function that uses a model, and is not batched."""

    function: Callable[[], object]


AnyTask = Row | Call


def batch_of(first: Row, waiting: Sequence[AnyTask], max_batch_s: Seconds | None) -> list[Row]:
    """The batch with ``first``: it and rows of similar length that wait, too.

    Args:
        first: One of ``waiting``.
        waiting: Everything that waits.
        max_batch_s: Computed seconds in a batch. None for the default of the encoder, see `SpeechEncoder.budget_s`.
    """
    rows = [task for task in waiting if isinstance(task, Row) and task.goes_with(first)]
    groups = batches(first.module.speech_encoder, [row.seconds for row in rows], max_batch_s)
    at = next(place for place, row in enumerate(rows) if row is first)
    return [rows[place] for place in next(group for group in groups if at in group)]


def transcribed(rows: Sequence[Row]) -> list[Hypothesis]:
    """Hypotheses of a batch of rows, see `batch_of`. To be called by the thread of the model."""
    module, options = rows[0].module, rows[0].options
    outs = [row.out for row in rows if row.out is not None]
    batch = collate([row.example for row in rows]).to(module.device)
    return module.transcribe(batch, EncoderOutput.joined(outs) if outs else None, options)


class SharedModel:
    """A `Recognizer` for the thread of one recording. The model runs in another thread, in batches of all recordings.

    While the thread waits for the model, its reader slot is free for another thread.

    Args:
        module: The model.
        put: Hands over tasks to the thread of the model.
        readers: Slots of the threads that read audio. The caller holds one.
    """

    def __init__(
        self, module: ASRModule, put: Callable[[Sequence[AnyTask]], None], readers: threading.Semaphore
    ) -> None:
        self._module, self._put, self._readers = module, put, readers
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
        """The CPU: the thread of the model moves batches to its device."""
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
        """One hypothesis for each utterance. They are batched with those of other recordings."""
        lengths = batch.lengths_B.tolist()
        rows = [
            Row(
                self._module,
                Example(utterance, batch.waveform_BT[row, : lengths[row]], []),
                options,
                None if out is None else out.rows([row]),
            )
            for row, utterance in enumerate(batch.utterances)
        ]
        return self._wait(rows)

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
        return cast(Result, self._wait([Call(function)])[0])

    def _wait(self, tasks: Sequence[Task[Result]]) -> list[Result]:
        with self._reader_free():
            self._put(cast(Sequence[AnyTask], tasks))
            return [task.wait() for task in tasks]

    @contextmanager
    def _reader_free(self) -> Iterator[None]:
        self._readers.release()
        try:
            yield
        finally:
            self._readers.acquire()
