"""A server in this process, in a thread, on a free port."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import httpx
import torch
import uvicorn

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.inference.long_form import LongForm
from ssl_asr.serve.app import make_app
from ssl_asr.serve.models import ServedModel
from ssl_asr.serve.service import Service, Settings

ADDRESS = "/v1/audio/transcriptions"
SETTINGS = {
    "max_requests": 64,
    "max_upload_bytes": 4_000_000,
    "min_upload_bytes_s": 16e3,
    "max_audio_s": 60.0,
    "readers": 2,
    "max_batch_s": None,
    "style": SubtitleStyle(),
}
FORM = LongForm(chunk_s=30.0, stride_s=4.0, vad=False)


def served(name: str, module: torch.nn.Module, form: LongForm = FORM) -> ServedModel:
    """A module as a model of a server."""
    return ServedModel.of(name, module, long_form=form)


@contextlib.contextmanager
def serving(models: Sequence[ServedModel], **settings: object) -> Iterator[tuple[str, Service, list[str]]]:
    """Run a server. Yields its address, its service, and the lines that it logs."""
    lines: list[str] = []
    service = Service(models, Settings(**{**SETTINGS, **settings}))
    own = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service, lines.append), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([own],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{own.getsockname()[1]}", service, lines
    finally:
        server.should_exit = True
        thread.join(30)
        own.close()


def post(server, file, **fields):
    """A request with the fields of a form, and its answer."""
    data = {name.replace("__", "[]"): value for name, value in fields.items()}
    with httpx.Client(timeout=60) as client:
        content = file.read_bytes() if hasattr(file, "read_bytes") else file
        return client.post(f"{server.address}{ADDRESS}", data=data, files={"file": ("a.wav", content)})


def error_of(answer, status):
    """The message of an error, which has OpenAI's shape and no traceback."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert "/tmp" not in answer.text
    return error["message"]


def until(holds, seconds=20.0):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the condition does not hold"
        time.sleep(0.01)
