"""The server as a process: its socket, its key, and how signals end it."""

import asyncio
import math
import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import uvicorn
from rich.console import Console
from rich.markup import escape

from ssl_asr.config.interruption import Interruption, current
from ssl_asr.config.serving import ServeConfig
from ssl_asr.console import no_message, notify, say_to
from ssl_asr.errors import ConfigError
from ssl_asr.inference.options import inference_options, long_form
from ssl_asr.inference.running import inference_device
from ssl_asr.serve.app import make_app
from ssl_asr.serve.models import ServedModel, load_models
from ssl_asr.serve.service import Service, Settings
from ssl_asr.types import Seconds

_TICK_S: Seconds = 0.1
# Time to send the answers of requests that are not finished when the server stops.
_ANSWER_S: Seconds = 5.0
_LOCAL = ("127.0.0.1", "localhost", "::1")
# Addresses that mean all addresses of the machine, and one of them.
_REACHED = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def api_keys(variable: str | None) -> list[str]:
    """The API keys in an environment variable, separated by commas.

    Args:
        variable: Its name. None for no key.

    Raises:
        ConfigError: The variable is not set, or empty.
    """
    if variable is None:
        return []
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        what = f"the environment variable {variable} is not set"
        raise ConfigError("api_key_env", what, f"run export {variable}=KEY, or leave the option out")
    return keys


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: The address is not one of this machine, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        own = socket.socket(family, socket.SOCK_STREAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        key = "host" if isinstance(error, socket.gaierror) else "port"
        what = f"{host}:{port} cannot be used: {error.strerror}"
        raise ConfigError(key, what, "give another port=…, or host=…") from None
    return own


def make_service(config: ServeConfig, keys: list[str], console: Console | None) -> Service:
    """The models of a config, loaded, and its limits.

    Raises:
        CheckpointError: There is no such model.
        ConfigError: An option does not go with a model.
    """
    models = load_models(
        [config.model] if isinstance(config.model, str) else config.model,
        replace(inference_options(config), language=config.language),
        long_form=long_form(config, config.max_batch_s, check_short=True),
        downmix=config.downmix,
        device=inference_device(config.accelerator),
        say=say_to(console),
    )
    for model in models:
        _say_if_never_batched(model, config)
    settings = Settings(
        max_requests=config.max_requests,
        max_upload_bytes=round(config.max_upload_mb * 1e6),
        min_upload_bytes_s=config.min_upload_kb_s * 1e3,
        max_audio_s=config.max_audio_s,
        readers=config.readers,
        max_batch_s=config.max_batch_s,
        style=config,
        keys=keys,
    )
    return Service(models, settings)


def _say_if_never_batched(model: ServedModel, config: ServeConfig) -> None:
    """Warn if the longest parts of recordings compute more than a batch may."""
    encoder = model.module.speech_encoder
    computed_s, budget_s = float(encoder.encoded_s(np.array([config.chunk_s]))[0]), encoder.budget_s(config.max_batch_s)
    if computed_s > budget_s:
        seen = f"{model.name} computes {computed_s:g} s for {config.chunk_s:g} s of audio"
        notify(f"max_batch_s: {seen}, more than its {budget_s:g} s. Such requests make batches of their own.")


def run_server(config: ServeConfig, console: Console | None) -> None:
    """Serve until a signal. Running requests are finished first.

    Raises:
        ConfigError: See `api_keys`, `bound_socket` and `make_service`.
        SystemExit: With the exit code of the signal.
    """
    keys = api_keys(config.api_key_env)
    with bound_socket(config.host, config.port) as own:
        service = make_service(config, keys, console)
        log = no_message if console is None else lambda line: console.print(escape(line), soft_wrap=True)
        app = make_app(service, log)
        server = Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=math.ceil(config.shutdown_s + _ANSWER_S),
            ),
            service,
            config.shutdown_s,
        )
        server.ready = _ready(config, service, own.getsockname()[1])
        server.say = log
        with current().deferred(interrupts=True):
            server.run(sockets=[own])
            if service.working:
                # A thread that returns from torch to a Python that has ended aborts the process.
                current().end()


def _ready(config: ServeConfig, service: Service, port: int) -> str:
    """What is said at the start: the address of the page, and a command that sends a recording."""
    host = _REACHED.get(config.host, config.host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    name = next(iter(service.models))
    keys = service.settings.keys
    value = f"${config.api_key_env}" if len(keys) == 1 else "KEY"
    key = f' -H "Authorization: Bearer {value}"' if keys else ""
    lines = [
        f"Serving {', '.join(service.models)} at {address}, with a page for browsers. Ctrl-C stops.",
        f"Try: curl {address}/v1/audio/transcriptions{key} -F {shlex.quote(f'model={name}')} -F file=@recording.wav",
    ]
    if not keys and config.host not in _LOCAL:
        lines.append("Everyone who reaches this address can use it: api_key_env=… asks for a key.")
    return "\n".join(lines)


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the command.

    Args:
        config: uvicorn's options. Its timeout is after ``shutdown_s``.
        service: What is served.
        shutdown_s: Seconds in which running requests are finished. The service is stopped then.

    Attributes:
        ready: Said when the server accepts requests.
        say: Prints a line.
    """

    ready = ""

    def __init__(self, config: uvicorn.Config, service: Service, shutdown_s: Seconds) -> None:
        super().__init__(config)
        self._service, self._shutdown_s = service, shutdown_s
        self.say = say_to(None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: `Interruption` notes signals, and `on_tick` looks at them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        self.say(self.ready)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop."""
        if current().signal is not None:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish running requests. The command is not ended meanwhile for doing nothing."""
        aside = [asyncio.create_task(_keep_moving(current())), asyncio.create_task(self._stop_in_time())]
        try:
            await super().shutdown(sockets)
        finally:
            for task in aside:
                task.cancel()
            await asyncio.gather(*aside, return_exceptions=True)

    async def _stop_in_time(self) -> None:
        await asyncio.sleep(self._shutdown_s)
        self._service.stop()


async def _keep_moving(interruption: Interruption) -> None:
    while True:
        interruption.moved()
        await asyncio.sleep(10 * _TICK_S)
