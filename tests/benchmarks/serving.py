"""The server under load, and `transcribe` on the same clips in the same run.

python -m tests.benchmarks.serving [--clients 200] [--clips 200] [--rounds 2] [--minutes 0] model=… [key=value …]

Clients send clips of AN4 and LibriSpeech, each one after the other. Every answer is compared with the transcript of the
same clip by ``ssl-asr transcribe``, with the same keys. With ``--minutes``, the load goes on, and the memory of the
server is measured.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from tests.command_runner import REPO

DATA = Path(os.environ.get("SSL_ASR_DATA") or REPO.parent / "shared" / "data")
SETS = ("en_an4", "en_librispeech_mini")


def clips() -> list[tuple[Path, float]]:
    """Files of the test sets, with their lengths in seconds."""
    found = []
    for name in SETS:
        rows = map(json.loads, (DATA / name / "test.jsonl").read_text().splitlines())
        found += [(DATA / name / row["audio_filepath"], row["duration"]) for row in rows if "offset" not in row]
    return found


def transcribed(keys: list[str], files: list[Path], folder: Path) -> tuple[dict[str, str], float]:
    """Texts of ``ssl-asr transcribe`` by path, and its seconds without loading the model."""
    output = folder / "out.jsonl"
    command = [sys.executable, "-m", "ssl_asr", "transcribe", *keys, f"output={output}", "input=-"]
    done = subprocess.run(
        command, input="\n".join(map(str, files)), cwd=REPO, capture_output=True, text=True, check=True
    )
    rows = map(json.loads, output.read_text().splitlines())
    seconds = float(re.search(r"of audio in ([\d.]+) s", done.stderr)[1])
    return {row["audio_filepath"]: row["text"] for row in rows}, seconds


class Load:
    """Clients that send clips one after the other.

    Attributes:
        seconds: Time of each answer.
        wrong: Clips with another status than 200, or another text than expected.
        audio_s: Seconds of audio that were transcribed.
    """

    def __init__(self, address: str, expected: dict[str, str]) -> None:
        self.address, self.expected = address, expected
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.audio_s = 0.0

    async def run(self, clips: list[tuple[Path, float]], clients: int) -> None:
        """Send every clip once, or more often if there are more clients than clips."""
        left = iter(clips * -(-clients // len(clips)))
        contents = {path: path.read_bytes() for path, _ in clips}
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=900, limits=limits) as client:

            async def work() -> None:
                for path, duration in left:
                    began = time.monotonic()
                    upload = {"file": (path.name, contents[path])}
                    answer = await client.post(f"{self.address}/v1/audio/transcriptions", files=upload)
                    self.seconds.append(time.monotonic() - began)
                    self.audio_s += duration
                    if answer.status_code != 200 or answer.json()["text"] != self.expected[str(path)]:
                        self.wrong.append(f"{path.name}: {answer.status_code} {answer.text[:80]}")

            await asyncio.gather(*(work() for _ in range(clients)))


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1000


def main() -> None:
    """Print the figures as JSON, one line for each round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--clips", type=int, default=10_000, help="take only the shortest clips")
    parser.add_argument("keys", nargs="+", help="keys of ssl-asr, such as model=openai/whisper-tiny.en window=real")
    given = parser.parse_args()
    chosen = sorted(clips(), key=lambda clip: clip[1])[: given.clips]
    # Clips of both sets and of all lengths follow each other.
    chosen = [chosen[number] for number in np.random.default_rng(0).permutation(len(chosen))]
    total = sum(duration for _, duration in chosen)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        expected, alone_s = transcribed(given.keys, [path for path, _ in chosen], Path(folder))
    print(json.dumps({"clips": len(chosen), "audio_s": total, "transcribe_rtfx": total / alone_s}), flush=True)
    command = [sys.executable, "-m", "ssl_asr", "serve", *given.keys, f"port={port}", "verbose=false"]
    server = subprocess.Popen(command, cwd=REPO)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{address}/health")
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        end, number = time.monotonic() + 60 * given.minutes, 0
        while number < given.rounds or time.monotonic() < end:
            number += 1
            load, began = Load(address, expected), time.monotonic()
            asyncio.run(load.run(chosen, given.clients))
            wall_s = time.monotonic() - began
            p50, p95 = np.percentile(load.seconds, [50, 95])
            figures = {"round": number, "clients": given.clients, "answers": len(load.seconds), "wrong": load.wrong}
            figures |= {"rtfx": load.audio_s / wall_s, "of_transcribe": load.audio_s / wall_s / (total / alone_s)}
            figures |= {"p50_s": float(p50), "p95_s": float(p95), "memory_mb": memory_mb(server.pid)}
            print(json.dumps(figures), flush=True)
    finally:
        server.terminate()
        print(json.dumps({"exit_code": server.wait(60)}), flush=True)


if __name__ == "__main__":
    main()
