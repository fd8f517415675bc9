"""The server on a toy model: OpenAI's client, equality with `transcribe`, limits, and clients that go away."""

import errno
import json
import re
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
import soundfile

from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.serve import worker
from ssl_asr.types import Utterance
from tests.serve.served import ADDRESS, error_of, post, served, serving, until

# A header without samples.
EMPTY_WAV = bytes.fromhex("524946462400000057415645666d74201000000001000100803e0000007d00000200100064617461") + bytes(4)


@pytest.fixture(scope="module")
def module(toy_ctc):
    return toy_ctc


@pytest.fixture(scope="module")
def expected(module, files):
    """Hypotheses of `ssl_asr.load(…).transcribe`, one recording at a time, with words."""
    import torch

    from ssl_asr.inference.transcriber import Transcriber
    from ssl_asr.training.module import TranscribeOptions

    model = Transcriber(module, device=torch.device("cpu"), options=TranscribeOptions(confidence="max_prob"))
    return {file.name: model.transcribe(file, vad=False)[0] for file in files}


@pytest.fixture(scope="module")
def server(module):
    with serving([served("toy", module), served("other", module)]) as (address, service, lines):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        yield SimpleNamespace(address=address, service=service, lines=lines, client=client)


# Answers -------------------------------------------------------------------------------------------------------------


def test_texts_are_those_of_transcribe_one_by_one_and_all_at_once(server, files, expected):
    assert len({one.text for one in expected.values()}) > 5
    first = server.client.audio.transcriptions.create(model="toy", file=files[0])
    assert first.text == expected[files[0].name].text

    def text(number):
        with files[number % len(files)].open("rb") as file:
            return server.client.audio.transcriptions.create(model="toy", file=file).text

    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(text, range(50)))
    assert texts == [expected[files[number % len(files)].name].text for number in range(50)]
    metrics = httpx.get(f"{server.address}/metrics").text
    batches = float(re.search(r"^ssl_asr_batch_rows_count (\S+)", metrics, re.M)[1])
    rows = float(re.search(r"^ssl_asr_batch_rows_sum (\S+)", metrics, re.M)[1])
    assert rows >= 51
    assert batches < rows, "requests of several clients are in one batch"
    assert 'ssl_asr_audio_seconds_total{model="toy"}' in metrics
    until(lambda: server.service.in_progress == 0)


@pytest.mark.parametrize("kind", ["srt", "vtt", "text"])
def test_formats_are_those_of_transcribe(server, files, expected, kind):
    given = server.client.audio.transcriptions.create(model="toy", file=files[1], response_format=kind)
    hypothesis = expected[files[1].name]
    row = Prediction.of(Utterance(hypothesis.id, "a.wav", soundfile.info(files[1]).duration), hypothesis)
    assert given == (f"{hypothesis.text}\n" if kind == "text" else render([row], kind))


def test_verbose_json_has_words_and_segments_where_they_are_asked_for(server, files, expected):
    create = server.client.audio.transcriptions.create
    hypothesis = expected[files[2].name]
    plain = create(model="toy", file=files[2], response_format="verbose_json")
    assert plain.words is None
    assert plain.text == hypothesis.text
    assert plain.segments
    assert " ".join(one.text for one in plain.segments) == hypothesis.text
    assert plain.duration == pytest.approx(soundfile.info(files[2]).duration, abs=1e-3)
    assert all(one.end > one.start for one in plain.segments)
    both = create(
        model="toy",
        file=files[2],
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
        temperature=0,
    )
    assert both.language == "en"
    assert [one.word for one in both.words] == [one.text for one in hypothesis.words]
    assert [one.start for one in both.words] == pytest.approx([one.start for one in hypothesis.words], abs=1e-3)
    assert [one.probability for one in both.words] == pytest.approx(
        [one.confidence for one in hypothesis.words], abs=1e-3
    )
    only = create(model="toy", file=files[2], response_format="verbose_json", timestamp_granularities=["word"])
    assert only.segments is None
    assert len(only.words) == len(both.words)


def test_a_json_answer_can_have_subtitles(server, files, expected):
    found = post(server, files[1], include__="srt").json()
    assert found["srt"] == server.client.audio.transcriptions.create(model="toy", file=files[1], response_format="srt")
    assert found["text"] == expected[files[1].name].text


def test_events_have_the_text_in_pieces_and_whole(server, files, expected):
    stream = server.client.audio.transcriptions.create(model="toy", file=files[3], stream=True)
    events = list(stream)
    assert {one.type for one in events[:-1]} == {"transcript.text.delta", "transcript.text.segment"}
    assert events[-1].type == "transcript.text.done"
    text = expected[files[3].name].text
    assert events[-1].text == text
    assert "".join(one.delta for one in events if one.type == "transcript.text.delta") == text
    with pytest.raises(openai.BadRequestError, match="not an audio file"):
        server.client.audio.transcriptions.create(model="toy", file=b"no audio", stream=True)


def test_models_are_listed(server):
    assert [one.id for one in server.client.models.list()] == ["toy", "other"]
    assert server.client.models.retrieve("other").id == "other"
    health = httpx.get(f"{server.address}/health").json()
    assert health["status"] == "ok"
    page = httpx.get(server.address)
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.text), "the page loads nothing from elsewhere"
    described = httpx.get(f"{server.address}/openapi.json").json()
    assert {ADDRESS, "/v1/audio/translations"} <= described["paths"].keys()


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "toi"}, "Did you mean 'toy'"),
        ({"response_format": "xml"}, "response_format: 'xml' is not a value"),
        ({"temperature": "0.7"}, "temperature: is 0.7"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "warm"}, "expected a number"),
        ({"language": "no such one"}, "not a known language"),
        ({"prompt": "before"}, "prompt: toy takes no prompt"),
        ({"stream": "perhaps"}, "expected true or false"),
        ({"stream": "true", "response_format": "srt"}, "stream: is true"),
        ({"timestamp_granularities__": "word"}, "goes with response_format=verbose_json"),
        ({"include__": "logprobs"}, "include[]: 'logprobs'"),
        ({"temprature": "0"}, "did you mean 'temperature'"),
        ({"chunking_strategy": "none"}, "chunking_strategy"),
    ],
)
def test_wrong_fields_are_refused(server, files, fields, said):
    assert said.lower() in error_of(post(server, files[0], **fields), 404 if "model" in fields else 400).lower()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not audio at all" * 99, "a.wav: not an audio file"),
        (b"", "file: is empty"),
        (EMPTY_WAV, "a.wav: no samples. Get the file again, or leave it out."),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "a.wav:"),
    ],
)
def test_wrong_audio_is_refused_with_the_reason(server, content, said):
    assert said in error_of(post(server, content), 400)


def test_a_form_without_a_file_is_refused(server):
    assert "file: is missing" in error_of(httpx.post(f"{server.address}{ADDRESS}", json={"file": 1}), 400)
    assert "GET" in error_of(httpx.get(f"{server.address}{ADDRESS}"), 405)
    error_of(httpx.get(f"{server.address}/v1/none"), 404)
    answer = httpx.post(f"{server.address}/v1/audio/translations", files={"file": ("a.wav", b"1")})
    assert "toy does not translate" in error_of(answer, 400)


def wav(folder, seconds, name="long.wav"):
    path = folder / name
    soundfile.write(path, 0.1 * np.sin(np.arange(int(seconds * 8000)) * 0.3), 8000)
    return path


def test_a_form_that_is_no_form_is_refused(server, caplog):
    """In sentences with one full stop, and without a line of the library that reads forms."""
    twice = [("file", ("a.wav", b"1")), ("file", ("b.wav", b"1"))]
    address = f"{server.address}{ADDRESS}"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for options, said in (
        ({"files": twice}, "Too many files. Maximum number of files is 1."),
        ({"content": b"no form", "headers": {"content-type": "multipart/form-data"}}, "Missing boundary"),
        ({"content": b"no form", "headers": headers}, "Invalid multipart data"),
        ({"files": {"file": b"1"}, "data": {"model": "toi"}}, "model: no model 'toi'. Did you mean 'toy'?"),
    ):
        answer = httpx.post(address, **options)
        message = error_of(answer, answer.status_code)
        assert answer.status_code in (400, 404)
        assert said in message
        assert not message.endswith(("..", "?."))
    assert not [record for record in caplog.records if "multipart" in record.name]


def test_recordings_and_files_above_the_limits_are_refused(server, tmp_path):
    answer = post(server, wav(tmp_path, 61))
    assert answer.json()["error"]["param"] == "file"
    assert "has 61.0 s, and this server takes 60 s at most" in error_of(answer, 413)
    assert "4 MB, the limit" in error_of(post(server, b"0" * 6_000_000), 413)

    # Without a length in advance, the body is counted.
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server.address}{ADDRESS}", content=iter([start, *[b"0" * 1_000_000] * 6]), headers=headers)
    assert "4 MB, the limit" in error_of(answer, 413)
    assert "takes 0." in error_of(post(server, wav(tmp_path, 0.001)), 400)


def test_keys_are_checked(module, files):
    with serving([served("toy", module)], keys=["one", "two"]) as (address, _, _lines):
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Basic one"}):
            answer = httpx.get(f"{address}/v1/models", headers=headers)
            assert "API key" in error_of(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.get(address).status_code == 200
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="two", max_retries=0)
        assert client.audio.transcriptions.create(model="toy", file=files[0]).text
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="three").audio.transcriptions.create(
                model="toy", file=files[0]
            )


# A model that waits --------------------------------------------------------------------------------------------------


@pytest.fixture
def held(module, monkeypatch):
    """The module, which transcribes nothing until `gate` is set, and counts the utterances of its batches."""
    gate, batches, plain = threading.Event(), [], module.transcribe

    def transcribe(batch, *args, **options):
        batches.append(batch.ids)
        assert gate.wait(30)
        return plain(batch, *args, **options)

    monkeypatch.setattr(module, "transcribe", transcribe)
    return SimpleNamespace(module=module, gate=gate, batches=batches)


def test_more_requests_than_places_are_told_to_come_back(held, files):
    with serving([served("toy", held.module)], max_requests=3) as (address, service, lines):
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(post, SimpleNamespace(address=address), files[0]) for _ in range(3)]
            until(lambda: service.in_progress == 3)
            answer = post(SimpleNamespace(address=address), files[1])
            assert "all 3 places are taken" in error_of(answer, 429)
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
            held.gate.set()
            assert {answer.result().status_code for answer in answers} == {200}
        assert post(SimpleNamespace(address=address), files[1]).status_code == 200
        assert sum(line.startswith("429") for line in lines) == 1


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_goes_away_frees_its_place(held, files, stream):
    with serving([served("toy", held.module)], max_requests=2) as (address, service, lines):
        here = SimpleNamespace(address=address)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, here, files[0])
            until(lambda: held.batches)
            # The batch of the first client runs. The second client waits for the model, and goes.
            gone = {"file": ("gone.wav", files[1].read_bytes())}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}{ADDRESS}", files=gone, data={"stream": stream}, timeout=0.5)
            until(lambda: service.in_progress == 1)
            until(lambda: service.worker.waiting == 0)
            held.gate.set()
            assert first.result().status_code == 200
        assert not any("gone.wav" in ids for ids in held.batches), "it is not transcribed"
        until(lambda: any(line.startswith("499") for line in lines))
        until(lambda: not list(service._folder.iterdir()))


def test_a_row_that_fails_does_not_fail_the_rest_of_its_batch(module, files, expected, monkeypatch, capfd):
    plain, release = module.transcribe, threading.Event()

    def transcribe(batch, *args, **options):
        release.wait(5)
        if "bad.wav" in batch.ids:
            raise RuntimeError("a defect")
        return plain(batch, *args, **options)

    monkeypatch.setattr(module, "transcribe", transcribe)
    with serving([served("toy", module)]) as (address, service, _), ThreadPoolExecutor(8) as pool:

        def send(name):
            with files[0].open("rb") as file:
                return httpx.post(f"{address}{ADDRESS}", files={"file": (name, file)}, timeout=60)

        answers = [pool.submit(send, name) for name in ("a.wav", "bad.wav", *["c.wav"] * 4)]
        until(lambda: service.worker.waiting >= 4)
        release.set()
        codes = [answer.result().status_code for answer in answers]
        assert codes == [200, 500, 200, 200, 200, 200]
        assert {a.result().json()["text"] for a in answers if a.result().status_code == 200} == {
            expected[files[0].name].text
        }
        assert "an error of the server" in error_of(answers[1].result(), 500)
    assert "a defect" in capfd.readouterr().err


# Long recordings -----------------------------------------------------------------------------------------------------


def test_a_long_recording_has_the_text_of_transcribe(module, tmp_path):
    import torch

    from ssl_asr.inference.transcriber import Transcriber

    rng = np.random.default_rng(0)
    path = tmp_path / "talk.wav"
    soundfile.write(path, 0.1 * rng.standard_normal(16000 * 4), 16000)
    [whole] = Transcriber(module, device=torch.device("cpu")).transcribe(path, vad=False, chunk_s=2.0, stride_s=0.5)
    form = LongForm(chunk_s=2.0, stride_s=0.5, vad=False)
    with serving([served("toy", module, form)]) as (address, _, _lines):
        assert post(SimpleNamespace(address=address), path).json()["text"] == whole.text


def test_names_in_messages_are_those_of_the_client(server):
    with httpx.Client() as client:
        answer = client.post(f"{server.address}{ADDRESS}", files={"file": ("../../etc/pass\u2028wd.mp3", b"zzz" * 9)})
    assert error_of(answer, 400).startswith("../../etc/pass wd.mp3: not an audio file")
    assert answer.json()["error"]["param"] == "file"
    with httpx.Client() as client:
        answer = client.post(f"{server.address}{ADDRESS}", files={"file": ("[bold]x[/].wav", b"zzz" * 9)})
    assert error_of(answer, 400).startswith("[bold]x[/].wav: not an audio file")


@pytest.mark.parametrize("seconds", [1.0, 4.0])
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_file_that_is_cut_off_is_said(module, tmp_path, seconds, stream):
    """In one pass, and in windows."""
    path = wav(tmp_path, 2 * seconds)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    form = LongForm(chunk_s=2.0, stride_s=0.5, vad=False)
    with serving([served("toy", module, form)]) as (address, _, lines):
        answer = post(SimpleNamespace(address=address), path, stream=stream)
        until(lambda: len(lines) == 2)
    assert answer.status_code == 200
    reply = answer.json() if stream == "false" else json.loads(answer.text.split("data: ")[-2])
    assert [one["code"] for one in reply["warnings"]] == ["cut_off"]
    assert reply["warnings"][0]["message"].startswith("the file ends before its header says")
    assert lines[0].startswith("warning: cut_off: a.wav")
    assert lines[1].startswith("200")


def test_samples_without_a_finding_have_no_warning(server, files):
    assert "warnings" not in post(server, files[0]).json()


def test_a_full_disk_is_named(module, files, monkeypatch, capfd):
    def copy(source, target, size):
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving([served("toy", module)]) as (address, service, lines):
        monkeypatch.setattr(shutil, "copyfileobj", copy)
        answer = post(SimpleNamespace(address=address), files[0])
        assert "the disk of the server for uploads is full" in error_of(answer, 507)
        assert answer.json()["error"]["code"] == "disk_full"
        assert not list(service._folder.iterdir())
        [line] = lines
        assert line.startswith("507")
    [said] = capfd.readouterr().err.splitlines()
    assert said.startswith(f"error: an upload cannot be written to {tempfile.gettempdir()}: No space left")


def test_freed_memory_is_returned_at_intervals(module, files, expected, monkeypatch):
    returned = []
    monkeypatch.setattr(worker, "return_freed_memory", lambda: returned.append(True))
    for every_s, times in ((1e6, 0), (0.0, 3)):
        monkeypatch.setattr(worker, "_TRIM_EVERY_S", every_s)
        with serving([served("toy", module)]) as (address, _, _):
            here = SimpleNamespace(address=address)
            texts = [post(here, files[0]).json()["text"] for _ in range(3)]
        assert len(returned) == times
        assert set(texts) == {expected[files[0].name].text}
