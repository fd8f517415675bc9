"""A request as a job: a thread that reads an uploaded file and transcribes it."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ssl_asr.data.audio import audio_duration_s, read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.signal import Signal, notices
from ssl_asr.errors import AudioError
from ssl_asr.inference.long_recordings import transcribe_long
from ssl_asr.inference.recognizer import SegmentsCallback
from ssl_asr.inference.recording import Recording
from ssl_asr.inference.shared import Gone, SharedModel
from ssl_asr.inference.voice import transcribe_short
from ssl_asr.metrics.report import Prediction
from ssl_asr.serve.models import ServedModel, Task
from ssl_asr.serve.worker import Ticket, Worker
from ssl_asr.training.module import TranscribeOptions
from ssl_asr.types import Example, Hypothesis, Notice, Seconds, Segment, Utterance


class TooLong(AudioError):
    """A recording is longer than the server takes."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is transcribed, and how.

    Attributes:
        served: The model.
        path: The uploaded file.
        name: The client's name of the file.
        language: Language of the speech. None detects it, or takes that of the model.
        task: ``transcribe`` or ``translate``.
        prompt: Text before the recording, for Whisper. None for that of the decoder.
        words: Whether words get times.
        streamed: Whether segments are wanted as they are done.
    """

    served: ServedModel
    path: Path
    name: str
    language: str | None = None
    task: Task = "transcribe"
    prompt: str | None = None
    words: bool = False
    streamed: bool = False

    @property
    def options(self) -> TranscribeOptions:
        """What the model returns besides text."""
        return TranscribeOptions(confidence=self.served.measure if self.words else None)

    def utterance(self, max_audio_s: Seconds) -> Utterance:
        """The recording.

        Raises:
            AudioError: The file is not audio, or is too short.
            TooLong: It is longer than ``max_audio_s``.
        """
        try:
            duration = audio_duration_s(self.path)
        except AudioError as error:
            raise self.named(error) from None
        if duration > max_audio_s:
            what = f"has {duration:.1f} s, and this server takes {max_audio_s:g} s at most"
            raise TooLong(self.name, what, "cut it, and send the parts", "too_long")
        shortest_s = self.served.module.limits().min_s
        if duration < shortest_s:
            what = f"has {duration:.3f} s, and {self.served.name} takes {shortest_s:.3f} s at least"
            raise AudioError(self.name, what, "send a longer recording", "too_short")
        tags = {} if self.prompt is None else {"prompt": self.prompt}
        # A model that was trained to translate does so at every address, as in ``ssl-asr transcribe``.
        task = "translate" if self.task == "translate" else None
        return Utterance(self.name, str(self.path), duration, lang=self.language, task=task, tags=tags)

    def named(self, error: AudioError) -> AudioError:
        """An error of the file, with the client's name in place of the path."""
        what = error.what.replace(f"{self.path}: ", "").replace(str(self.path), self.name)
        return AudioError(self.name, what, error.remedy, error.reason)


# Messages of a job, in order: `Opened`, any number of `Segments`, and the `Transcript`; or an exception.


@dataclass(frozen=True, slots=True)
class Opened:
    """The file is audio that the server takes. Its length in seconds."""

    duration: Seconds


@dataclass(frozen=True, slots=True)
class Segments:
    """The next segments of the recording."""

    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of the whole recording, and what was found in its samples."""

    row: Prediction
    notices: Sequence[Notice]


Message = Opened | Segments | Transcript


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What all jobs share.

    Attributes:
        worker: Runs the models.
        readers: Slots of the threads that read audio and search it for speech.
        max_audio_s: Longest recording.
    """

    worker: Worker
    readers: threading.Semaphore
    max_audio_s: Seconds


class Job:
    """Transcribes one upload in a thread of its own. Use it in one event loop.

    Args:
        order: What is transcribed. The uploaded file is removed at the end.
        pool: What all jobs share.
        on_end: Called in the event loop when the thread has ended.
    """

    def __init__(self, order: Order, pool: Pool, on_end: Callable[[], None]) -> None:
        self._order, self._pool, self._on_end = order, pool, on_end
        self._ticket = Ticket()
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        # A thread for each job, so that what a reader keeps in its thread is freed at the end.
        self._thread = threading.Thread(target=self._run, name="job", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    async def message(self) -> Message:
        """The next message.

        Raises:
            Exception: What the job failed by, `AudioError` and `Gone` included.
        """
        found = await self._messages.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def transcript(self) -> Transcript:
        """The transcript of the whole recording. See `message` for errors."""
        while True:
            found = await self.message()
            if isinstance(found, Transcript):
                return found

    def cancel(self) -> None:
        """Give up. Rows that wait for the model are dropped."""
        self._pool.worker.cancel(self._ticket)

    def _run(self) -> None:
        try:
            with torch.inference_mode(), self._pool.readers:
                self._transcribe()
        except Exception as error:
            self._post(self._order.named(error) if type(error) is AudioError else error)
        finally:
            self._order.path.unlink(missing_ok=True)
            with suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._on_end)

    def _transcribe(self) -> None:
        if self._ticket.canceled:
            raise Gone
        utterance = self._order.utterance(self._pool.max_audio_s)
        self._post(Opened(utterance.duration))
        shared = SharedModel(
            self._order.served.module, partial(self._pool.worker.put, self._ticket), self._pool.readers
        )
        on_segments = self._post_segments if self._order.streamed else None
        hypothesis, signals = transcribe_recording(shared, self._order, utterance, on_segments)
        self._post(Transcript(Prediction.of(utterance, hypothesis), notices(utterance.id, signals)))

    def _post_segments(self, segments: Sequence[Segment]) -> None:
        self._post(Segments(segments))

    def _post(self, message: Message | Exception) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)


def transcribe_recording(
    model: SharedModel, order: Order, utterance: Utterance, on_segments: SegmentsCallback | None
) -> tuple[Hypothesis, list[Signal]]:
    """The transcript of a recording of any length, as ``ssl-asr transcribe`` makes it, and findings in its samples."""
    served = order.served
    if utterance.duration > model.longest_pass_s(served.long_form.chunk_s):
        recording = Recording(utterance, downmix=served.downmix)
        found = transcribe_long(model, recording, served.long_form, order.options, on_segments=on_segments)
        return found, recording.signals
    signals: list[Signal] = []
    example = Example(utterance, read_waveform(utterance, downmix=served.downmix, signals=signals), [])
    [hypothesis] = transcribe_short(model, collate([example]), served.long_form, order.options)
    return hypothesis, signals
