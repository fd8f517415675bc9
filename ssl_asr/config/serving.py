"""The configuration of the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, ClassVar

from annotated_types import Interval, MinLen

from ssl_asr.config.parts import Decoding, LongRecordings, ModelInput, SubtitleStyle
from ssl_asr.errors import ConfigError, missing_extra
from ssl_asr.types import Downmix, ModelName, PositiveFloat, PositiveInt, RecognitionPrecision


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ModelInput, Decoding, LongRecordings, SubtitleStyle):
    """Serve models over HTTP: OpenAI's audio API (/v1/audio/transcriptions), and a page at /.

    Attributes:
        model: Run directory, checkpoint file, ``backbone`` option, or name of a pretrained checkpoint. Several models:
            model=[a,b]. The first one is used for requests that name none, and the page compares two.
        language: Language of requests that name none, as a code (de, deu, de-DE) or a name. null and auto detect it.
        host: Address to listen at. 0.0.0.0 listens at all addresses of the machine.
        port: Port to listen at. 0 takes a free one.
        api_key_env: Name of the environment variable that holds the API key, or several separated by commas. Clients
            send it as Authorization: Bearer KEY. null asks for no key.
        max_requests: Requests that are accepted at a time, waiting ones included. Others get status 429.
        max_upload_mb: Largest file in megabytes. Larger ones get status 413.
        min_upload_kb_s: Smallest average rate of an upload in kilobytes a second, after 30 s. A client that sends more
            slowly, or nothing for 30 s, gets status 408.
        max_audio_s: Longest recording in seconds. Longer ones get status 413.
        max_batch_s: Seconds that the encoder computes for a batch, padding included. null is 120; or, with Whisper, 480
            with window=30s and 180 with window=real.
        readers: Threads that read audio and search it for speech.
        downmix: What to do with several channels: ``mean``, ``first`` or ``refuse``. null takes the value of training,
            and mean for a pretrained model.
        accelerator: Lightning's accelerator: auto, cpu, gpu and others.
        precision: ``bf16-true`` and ``16-true`` hold the weights in 16 bits, ``32-true`` in float32. auto is bf16-true
            on an NVIDIA GPU (16-true if the GPU has no bfloat16) and 32-true on other devices.
        shutdown_s: Seconds that running requests have after SIGTERM. Unfinished ones get status 503 then.
        verbose: Print a line for each request.
    """

    section: ClassVar[str] = "Server"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: ModelName | Annotated[list[ModelName], MinLen(1)]  # type: ignore[assignment]
    language: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Interval(ge=0, le=65535)] = 8000
    api_key_env: str | None = None
    max_requests: PositiveInt = 256
    max_upload_mb: PositiveFloat = 100.0
    min_upload_kb_s: PositiveFloat = 16.0
    max_audio_s: PositiveFloat = 7200.0
    max_batch_s: PositiveFloat | None = None
    readers: PositiveInt = 2
    downmix: Downmix | None = None
    accelerator: str = "auto"
    precision: RecognitionPrecision = "auto"
    shutdown_s: PositiveFloat = 30.0
    verbose: bool = True

    def conflicts(self) -> Iterator[ConfigError]:
        """Packages of the server that are not installed."""
        yield from super().conflicts()
        names = {"multipart": "python-multipart", "prometheus_client": "prometheus-client"}
        for package in ("fastapi", "uvicorn", *names):
            if find_spec(package) is None:
                yield missing_extra("ssl-asr serve", names.get(package, package), "serve")
