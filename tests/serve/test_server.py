"""The command: its config, its socket, its key, and signals."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest
from rich.console import Console

from ssl_asr.config.interruption import Interruption
from ssl_asr.config.serving import ServeConfig
from ssl_asr.console import Notice
from ssl_asr.errors import ConfigError
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.serve import server
from ssl_asr.serve.forms import parse_form
from ssl_asr.serve.models import names_of
from ssl_asr.serve.server import api_keys, bound_socket
from ssl_asr.serve.service import Service, Settings
from tests.command_runner import REPO
from tests.serve.served import SETTINGS, served, until


def test_a_key_comes_from_the_environment(monkeypatch):
    assert api_keys(None) == []
    monkeypatch.setenv("MY_KEY", "one, two,")
    assert api_keys("MY_KEY") == ["one", "two"]
    monkeypatch.setenv("MY_KEY", " ")
    with pytest.raises(ConfigError, match="api_key_env: the environment variable MY_KEY is not set"):
        api_keys("MY_KEY")


def test_a_taken_port_and_a_strange_host_are_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: 127.0.0.1:{port} cannot be used: Address already in use"):
            bound_socket("127.0.0.1", port)
    with pytest.raises(ConfigError, match="host: no.such.host.invalid:1"):
        bound_socket("no.such.host.invalid", 1)


@pytest.mark.parametrize(
    ("package", "named"), [("fastapi", "fastapi"), ("uvicorn", "uvicorn"), ("multipart", "python-multipart")]
)
def test_missing_packages_name_the_extra(package, named, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    errors = [str(error) for error in ServeConfig(model="m").conflicts()]
    [error] = errors
    assert f"needs the package {named}" in error
    assert "pip install 'ssl_asr[serve]'" in error


def test_a_budget_below_a_part_is_said(toy_checkpoints):
    path = str(toy_checkpoints["whisper"])
    with pytest.warns(Notice, match=r"max_batch_s: whisper computes 30 s for 30 s of audio, more than its 12 s"):
        server.make_service(ServeConfig(model=path, max_batch_s=12.0, accelerator="cpu"), [], None)


def test_models_are_called_by_their_names(tmp_path):
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "b" / "run").mkdir(parents=True)
    one, two = str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")
    assert names_of([one, "openai/whisper-tiny.en"]) == ["run", "openai/whisper-tiny.en"]
    assert names_of([one, two]) == [one, two]


def test_a_whisper_checks_languages_tasks_and_prompts(toy_checkpoints):
    whisper = served("tiny", load_model(str(toy_checkpoints["whisper"]), InferenceOptions()))
    assert whisper.check(None, "transcribe", "before") is None
    assert whisper.check("english", "transcribe", None) == "english"
    assert whisper.language == "en"
    for values, said in (
        (("de", "transcribe", None), "language: language 'de' with an English-only checkpoint"),
        (("en", "translate", None), "model: tiny does not translate"),
        (("en", "transcribe", "word " * 300), "prompt: the prompt 'word word .* the limit is 223"),
    ):
        with pytest.raises(ConfigError, match=said):
            whisper.check(*values)


def test_a_form_has_defaults():
    form = parse_form({}, "transcribe")
    assert (form.response_format, form.stream, form.language, form.prompt) == ("json", False, None, None)
    assert not form.words
    form = parse_form({"timestamp_granularities[]": ["word", "word"], "response_format": ["verbose_json"]}, "translate")
    assert form.granularities == ("word",)
    assert form.words
    with pytest.raises(ConfigError, match="given 2 times"):
        parse_form({"language": ["en", "de"]}, "transcribe")


@pytest.mark.parametrize(
    ("host", "keys", "command"),
    [
        ("127.0.0.1", [], "curl http://127.0.0.1:9/v1/audio/transcriptions -F 'model=my model' -F file=@recording.wav"),
        ("0.0.0.0", ["one"], 'curl http://127.0.0.1:9/v1/audio/transcriptions -H "Authorization: Bearer $KEY" -F'),
        ("::1", ["one", "two"], 'curl http://[::1]:9/v1/audio/transcriptions -H "Authorization: Bearer KEY" -F'),
    ],
)
def test_the_start_says_how_to_send_a_recording(toy_ctc, host, keys, command):
    service = Service([served("my model", toy_ctc)], Settings(**{**SETTINGS, "keys": keys}))
    config = ServeConfig(model="toy", host=host, api_key_env="KEY" if keys else None)
    lines = server._ready(config, service, 9).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Serving my model at http://")
    assert lines[1].startswith(f"Try: {command}")
    open_to_all = server._ready(
        ServeConfig(model="toy", host="0.0.0.0"), Service(list(service.models.values()), Settings(**SETTINGS)), 9
    )
    assert "Everyone who reaches" in open_to_all


@pytest.fixture
def command(toy_ctc, monkeypatch):
    """The command with a model that transcribes nothing until `gate` is set. `start` runs it in a thread."""
    gate, began, interruption, plain = threading.Event(), threading.Event(), Interruption(), toy_ctc.transcribe
    printed = io.StringIO()

    def transcribe(*args, **options):
        began.set()
        assert gate.wait(60)
        return plain(*args, **options)

    def end():
        raise SystemExit("at once")

    monkeypatch.setattr(toy_ctc, "transcribe", transcribe)
    monkeypatch.setattr(interruption, "end", end)
    monkeypatch.setattr(server, "current", lambda: interruption)
    service = Service([served("toy", toy_ctc)], Settings(**SETTINGS))
    monkeypatch.setattr(server, "make_service", lambda *_: service)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(8) as pool:

        def start(**options):
            config, console = ServeConfig(model="toy", port=port, **options), Console(file=printed, width=200)
            done = pool.submit(_code_of, lambda: server.run_server(config, console))
            until(lambda: _answers(f"http://127.0.0.1:{port}"))
            return done

        yield SimpleNamespace(
            address=f"http://127.0.0.1:{port}",
            pool=pool,
            start=start,
            gate=gate,
            began=began,
            interruption=interruption,
            service=service,
            printed=printed,
        )
        gate.set()


@pytest.fixture
def upload(toy_corpus):
    return {"file": ("train0.wav", (toy_corpus["train"].parent / "train0.wav").read_bytes())}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_are_answered_after_a_signal(number, command, upload):
    """New connections are refused meanwhile, and the exit code is that of all commands."""
    done = command.start()
    address = f"{command.address}/v1/audio/transcriptions"
    answer = command.pool.submit(lambda: httpx.post(address, files=upload, timeout=60))
    assert command.began.wait(30)
    command.interruption.signal = number
    until(lambda: not _answers(command.address))
    assert not answer.done()
    command.gate.set()
    assert answer.result().status_code == 200
    assert done.result(30) == 128 + number
    assert not command.service.worker.is_alive()


def test_requests_that_are_not_finished_in_time_are_refused(command, upload, capfd):
    """The process does not wait for a batch that runs, whose clients have had their answers."""
    done = command.start(shutdown_s=0.5)
    address = f"{command.address}/v1/audio/transcriptions"
    stop = threading.Event()

    def slowly():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        while not stop.wait(0.1):
            yield b"0"

    multipart = {"content-type": "multipart/form-data; boundary=x"}
    sent = [
        command.pool.submit(httpx.post, address, **options, timeout=60)
        for options in ({"files": upload}, {"files": upload, "data": {"stream": "true"}})
    ]
    sent.append(command.pool.submit(httpx.post, address, content=slowly(), headers=multipart, timeout=60))
    assert command.began.wait(30)
    until(lambda: command.service.in_progress == 3)
    command.interruption.signal = signal.SIGTERM
    whole, events, slow = (one.result(30) for one in sent)
    stop.set()
    for answer in (whole, slow):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "stopping"
    assert events.status_code == 200
    assert "the server stops. Try again later." in events.text
    assert "error" in json.loads(events.text.split("data: ")[-1])
    assert done.result(30) == "at once", "the model still runs, and so torch"
    assert not command.gate.is_set()
    lines = command.printed.getvalue().splitlines()
    assert sum(line.startswith("503 /v1/audio/transcriptions") for line in lines) == 3
    assert not any("499" in line for line in lines)
    assert capfd.readouterr().err == ""


def _code_of(function):
    try:
        function()
    except SystemExit as end:
        return end.code
    return None


def _answers(address):
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        time.sleep(0.1)
        return False


@pytest.mark.slow
def test_the_command_serves_until_sigterm(toy_checkpoints, toy_corpus):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ssl_asr", "serve", f"model={toy_checkpoints['whisper']}", f"port={port}"]
    process = subprocess.Popen([*command, "vad=false"], cwd=REPO, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}"), 120)
        upload = {"file": ("train0.wav", (toy_corpus["train"].parent / "train0.wav").read_bytes())}
        address = f"http://127.0.0.1:{port}/v1/audio/transcriptions"
        assert httpx.post(address, files=upload, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    said = process.stderr.read().splitlines()
    assert said[0].startswith("Serving whisper at http://127.0.0.1:")
    assert said[1].endswith(" -F model=whisper -F file=@recording.wav")
    assert said[2].startswith("200 /v1/audio/transcriptions whisper,")
    assert said[-1] == "interrupted: the server has stopped."
