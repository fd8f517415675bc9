"""What comes before a request is read: API keys, the size of its body, and clients that stop sending."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from ssl_asr.inference.shared import Gone
from ssl_asr.serve.log import Entry
from ssl_asr.serve.replies import Refusal
from ssl_asr.serve.service import Settings
from ssl_asr.serve.waiting import unless
from ssl_asr.types import Seconds

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Stopped = Callable[[], Awaitable[Exception]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A client that sends nothing for so long while its body is read is refused. Its rate is not judged before.
_IDLE_S: Seconds = 30.0
# Addresses that need no key: the page, which asks for one, and the check of a load balancer.
_OPEN = ("/", "/health")
# Bytes of a form besides the file.
_FORM_BYTES = 1 << 20


class Guard:
    """ASGI middleware that checks keys and limits bodies.

    A refused body is still received, up to the limit: a connection that is closed while the client sends would lose
    the answer.

    Args:
        app: The application.
        settings: Keys and limits.
        stopped: Waits until the server stops.
        begin: Makes the entry of a refused request in the log, from its path.
    """

    def __init__(self, app: App, *, settings: Settings, stopped: Stopped, begin: Callable[[str], Entry]) -> None:
        self._app, self._keys = app, [key.encode() for key in settings.keys]
        self._settings, self._stopped, self._begin = settings, stopped, begin
        self._max_bytes = settings.max_upload_bytes + _FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._max_bytes, self._settings.min_upload_bytes_s, self.too_large, self._stopped)
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        refusal = self._refusal(str(scope["path"]), headers)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and body.given_up:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        if refusal is None:
            scope.setdefault("state", {})["drain"] = body.drain
            # uvicorn cancels a request only at the end of a shutdown, if the client does not read its answer.
            with suppress(asyncio.CancelledError):
                await self._app(scope, body, sent)
            return
        entry = self._begin(str(scope["path"]))
        await body.drain()
        await JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)(scope, body, sent)
        entry.end(refusal.status)

    def too_large(self) -> Refusal:
        """The refusal of a file that is too large."""
        limit = f"{self._settings.max_upload_bytes / 1e6:g} MB"
        message = f"file: is larger than {limit}, the limit of this server. Send a compressed format, or parts."
        return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, param="file", code="file_too_large")

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._keys and path not in _OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
            if scheme.lower() != b"bearer" or not any(matches):
                what = "is wrong" if given else "is missing"
                message = f"API key: {what}. Send the header Authorization: Bearer KEY."
                return Refusal(HTTPStatus.UNAUTHORIZED, message, code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        return self.too_large() if length.isdigit() and int(length) > self._max_bytes else None


class _Body:
    """Receives the body of a request, with limits on its size, its pace, and the time between two of its pieces.

    Args:
        receive: Receives the next piece.
        max_bytes: Largest body.
        min_bytes_s: Smallest rate, in bytes a second. Only time in which the server waits for the client counts.
        too_large: Makes the refusal of a larger body.
        stopped: Waits until the server stops.

    Attributes:
        given_up: Whether the rest is not received.
    """

    def __init__(
        self,
        receive: Receive,
        max_bytes: int,
        min_bytes_s: float,
        too_large: Callable[[], Refusal],
        stopped: Stopped,
    ) -> None:
        self._receive, self._max_bytes, self._min_bytes_s = receive, max_bytes, min_bytes_s
        self._too_large, self._stopped = too_large, stopped
        self._bytes, self._waited_s, self._ended = 0, 0.0, False
        self.given_up = False

    async def __call__(self) -> Message:
        if self._ended:
            # The next message says that the client has gone, whenever that is.
            return await self._receive()
        try:
            message = await self._next()
            self._bytes += len(message.get("body", b""))
            if self._bytes > self._max_bytes:
                raise self._too_large()
        except (Refusal, Gone):
            self.given_up = True
            raise
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        left_s = _IDLE_S + self._bytes / self._min_bytes_s - self._waited_s
        since = time.monotonic()
        try:
            message = await asyncio.wait_for(unless(self._receive(), self._stopped()), min(_IDLE_S, left_s))
        except TimeoutError:
            slow = f"it came at less than {self._min_bytes_s / 1e3:g} kB/s"
            what = slow if left_s < _IDLE_S else f"nothing was received for {_IDLE_S:g} s"
            text = f"body: {what}. Send the request again."
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, text, code="timeout") from None
        self._waited_s += time.monotonic() - since
        return message

    async def drain(self) -> None:
        """Receive the rest of the body, within the limits."""
        with suppress(Refusal, Gone):
            while not (self._ended or self.given_up):
                await self()
