"""Small sources for ``ssl-asr prepare``: audio, texts, and the command run in this process."""

import json
from pathlib import Path

import numpy as np
import soundfile

from ssl_asr.commands.prepare import prepare
from ssl_asr.config.tools import PrepareConfig
from ssl_asr.data.manifest import read_manifest

RATE = 8000


def clip(path, seconds=0.5, *, rate=RATE, channels=1, seed=0, **options):
    """Write noise, in the format of the file's suffix. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = round(seconds * rate) if channels == 1 else (round(seconds * rate), channels)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(shape), rate, **options)
    return path


def text(path, content, encoding="utf-8"):
    """Write a text file, with its line ends as they are. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def lines(path):
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def run(source, output, **settings):
    """Prepare, and return rows by file name. ``skipped.jsonl`` is one of the files."""
    sources = source if isinstance(source, list) else [source]
    settings = {"verbose": False, "max_skip_fraction": 1.0, **settings}
    prepare(PrepareConfig(input=list(map(str, sources)), output_dir=str(output), **settings), Path())
    written = {path.stem: lines(path) for path in Path(output).glob("*.jsonl")}
    for name in written.keys() - {"skipped"}:
        read_manifest(Path(output) / f"{name}.jsonl")
    return written


def reasons(found):
    """Reason of each skip, by id."""
    return {skip["id"]: skip["reason"] for skip in found["skipped"]}
