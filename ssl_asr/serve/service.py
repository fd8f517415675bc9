"""Requests of all clients: their places, their uploads, and their jobs."""

import asyncio
import math
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from weakref import WeakSet

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.data.audio import AUDIO_SUFFIXES
from ssl_asr.errors import ConfigError, did_you_mean
from ssl_asr.inference.formats.text import clean
from ssl_asr.inference.shared import Gone
from ssl_asr.serve.figures import Figures
from ssl_asr.serve.jobs import Job, Order, Pool
from ssl_asr.serve.models import ServedModel
from ssl_asr.serve.replies import Refusal
from ssl_asr.serve.worker import Worker
from ssl_asr.types import Seconds

# Jobs that have a thread. Enough for the largest batch of short recordings; the rest wait with their files on disk.
_MOST_THREADS = 128
# A batch that runs when the server stops has so long. Its clients have had their answers.
_LAST_BATCH_S: Seconds = 2.0
# Requests whose times tell how soon a place is free.
_RECENT = 64
_BLOCK_BYTES = 1 << 20
# Characters of a file's name in messages.
_NAME_CHARACTERS = 80


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and formats of a server.

    Attributes:
        max_requests: Requests that are accepted at a time, those that wait included.
        max_upload_bytes: Largest file.
        min_upload_bytes_s: Slowest upload, in bytes a second.
        max_audio_s: Longest recording.
        readers: Threads that read audio at a time.
        max_batch_s: Computed seconds in a batch. None for the default of the encoder.
        style: How subtitles are laid out.
        keys: API keys. Empty for none.
    """

    max_requests: int
    max_upload_bytes: int
    min_upload_bytes_s: float
    max_audio_s: Seconds
    readers: int
    max_batch_s: Seconds | None
    style: SubtitleStyle
    keys: Sequence[str] = ()


class Service:
    """Everything that requests share. Use `running` around all of them.

    Args:
        models: Models. The first one is the default.
        settings: Limits and formats.
    """

    def __init__(self, models: Sequence[ServedModel], settings: Settings) -> None:
        self.models = {model.name: model for model in models}
        self.settings = settings
        self.started_s = int(time.time())
        self.worker = Worker(max_batch_s=settings.max_batch_s, on_batch=lambda one: self.figures.batch(one))
        self.figures = Figures(in_progress=lambda: self.in_progress, waiting=lambda: self.worker.waiting)
        self.in_progress = 0
        self._stopping = asyncio.Event()
        self._jobs: WeakSet[Job] = WeakSet()
        self._ended: deque[float] = deque(maxlen=_RECENT)
        self._pool = Pool(
            worker=self.worker, readers=threading.Semaphore(settings.readers), max_audio_s=settings.max_audio_s
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the models' thread, and keep a folder for uploads.

        At the end, threads that do not stop in time are left running, see `working`.
        """
        self._threads = asyncio.Semaphore(_MOST_THREADS)
        with tempfile.TemporaryDirectory(prefix="ssl_asr_serve_", ignore_cleanup_errors=True) as folder:
            self._folder = Path(folder)
            self.worker.start()
            try:
                yield
            finally:
                self.stop()
                await asyncio.to_thread(self.worker.join, _LAST_BATCH_S)

    @property
    def working(self) -> bool:
        """Whether a thread of a model or a job still runs."""
        return self.worker.is_alive() or any(job.is_alive() for job in self._jobs)

    def stop(self) -> None:
        """End all requests that are not answered yet. Their clients are told to try again later."""
        self._stopping.set()
        self.worker.stop()

    async def stopped(self) -> Exception:
        """Wait for `stop`. Returns the error of requests that it ends."""
        await self._stopping.wait()
        return Gone()

    def model(self, name: str) -> ServedModel:
        """The model that a client names; the first one without a name.

        Raises:
            Refusal: There is no such model.
        """
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            error = ConfigError("model", f"no model '{name[:80]}'", did_you_mean(name, list(self.models)))
            raise Refusal.of(error, HTTPStatus.NOT_FOUND, "model_not_found")
        return self.models[name]

    # Places ------------------------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Take a place for a request. `leave` gives it back.

        Raises:
            Refusal: All places are taken.
        """
        if self.in_progress >= self.settings.max_requests:
            message = f"all {self.settings.max_requests} places are taken. Try again later."
            status = HTTPStatus.TOO_MANY_REQUESTS
            raise Refusal(status, message, code="server_busy", retry_after_s=self._retry_after_s())
        self.in_progress += 1

    def leave(self) -> None:
        """Give back the place of a request."""
        self.in_progress -= 1
        self._ended.append(time.monotonic())

    def _retry_after_s(self) -> int:
        """Seconds in which a quarter of the places becomes free, at the pace of the last requests."""
        if len(self._ended) < 2:
            return 1
        interval_s = (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)
        return min(60, max(1, math.ceil(interval_s * self.settings.max_requests / 4)))

    # Jobs --------------------------------------------------------------------------------------------------------

    async def save(self, file: BinaryIO, name: str) -> tuple[Path, str]:
        """Write an upload to a file. Returns its path, and the client's name for it, for messages.

        Raises:
            OSError: The disk is full.
        """
        suffix = PurePosixPath(name).suffix.lower()
        suffix = suffix if suffix in AUDIO_SUFFIXES else ""
        shown = clean(name)[-_NAME_CHARACTERS:] or "file"
        return await asyncio.to_thread(self._write, file, suffix), shown

    def _write(self, file: BinaryIO, suffix: str) -> Path:
        file.seek(0)
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix="upload", suffix=suffix, delete=False) as copy:
            path = Path(copy.name)
            try:
                shutil.copyfileobj(file, copy, _BLOCK_BYTES)
                copy.flush()
            except OSError:
                path.unlink()
                raise
        return path

    async def start(self, order: Order) -> Job:
        """A job for an upload, started as soon as there is a thread for it."""
        try:
            await self._threads.acquire()
        except BaseException:
            order.path.unlink(missing_ok=True)
            raise
        job = Job(order, self._pool, self._threads.release)
        self._jobs.add(job)
        try:
            job.start()
        except RuntimeError:  # the system has no more threads
            order.path.unlink(missing_ok=True)
            self._threads.release()
            raise
        return job
