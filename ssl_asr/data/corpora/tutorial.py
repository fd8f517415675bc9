"""The corpus of the notebooks: CMU AN4, 50 minutes of spelling, numbers and commands."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_asr.data.corpora.spoken import CorpusSizes, make_corpus
from ssl_asr.data.formats.rows import ReadOptions
from ssl_asr.data.preparation import measure, read_sources, write_corpus
from ssl_asr.data.splits import assign_splits
from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import to_json, written_whole

AN4 = "https://dldata-public.s3.us-east-2.amazonaws.com/an4_sphere.tar.gz"
"""Address of the corpus. AN4 publishes no digest."""
SPLITS = ("train", "dev", "test")
# Fractions of the hours of AN4's training part, by speaker.
_FRACTIONS = {"train": 0.89, "dev": 0.11}
# Size of the synthesized corpus that takes the place of AN4.
_SPOKEN = CorpusSizes(train=240, dev=32, test=64)


def tutorial_corpus(folder: Path, *, most: Mapping[str, int] | None = None) -> dict[str, Path]:
    """Manifests of the train, dev and test splits of a small English corpus. Prints one line that says which.

    The corpus is the first of:

    1. ``en_an4`` in the folder that the environment variable ``SSL_ASR_DATA`` names.
    2. AN4 in ``folder``, downloaded there if need be (64 MB).
    3. A synthesized corpus, if AN4 cannot be downloaded. This needs ``pip install 'ssl_asr[corpus]'``.

    Args:
        folder: Where the corpus is written to. A corpus that is there is not written again.
        most: Largest number of utterances of a split, by its name: utterances are evenly spaced in the manifest.
            Default: None (all utterances).
    """
    title, manifests = _find(folder)
    kept = {split: _thinned(manifests[split], folder, (most or {}).get(split)) for split in SPLITS}
    counts = ", ".join(f"{split} {len(_rows(path)):,}" for split, path in kept.items())
    print(f"{title}: {counts} utterances")
    return kept


def _find(folder: Path) -> tuple[str, dict[str, Path]]:
    """Name and manifests of the corpus, which is made if need be."""
    shared = Path(os.environ.get("SSL_ASR_DATA", "")) / "en_an4"
    for home in (shared, folder / "an4"):
        if all((home / f"{split}.jsonl").is_file() for split in SPLITS):
            return "CMU AN4", {split: home / f"{split}.jsonl" for split in SPLITS}
    try:
        return "CMU AN4", _download(folder / "an4")
    except ConfigError as error:
        print(f"AN4 cannot be downloaded ({error}). Synthesized speech is used, so figures differ from the text.")
    spoken = {split: folder / "spoken" / f"{split}.jsonl" for split in SPLITS}
    if not all(path.is_file() for path in spoken.values()):
        spoken = make_corpus(folder / "spoken", _SPOKEN, seed=0)
    return "Synthesized speech", spoken


def _download(folder: Path) -> dict[str, Path]:
    """AN4 with lower-case texts. Its training part is split by speaker into train and dev.

    Raises:
        ConfigError: AN4 cannot be downloaded.
    """
    corpus = read_sources([AN4], "auto", ReadOptions(output=folder), None)
    measure(corpus)
    rows = [replace(row, text=row.text.lower()) for row in corpus.rows]
    training = assign_splits([row for row in rows if row.split == "train"], _FRACTIONS, by="speaker", seed=0)
    corpus.rows = [*training, *(row for row in rows if row.split == "test")]
    write_corpus(corpus, "manifest", folder, inputs=[AN4])
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _thinned(path: Path, folder: Path, most: int | None) -> Path:
    """A manifest with at most so many lines of another one, or the other one if it has no more."""
    rows = _rows(path)
    if most is None or len(rows) <= most:
        return path
    target = folder / f"{path.stem}-{most}.jsonl"
    with written_whole(target) as file:
        for number in range(most):
            row = rows[number * len(rows) // most]
            file.write(to_json(row | {"audio_filepath": str((path.parent / row["audio_filepath"]).resolve())}) + "\n")
    return target
