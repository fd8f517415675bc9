"""Corpora in files and in shards, and a server for them."""

import json
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import soundfile

from tests.audio_files import encode
from tests.data.sources import run


def corpus(folder):
    """Audio of several formats, rates and channels, whole files and parts. Returns the path of its manifest."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (20_000, 2)).astype(np.float32)
    soundfile.write(folder / "a.wav", noise[:, 0], 16_000)
    soundfile.write(folder / "b.flac", noise[:15_000], 8_000, subtype="PCM_24")
    soundfile.write(folder / "c.wav", noise[:9_000, 0], 16_000, subtype="FLOAT")
    soundfile.write(folder / "d.ogg", noise[:12_000, 0], 16_000)
    encode(folder / "e.m4a", noise[:, 0], 44_100, codec="aac")
    rows = [{"audio_filepath": name, "id": f"whole/{name}"} for name in ("a.wav", "b.flac", "c.wav", "d.ogg", "e.m4a")]
    rows += [
        {"audio_filepath": "a.wav", "offset": 0.3, "duration": 0.41, "id": "part a"},
        {"audio_filepath": "b.flac", "offset": 0.5, "duration": 0.5, "channel": 1, "id": "größe"},
        {"audio_filepath": "c.wav", "offset": 0.1, "duration": 0.25, "id": "../c"},
        {"audio_filepath": "e.m4a", "offset": 0.1, "duration": 0.2, "id": "e.part", "lang": "de", "corpus": "x"},
    ]
    texts = ["ab", "a b", "ba", "b", "a"]
    lines = [json.dumps(row | {"text": texts[i % 5], "speaker": f"s{i % 3}"}) for i, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "train.jsonl"


def sharded(manifest, output, **settings):
    """Write a manifest's audio to shards of two utterances. Returns the path of the manifest of the shards."""
    run(manifest, output, format="shar", **{"shard_size": 2, **settings})
    return output / manifest.name


class _Handler(SimpleHTTPRequestHandler):
    """Sends parts of files, and counts requests."""

    def send_head(self):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.translate_path(self.path)
        span = self.headers.get("Range") if self.server.sends_parts else None
        if span is None or self.command != "GET" or not Path(path).is_file():
            return super().send_head()
        with open(path, "rb") as file:
            data = file.read()
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *_):
        pass


@contextmanager
def served(folder, *, sends_parts=True):
    """A server of a folder. Yields its address and the list of requests that it gets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Handler(*args, directory=str(folder)))
    server.requests, server.sends_parts = [], sends_parts
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        server.server_close()
