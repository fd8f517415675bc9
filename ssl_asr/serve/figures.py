"""Figures of a server, for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from ssl_asr.serve.worker import BatchFigures
from ssl_asr.types import Seconds

# Bounds in seconds: a short recording takes a fraction of a second, a long one minutes.
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 180.0, 600.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Figures:
    """The metrics of one server, in a registry of its own.

    Args:
        in_progress: Number of accepted requests that are not answered yet.
        waiting: Number of rows that wait for the model.
    """

    def __init__(self, *, in_progress: Callable[[], int], waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        own = self.registry
        self._requests = Counter("ssl_asr_requests", "Requests by status.", ["endpoint", "status"], registry=own)
        self._seconds = Histogram(
            "ssl_asr_request_seconds", "Time from request to answer.", ["endpoint"], buckets=_SECONDS, registry=own
        )
        self._audio = Counter("ssl_asr_audio_seconds", "Seconds of audio transcribed.", ["model"], registry=own)
        self._rows = Histogram("ssl_asr_batch_rows", "Utterances in a batch.", buckets=_ROWS, registry=own)
        self._speech = Counter("ssl_asr_batch_speech_seconds", "Seconds of audio in batches.", registry=own)
        self._computed = Counter("ssl_asr_batch_computed_seconds", "Computed seconds, with padding.", registry=own)
        self._busy = Counter("ssl_asr_model_busy_seconds", "Seconds that batches took.", registry=own)
        open_requests = Gauge("ssl_asr_requests_in_progress", "Requests without an answer.", registry=own)
        open_requests.set_function(in_progress)
        rows_waiting = Gauge("ssl_asr_rows_waiting", "Utterances that wait for the model.", registry=own)
        rows_waiting.set_function(waiting)

    def answered(self, endpoint: str, status: int, seconds: Seconds) -> None:
        """Count a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def transcribed(self, model: str, audio_s: Seconds) -> None:
        """Count a transcript."""
        self._audio.labels(model).inc(audio_s)

    def batch(self, one: BatchFigures) -> None:
        """Count a batch."""
        self._rows.observe(one.rows)
        self._speech.inc(one.speech_s)
        self._computed.inc(one.computed_s)
        self._busy.inc(one.busy_s)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
