"""The addresses of the server."""

import errno
import logging
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ssl_asr.errors import AudioError, UserError
from ssl_asr.inference.shared import Gone
from ssl_asr.serve.forms import FORMATS, GRANULARITIES, INCLUDE, TranscriptionForm, parse_form
from ssl_asr.serve.guard import Guard, Receive, Scope, Send
from ssl_asr.serve.jobs import Job, Message, Opened, Order, Segments, TooLong, Transcript
from ssl_asr.serve.log import Entry, Log
from ssl_asr.serve.models import Task
from ssl_asr.serve.replies import Refusal, done_event, event, json_reply, segment_events, segments_of_row, text_reply
from ssl_asr.serve.service import Service
from ssl_asr.serve.waiting import unless

# nginx's status for a client that closed the connection. Nobody receives it; it is counted.
_CLIENT_GONE = 499
_PAGE_HEADERS = {
    # The page is one file. A browser loads nothing else for it.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def make_app(service: Service, log: Log) -> FastAPI:
    """The application. Its lifespan starts and stops the models' thread.

    Args:
        service: Models and limits.
        log: Called with one line for each transcription request, and for each refused request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # Its warnings about a wrong form are in the answer.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    app = FastAPI(title="ssl-asr", docs_url=None, redoc_url=None, lifespan=lifespan)
    routes = Routes(service, log)
    described = {"requestBody": {"content": {"multipart/form-data": {"schema": _form_schema()}}}}
    addresses: dict[str, Task] = {"transcriptions": "transcribe", "translations": "translate"}
    for address, task in addresses.items():
        app.add_api_route(
            f"/v1/audio/{address}",
            partial(routes.transcription, task=task),
            methods=["POST"],
            response_model=None,
            openapi_extra=described,
            name=address,
        )
    app.add_api_route("/v1/models", routes.list_models, response_model=None)
    app.add_api_route("/v1/models/{name:path}", routes.one_model, response_model=None)
    app.add_api_route("/health", routes.health, response_model=None)
    app.add_api_route("/metrics", routes.metrics, response_model=None)
    app.add_api_route("/", routes.page, response_class=HTMLResponse, include_in_schema=False)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_refused)
    known = {getattr(route, "path", "") for route in app.routes}
    app.add_middleware(
        Guard,
        settings=service.settings,
        stopped=service.stopped,
        begin=lambda path: Entry(service.figures, log, path if path in known else "other"),
    )
    return app


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _http_refused(request: Request, error: Exception) -> JSONResponse:
    """Errors of the router, in the shape of all others."""
    assert isinstance(error, HTTPException)
    return await _refused(request, _of_http(error, f"{request.method} {request.url.path}"))


def _of_http(error: HTTPException, where: str) -> Refusal:
    return Refusal(error.status_code, f"{where}: {error.detail.rstrip('.')}.")


class Routes:
    """What each address answers."""

    def __init__(self, service: Service, log: Log) -> None:
        self._service, self._log = service, log

    # Transcription -------------------------------------------------------------------------------------------------

    async def transcription(self, request: Request, *, task: Task) -> Response:
        """Transcribe an uploaded recording."""
        one = Entry(self._service.figures, self._log, request.url.path)
        try:
            self._service.enter()
        except Refusal as error:
            await request.state.drain()
            one.end(error.status)
            raise
        try:
            response = await self._answer(request, task, one)
        except BaseException as error:
            self._service.leave()
            refusal = _refusal_of(error)
            one.end(_CLIENT_GONE if refusal is None else refusal.status)
            if refusal is None:
                raise
            await request.state.drain()
            return await _refused(request, refusal)
        if isinstance(response, _EventResponse):
            return response  # keeps its place until it ends
        self._service.leave()
        one.end(response.status_code)
        return response

    async def _answer(self, request: Request, task: Task, one: Entry) -> Response:
        order, form = await self._order(request, task)
        one.model = order.served.name
        job = await self._unless_over(request, self._service.start(order))
        try:
            opened = await self._unless_over(request, job.message())
            assert isinstance(opened, Opened)
            one.audio_s = opened.duration
            if form.stream:
                return _EventResponse(_Events(self._service, job, order, form, one))
            found = await self._unless_over(request, job.transcript())
        except BaseException:
            job.cancel()
            raise
        assert isinstance(found, Transcript)
        self._service.figures.transcribed(order.served.name, found.row.duration)
        one.warn(found.notices)
        style = self._service.settings.style
        if form.response_format in ("json", "verbose_json"):
            return JSONResponse(json_reply(found, form, order.served, style))
        return PlainTextResponse(text_reply(found.row, form.response_format, style))

    async def _order(self, request: Request, task: Task) -> tuple[Order, TranscriptionForm]:
        """The job of a request, and its form."""
        async with request.form(max_files=1, max_fields=64) as fields:
            texts: dict[str, list[str]] = {}
            file = None
            for name, value in fields.multi_items():
                if isinstance(value, str):
                    texts.setdefault(name, []).append(value)
                elif name == "file":
                    file = value
                else:
                    raise Refusal(HTTPStatus.BAD_REQUEST, f"{name}: is a file. Send it as file.", param=name)
            form = parse_form(texts, task)
            served = self._service.model(form.model)
            language = served.check(form.language, task, form.prompt)
            if "word" in form.granularities and served.measure is None:
                message = f"timestamp_granularities[]: {served.name} does not time words. Use segment."
                raise Refusal(HTTPStatus.BAD_REQUEST, message, param="timestamp_granularities[]")
            if file is None:
                message = "file: is missing. Send a recording as multipart/form-data, in the field file."
                raise Refusal(HTTPStatus.BAD_REQUEST, message, param="file")
            if not file.size:
                raise Refusal(HTTPStatus.BAD_REQUEST, "file: is empty. Send a recording.", param="file")
            path, shown = await self._service.save(file.file, file.filename or "")
        order = Order(
            served=served,
            path=path,
            name=shown,
            language=language,
            task=task,
            prompt=form.prompt,
            words=form.words,
            streamed=form.stream,
        )
        return order, form

    async def _unless_over(self, request: Request, work: Awaitable[Any]) -> Any:
        """The result of an awaitable, unless the client goes away or the server stops before."""
        return await unless(work, _client_gone(request), self._service.stopped())

    # Other addresses -----------------------------------------------------------------------------------------------

    async def list_models(self) -> dict[str, Any]:
        """The models, as OpenAI lists them, with what each can do."""
        return {"object": "list", "data": [self._model(name) for name in self._service.models]}

    async def one_model(self, name: str) -> dict[str, Any]:
        """One model."""
        return self._model(self._service.model(name).name)

    def _model(self, name: str) -> dict[str, Any]:
        served = self._service.models[name]
        can = {"translates": served.translates, "word_times": served.measure is not None}
        return {"id": name, "object": "model", "created": self._service.started_s, "owned_by": "ssl-asr", **can}

    async def health(self) -> Response:
        """Whether the models' thread runs, and how many requests there are."""
        alive = self._service.worker.is_alive()
        requests = self._service.in_progress
        body = {"status": "ok" if alive else "failed", "models": list(self._service.models), "requests": requests}
        return JSONResponse(body, HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(self._service.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> HTMLResponse:
        """The page."""
        return HTMLResponse(_page(), headers=_PAGE_HEADERS)


@cache
def _page() -> str:
    return (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


class _Events:
    """The server-sent events of a request: its segments as they are done, and the whole transcript."""

    def __init__(self, service: Service, job: Job, order: Order, form: TranscriptionForm, one: Entry) -> None:
        self._service, self._job, self._order, self._form, self._one = service, job, order, form, one
        self._status = _CLIENT_GONE

    def end(self) -> None:
        """Give back the place of the request. A client that goes away early has never iterated over the events."""
        self._job.cancel()
        self._service.leave()
        self._one.end(self._status)

    async def _message(self) -> Message:
        return await unless(self._job.message(), self._service.stopped())

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            count = 0
            while not isinstance(found := await self._message(), Transcript):
                for segment in found.segments if isinstance(found, Segments) else ():
                    yield segment_events(count, segment, self._form)
                    count += 1
            self._service.figures.transcribed(self._order.served.name, found.row.duration)
            self._one.warn(found.notices)
            for number, segment in enumerate(segments_of_row(found.row) if count == 0 else ()):
                yield segment_events(number, segment, self._form)
            yield done_event(json_reply(found, self._form, self._order.served, self._service.settings.style))
            yield "data: [DONE]\n\n"
            self._status = HTTPStatus.OK
        except Exception as error:
            refusal = _refusal_of(error)
            if refusal is not None:
                self._status = refusal.status
                yield event(refusal.body())


class _EventResponse(StreamingResponse):
    """A stream of events that is ended in every case."""

    def __init__(self, events: _Events) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.end()


class _ClientGone(Exception):
    """The client has closed the connection."""


async def _client_gone(request: Request) -> Exception:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return _ClientGone()


def _refusal_of(error: BaseException) -> Refusal | None:
    """What the client is told of an error; None if it has gone. An error of the server is printed."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TooLong):
        return Refusal.of(error, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "audio_too_long", param="file")
    if isinstance(error, AudioError):
        return Refusal.of(error, code=error.reason, param="file")
    if isinstance(error, UserError):
        return Refusal.of(error)
    if isinstance(error, HTTPException):
        return _of_http(error, "body")
    if isinstance(error, _ClientGone | ClientDisconnect):
        return Refusal(_CLIENT_GONE, "the client has closed the connection.")
    if isinstance(error, Gone):
        return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server stops. Try again later.", code="stopping")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(f"error: an upload cannot be written to {gettempdir()}: {error.strerror}.", file=sys.stderr)
        message = "the disk of the server for uploads is full. Try again later."
        return Refusal(HTTPStatus.INSUFFICIENT_STORAGE, message, code="disk_full")
    if not isinstance(error, Exception):
        return None
    traceback.print_exception(error, file=sys.stderr)
    message = "the transcription failed by an error of the server, which its log shows."
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message, code="internal_error")


def _form_schema() -> dict[str, Any]:
    """The form of a transcription request, for the OpenAPI description."""
    text = {"type": "string"}
    properties: dict[str, Any] = dict.fromkeys(("model", "language", "prompt"), text)
    properties |= {"file": {"type": "string", "format": "binary"}, "stream": {"type": "boolean"}}
    properties["response_format"] = {"type": "string", "enum": list(FORMATS)}
    properties["temperature"] = {"type": "number", "enum": [0]}
    properties["timestamp_granularities[]"] = {"type": "array", "items": {"enum": list(GRANULARITIES)}}
    properties["include[]"] = {"type": "array", "items": {"enum": list(INCLUDE)}}
    return {"type": "object", "required": ["file"], "properties": properties}
