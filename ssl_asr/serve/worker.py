r"""One thread that runs the models, for requests in many threads.

::

    requests   a.wav       talk.mp3         b.wav          each in a thread that reads its audio
                 |         |    |    |        |
    rows         a         t0   t1   t2       b            wait here; the oldest is in the next batch
                  \         \             /
    batch          [ a        t0        b ]                rows of similar length, of one model and with equal options

Rows are batched by `ssl_asr.inference.voice.batches`, as in every other command. The result of a row does not depend on
the other rows of its batch.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

import numpy as np
import torch

from ssl_asr.data.dataset import collate
from ssl_asr.inference.voice import batches
from ssl_asr.training.memory import return_freed_memory
from ssl_asr.training.module import ASRModule, TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Example, Hypothesis, Seconds

_TRIM_EVERY_S: Seconds = 20.0
"""Time between two returns of freed memory. In between, batches reuse it."""

Result = TypeVar("Result")


class Gone(Exception):
    """The client of a request has gone, or the server stops, so the request is not continued."""


@dataclass(eq=False, slots=True)
class Ticket:
    """The place of a request. `Worker.cancel` gives it up."""

    canceled: bool = False


@dataclass(frozen=True, slots=True)
class BatchFigures:
    """What one batch cost.

    Attributes:
        rows: Number of rows.
        speech_s: Seconds of audio.
        computed_s: Seconds that the encoder computed, padding included.
        busy_s: Seconds that the batch took.
    """

    rows: int
    speech_s: Seconds
    computed_s: Seconds
    busy_s: Seconds


BatchCallback = Callable[[BatchFigures], None]


@dataclass(eq=False, slots=True)
class _Task(Generic[Result]):
    """Something that a request waits for."""

    ticket: Ticket
    done: threading.Event = field(default_factory=threading.Event, init=False)
    result: Result | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    def finish(self, result: Result) -> None:
        self.result = result
        self.done.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()


@dataclass(eq=False, slots=True)
class _Row(_Task[Hypothesis]):
    """One utterance to transcribe."""

    module: ASRModule
    example: Example
    options: TranscribeOptions

    @property
    def seconds(self) -> Seconds:
        return len(self.example.waveform_T) / SAMPLE_RATE

    def goes_with(self, other: "_Row") -> bool:
        return self.module is other.module and self.options == other.options


@dataclass(eq=False, slots=True)
class _Call(_Task[object]):
    """A function that uses a model, and is not batched."""

    function: Callable[[], object]


class Worker(threading.Thread):
    """The thread that runs the models.

    Args:
        max_batch_s: Computed seconds in a batch. None for the default of the encoder, see `SpeechEncoder.budget_s`.
        on_batch: Called after each batch.
    """

    def __init__(self, *, max_batch_s: Seconds | None, on_batch: BatchCallback) -> None:
        super().__init__(name="model", daemon=True)
        self._max_batch_s, self._on_batch = max_batch_s, on_batch
        self._changed = threading.Condition()
        self._waiting: list[_Row | _Call] = []
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Number of rows and calls that wait."""
        return len(self._waiting)

    # Called by requests ------------------------------------------------------------------------------------------

    def transcribe(
        self, ticket: Ticket, module: ASRModule, examples: Sequence[Example], options: TranscribeOptions
    ) -> list[Hypothesis]:
        """Hypotheses of utterances, in their order. Blocks until they are transcribed.

        Raises:
            Gone: The request was canceled, or the worker stops.
        """
        rows = [_Row(ticket, module, example, options) for example in examples]
        self._put(rows)
        return [cast(Hypothesis, _awaited(row)) for row in rows]

    def call(self, ticket: Ticket, function: Callable[[], Result]) -> Result:
        """The result of a function that uses a model. Blocks until it is called.

        Raises:
            Gone: The request was canceled, or the worker stops.
        """
        call = _Call(ticket, function)
        self._put([call])
        return cast(Result, _awaited(call))

    def cancel(self, ticket: Ticket) -> None:
        """Drop what a request waits for. A batch that runs already is finished."""
        with self._changed:
            ticket.canceled = True
            dropped = [task for task in self._waiting if task.ticket is ticket]
            self._waiting = [task for task in self._waiting if task.ticket is not ticket]
        for task in dropped:
            task.fail(Gone())

    def stop(self) -> None:
        """Finish the batch that runs, and drop what waits."""
        with self._changed:
            self._stopped = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify_all()
        for task in dropped:
            task.fail(Gone())

    def _put(self, tasks: Sequence[_Row | _Call]) -> None:
        with self._changed:
            if self._stopped or any(task.ticket.canceled for task in tasks):
                raise Gone
            self._waiting += tasks
            self._changed.notify_all()

    # The thread --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        """Run batches until `stop` is called."""
        trimmed = time.monotonic()
        while tasks := self._next():
            first = tasks[0]
            if isinstance(first, _Call):
                _run_call(first)
            else:
                self._run_rows(cast(list[_Row], tasks))
            if time.monotonic() - trimmed > _TRIM_EVERY_S:
                return_freed_memory()
                trimmed = time.monotonic()

    def _next(self) -> Sequence[_Row | _Call]:
        """The batch with the task that has waited longest. Empty if the worker stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return []
            first = self._waiting[0]
            if isinstance(first, _Call):
                return [self._waiting.pop(0)]
            rows = [task for task in self._waiting if isinstance(task, _Row) and task.goes_with(first)]
            groups = batches(first.module.speech_encoder, [row.seconds for row in rows], self._max_batch_s)
            chosen = [rows[place] for place in next(group for group in groups if 0 in group)]
            taken = set(map(id, chosen))
            self._waiting = [task for task in self._waiting if id(task) not in taken]
            return chosen

    def _run_rows(self, rows: Sequence[_Row]) -> None:
        began = time.monotonic()
        try:
            found = _transcribed(rows)
        except Exception as error:
            if len(rows) == 1:
                rows[0].fail(error)
                return
            # One row must not fail the others.
            for row in rows:
                self._run_rows([row])
            return
        for row, hypothesis in zip(rows, found, strict=True):
            row.finish(hypothesis)
        self._on_batch(_figures(rows, time.monotonic() - began))


def _awaited(task: _Task[Result]) -> Result | None:
    task.done.wait()
    if task.error is not None:
        raise task.error
    return task.result


def _run_call(call: _Call) -> None:
    try:
        call.finish(call.function())
    except Exception as error:
        call.fail(error)


def _transcribed(rows: Sequence[_Row]) -> list[Hypothesis]:
    module, options = rows[0].module, rows[0].options
    batch = collate([row.example for row in rows])
    return module.transcribe(batch.to(module.device), options=options)


def _figures(rows: Sequence[_Row], busy_s: Seconds) -> BatchFigures:
    longest_s = max(row.seconds for row in rows)
    computed_s = float(rows[0].module.speech_encoder.encoded_s(np.array([longest_s]))[0]) * len(rows)
    return BatchFigures(len(rows), sum(row.seconds for row in rows), computed_s, busy_s)
