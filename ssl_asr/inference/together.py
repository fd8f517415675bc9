"""Several recordings at once, each in a thread, with one model.

A recording of a minute has two or three parts, and the next part may depend on the text of the last one. Alone, it
makes small batches. Several recordings share batches::

    recording 1   read, find speech | waits ...... | join, end
    recording 2   read, find speech    | waits ... | next part | waits ...
    model                                [1a 2a 1b]              [2b]
                                         round 1                 round 2

A round begins when every recording has ended or waits for the model. So batches do not depend on the speed of threads,
and a run gives the same texts every time.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch

from ssl_asr.inference.recognizer import Recognizer
from ssl_asr.inference.recording import go_on
from ssl_asr.inference.shared import AnyTask, Call, Gone, Row, SharedModel, batch_of, transcribed
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Seconds

Result = TypeVar("Result")

# Largest number of recordings at once.
_MOST = 32
# Time for which threads that read audio are waited for after an error. They look at every block of audio.
_LAST_READ_S: Seconds = 10.0


@dataclass(frozen=True, slots=True)
class Job(Generic[Result]):
    """What is done with a recording.

    Attributes:
        function: Gets the model, and a function to call before each part of the audio is read. It raises `Gone` when
            the recording is given up. Called in a thread.
        seconds: Length of the recording.
    """

    function: Callable[[Recognizer, Callable[[], None]], Result]
    seconds: Seconds


def run_together(
    module: ASRModule, jobs: Sequence[Job[Result]], *, max_batch_s: Seconds | None
) -> Iterator[tuple[int, Result]]:
    """Run a function for each of several recordings, with utterances of all of them in one batch.

    Recordings are started in order, until what waits for the model fills a batch. A recording that fills batches alone
    is followed by the next one when its last parts wait, so little is lost by an interruption.

    Args:
        module: The model, in eval mode on its device.
        jobs: What is done with each recording.
        max_batch_s: Computed seconds in a batch. None for the default of the encoder, see `SpeechEncoder.budget_s`.

    Yields:
        The place of a job that has ended, and its result.

    Raises:
        Exception: What the first job raised, or the model.
    """
    if len(jobs) <= 1:
        yield from ((place, job.function(module, go_on)) for place, job in enumerate(jobs))
        return
    rounds = _Rounds(module, jobs, max_batch_s)
    try:
        yield from rounds.results()
    finally:
        rounds.stop()


class _Rounds(Generic[Result]):
    """The threads of recordings, and the rounds of the model in the thread of the caller. See `run_together`."""

    def __init__(self, module: ASRModule, jobs: Sequence[Job[Result]], max_batch_s: Seconds | None) -> None:
        self._module, self._jobs, self._max_batch_s = module, jobs, max_batch_s
        self._budget_s = module.speech_encoder.budget_s(max_batch_s)
        self._readers = threading.Semaphore(os.cpu_count() or 1)
        # Changed under the condition. A job is in one of the three.
        self._changed = threading.Condition()
        self._running: set[int] = set()
        self._waiting: dict[int, Sequence[AnyTask]] = {}
        self._ended: dict[int, Result | BaseException] = {}
        self._stopped = False
        self._threads: dict[int, threading.Thread] = {}

    def results(self) -> Iterator[tuple[int, Result]]:
        """Place and result of each job, in the order in which they end."""
        started = 0
        while True:
            self._settle()
            yield from self._take_ended()
            if wave := self._next_wave(started):
                self._start(wave)
                started += len(wave)
            elif self._waiting:
                self._run_round()
            else:
                return

    def stop(self) -> None:
        """End all threads. Those that read audio end before the next part that they would read."""
        with self._changed:
            self._stopped = True
            left = [task for tasks in self._waiting.values() for task in tasks]
        for task in left:
            task.fail(Gone())
        until = time.monotonic() + _LAST_READ_S
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()))

    def _settle(self) -> None:
        """Wait until every job that was started waits for the model or has ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)

    def _take_ended(self) -> Iterator[tuple[int, Result]]:
        """The results. Those of other recordings come before the error of one."""
        errors = []
        for place in sorted(self._ended):
            result = self._ended.pop(place)
            self._threads.pop(place).join()
            if isinstance(result, BaseException):
                errors.append(result)
            else:
                yield place, result
        if errors:
            raise errors[0]

    def _next_wave(self, started: int) -> list[int]:
        """The recordings to start next: as many as fill a batch with what waits, by their lengths."""
        seconds = [task.seconds for tasks in self._waiting.values() for task in tasks if isinstance(task, Row)]
        computed_s = float(self._module.speech_encoder.encoded_s(np.array(seconds)).sum()) if seconds else 0.0
        wave: list[int] = []
        for place in range(started, len(self._jobs)):
            if computed_s >= self._budget_s or len(self._waiting) + len(wave) >= _MOST:
                break
            wave.append(place)
            computed_s += self._jobs[place].seconds
        return wave

    def _start(self, wave: Sequence[int]) -> None:
        self._running |= set(wave)
        for place in wave:
            self._threads[place] = threading.Thread(target=self._run, args=[place], name="recording", daemon=True)
            self._threads[place].start()

    def _run(self, place: int) -> None:
        """Run a job. Called in its thread."""
        result: Result | BaseException
        try:
            with torch.inference_mode(), self._readers:
                self._check()
                model = SharedModel(self._module, partial(self._put, place), self._readers)
                result = self._jobs[place].function(model, self._check)
        except BaseException as error:  # raised in the thread of the caller
            result = error
        with self._changed:
            self._running.discard(place)
            self._ended[place] = result
            self._changed.notify_all()

    def _check(self) -> None:
        if self._stopped:
            raise Gone

    def _put(self, place: int, tasks: Sequence[AnyTask]) -> None:
        with self._changed:
            if self._stopped:
                raise Gone
            self._running.discard(place)
            self._waiting[place] = tasks
            self._changed.notify_all()

    @torch.inference_mode()
    def _run_round(self) -> None:
        """Run everything that waits, in the order of the jobs. Jobs go on as soon as they have all they wait for."""
        with self._changed:
            tasks = [task for place in sorted(self._waiting) for task in self._waiting[place]]
            self._running |= set(self._waiting)
            self._waiting = {}
        try:
            while tasks:
                first = tasks[0]
                if isinstance(first, Call):
                    first.finish(first.function())
                    done: set[int] = {id(first)}
                else:
                    rows = batch_of(first, tasks, self._max_batch_s)
                    for row, hypothesis in zip(rows, transcribed(rows), strict=True):
                        row.finish(hypothesis)
                    done = set(map(id, rows))
                tasks = [task for task in tasks if id(task) not in done]
        finally:
            for task in tasks:
                task.fail(Gone())
