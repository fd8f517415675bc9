"""What comes before a request is read: API keys, the size of its body, and clients that stop sending."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from ssl_asr.serve.replies import Refusal
from ssl_asr.types import Seconds

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A client that sends nothing for so long while its body is read is refused.
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
        keys: Accepted API keys. Empty accepts every request.
        max_upload_bytes: Largest file.
    """

    def __init__(self, app: App, *, keys: Iterable[str], max_upload_bytes: int) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]
        self._max_upload_bytes = max_upload_bytes
        self._max_bytes = max_upload_bytes + _FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._max_bytes, self.too_large)
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        refusal = self._refusal(str(scope["path"]), headers)
        if refusal is None:
            scope.setdefault("state", {})["drain"] = body.drain
            await self._app(scope, body, send)
            return
        await body.drain()
        await JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)(scope, body, send)

    def too_large(self) -> Refusal:
        """The refusal of a file that is too large."""
        limit = f"{self._max_upload_bytes / 1e6:g} MB"
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
    """Receives the body of a request, with limits on its size and on the time between two of its pieces."""

    def __init__(self, receive: Receive, max_bytes: int, too_large: Callable[[], Refusal]) -> None:
        self._receive, self._max_bytes, self._too_large = receive, max_bytes, too_large
        self._bytes, self._ended = 0, False

    async def __call__(self) -> Message:
        if self._ended:
            # The next message says that the client has gone, whenever that is.
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), _IDLE_S)
        except TimeoutError:
            what = f"body: nothing was received for {_IDLE_S:g} s. Send the request again."
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, what, code="timeout") from None
        self._bytes += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        if self._bytes > self._max_bytes:
            raise self._too_large()
        return message

    async def drain(self) -> None:
        """Receive the rest of the body, up to the limit."""
        try:
            while not self._ended:
                await self()
        except Refusal:
            pass
