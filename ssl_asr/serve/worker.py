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
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from ssl_asr.inference.shared import AnyTask, Call, Gone, Row, batch_of, transcribed
from ssl_asr.training.memory import return_freed_memory
from ssl_asr.types import Seconds

_TRIM_EVERY_S: Seconds = 20.0
"""Time between two returns of freed memory. In between, batches reuse it."""


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
        self._waiting: list[tuple[Ticket, AnyTask]] = []
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Number of rows and calls that wait."""
        return len(self._waiting)

    # Called by requests ------------------------------------------------------------------------------------------

    def put(self, ticket: Ticket, tasks: Sequence[AnyTask]) -> None:
        """Queue tasks. Rows are batched with those of other requests.

        Raises:
            Gone: The request was canceled, or the worker stops.
        """
        with self._changed:
            if self._stopped or ticket.canceled:
                raise Gone
            self._waiting += [(ticket, task) for task in tasks]
            self._changed.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Drop what a request waits for. A batch that runs already is finished."""
        with self._changed:
            ticket.canceled = True
            dropped = [task for own, task in self._waiting if own is ticket]
            self._waiting = [(own, task) for own, task in self._waiting if own is not ticket]
        for task in dropped:
            task.fail(Gone())

    def stop(self) -> None:
        """Finish the batch that runs, and drop what waits."""
        with self._changed:
            self._stopped = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify_all()
        for _, task in dropped:
            task.fail(Gone())

    # The thread --------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        """Run batches until `stop` is called."""
        trimmed = time.monotonic()
        while tasks := self._next():
            first = tasks[0]
            if isinstance(first, Call):
                _run_call(first)
            else:
                self._run_rows(cast(Sequence[Row], tasks))
            if time.monotonic() - trimmed > _TRIM_EVERY_S:
                return_freed_memory()
                trimmed = time.monotonic()

    def _next(self) -> Sequence[AnyTask]:
        """The batch with the task that has waited longest. Empty if the worker stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return []
            first = self._waiting[0][1]
            waiting = [task for _, task in self._waiting]
            chosen = [first] if isinstance(first, Call) else batch_of(first, waiting, self._max_batch_s)
            taken = set(map(id, chosen))
            self._waiting = [(ticket, task) for ticket, task in self._waiting if id(task) not in taken]
            return chosen

    def _run_rows(self, rows: Sequence[Row]) -> None:
        began = time.monotonic()
        try:
            found = transcribed(rows)
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


def _run_call(call: Call) -> None:
    try:
        call.finish(call.function())
    except Exception as error:
        call.fail(error)


def _figures(rows: Sequence[Row], busy_s: Seconds) -> BatchFigures:
    longest_s = max(row.seconds for row in rows)
    computed_s = float(rows[0].module.speech_encoder.encoded_s(np.array([longest_s]))[0]) * len(rows)
    return BatchFigures(len(rows), sum(row.seconds for row in rows), computed_s, busy_s)
