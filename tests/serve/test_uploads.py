"""Uploads that do not come, and requests that are refused before their body is read."""

import asyncio
import contextlib
import socket
import time
from types import SimpleNamespace

import httpx
import pytest

from ssl_asr.serve import guard
from ssl_asr.serve.replies import Refusal
from tests.serve.served import ADDRESS, post, served, serving, until


@contextlib.contextmanager
def sending(address):
    """A connection on which the start of a form of 1 MB was sent."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=0.05) as own:
        head = f"POST {ADDRESS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        start = '--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        own.sendall(f"{head}Content-Length: 1000000\r\n\r\n{start}".encode())
        yield own


def answer_of(own, piece=b"", seconds=10.0):
    """The answer on a connection, on which a piece is sent again and again meanwhile."""
    received, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            block = own.recv(1 << 16)
            if not block:
                return received.decode()
            received += block
        if piece and not received:
            own.sendall(piece)
    raise AssertionError(f"no answer: {received}")


@pytest.mark.parametrize(("piece", "said"), [(b"", "nothing was received for 0.5 s"), (b"-", "less than 16 kB/s")])
def test_a_client_that_does_not_send_gives_back_its_place(toy_ctc, files, monkeypatch, piece, said):
    monkeypatch.setattr(guard, "_IDLE_S", 0.5)
    with serving([served("toy", toy_ctc)], max_requests=1) as (address, service, lines):
        with sending(address) as own:
            until(lambda: service.in_progress == 1)
            answer = answer_of(own, piece)
            assert answer.startswith("HTTP/1.1 408")
            assert said in answer
            assert "connection: close" in answer
        until(lambda: service.in_progress == 0)
        [line] = lines
        assert line.startswith("408 ")
        assert post(SimpleNamespace(address=address), files[0]).status_code == 200


def test_the_rest_of_a_body_is_not_waited_for_after_a_timeout(monkeypatch):
    monkeypatch.setattr(guard, "_IDLE_S", 0.01)
    waited = []

    async def forever():
        waited.append(1)
        await asyncio.sleep(60)

    async def refused():
        body = guard._Body(forever, 10, 1.0, too_large=None, stopped=lambda: asyncio.sleep(60))
        with pytest.raises(Refusal, match="nothing was received"):
            await body()
        await body.drain()

    asyncio.run(refused())
    assert len(waited) == 1


def test_requests_that_are_refused_at_once_are_counted_and_logged(toy_ctc, files):
    with serving([served("toy", toy_ctc)], keys=["one"]) as (address, _, lines):
        assert httpx.post(f"{address}{ADDRESS}", files={"file": b"1"}).status_code == 401
        assert httpx.get(f"{address}/v1/some%0D%0Athing").status_code == 401
        key = {"authorization": "Bearer one"}
        assert httpx.post(f"{address}{ADDRESS}", files={"file": b"0" * 6_000_000}, headers=key).status_code == 413
        metrics = httpx.get(f"{address}/metrics", headers=key).text
    assert [line.rsplit(" ", 2)[0] for line in lines] == [f"401 {ADDRESS}", "401 other", f"413 {ADDRESS}"]
    for endpoint, status in ((ADDRESS, 401), ("other", 401), (ADDRESS, 413)):
        assert f'ssl_asr_requests_total{{endpoint="{endpoint}",status="{status}"}} 1.0' in metrics
