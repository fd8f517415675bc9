"""Trains, and compares what was trained, for the comparisons whose scripts are beside this file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ssl_asr.data.text import get_normalizer
from ssl_asr.metrics.edit import word_edits
from ssl_asr.metrics.provenance import git_commit
from ssl_asr.metrics.report import bootstrap_interval, read_predictions

REPO = Path(__file__).parent.parent.parent
# Whisper tiny.en, of which the decoder and the two upper layers of the encoder train: half the time of all layers.
RECIPES = {
    "an4": ["experiment=an4_whisper", "freeze_policy=top_k", "freeze_policy.k=2", "trainer.max_epochs=2"],
    "librispeech": [
        "experiment=librispeech_whisper",
        "freeze_policy=top_k",
        "freeze_policy.k=2",
        "trainer.max_epochs=1",
    ],
}


def ssl_asr(command, *arguments, log=None, codes=(0,)):
    """Run a command in a process with one thread. Returns its exit code, which must be one of ``codes``."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    words = [sys.executable, "-m", "ssl_asr", command, *map(str, arguments)]
    done = subprocess.run(words, cwd=REPO, env=settings, capture_output=True, text=True, check=False)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout + done.stderr)
    if done.returncode not in codes:
        sys.exit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.returncode


def trained(folder, corpus, *arguments, train, test, seed):
    """Fine-tune without a dev set, and test after the last epoch. A folder with results is left as it is.

    Args:
        folder: Path, folder of the run.
        corpus: str, a recipe of `RECIPES`.
        arguments: Further overrides.
        train: Path, the train manifest.
        test: dict of test manifests by name.
        seed: int.

    Returns:
        The folder.
    """
    if not (folder / "results.json").is_file():
        tests = ", ".join(f"{name}: {path}" for name, path in test.items())
        words = [*RECIPES[corpus], "data.dev=null", f"data.train={train}", f"data.test={{{tests}}}", f"seed={seed}"]
        words += [
            "data.allow_duplicate_ids=true",
            "data.num_workers=0",
            "trainer=cpu",
            "logger=csv",
            "verbose=false",
            f"run_dir={folder}",
            "resume=auto",
        ]
        ssl_asr("train", *words, *arguments, log=folder.parent / f"{folder.name}.log")
    return folder


def errors_of(folders, split):
    """Word errors and reference words of each utterance, summed over runs (seeds): two int64 arrays of shape (N,)."""
    normalize = get_normalizer("lower")
    totals = {}
    for folder in folders:
        for row in read_predictions(folder / "predictions" / f"{split}.jsonl"):
            edits = word_edits(normalize(row.ref, row.lang), normalize(row.hyp, row.lang))
            errors, words = totals.get(row.id, (0, 0))
            totals[row.id] = (errors + edits.errors, words + edits.ref)
    pairs = np.array([totals[key] for key in sorted(totals)], dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def wer(folders, split):
    """WER of runs in percent, and its 95 % interval by bootstrap over utterances."""
    errors_N, words_N = errors_of(folders, split)
    low, high = bootstrap_interval(errors_N, words_N)
    return {"wer": 100 * errors_N.sum() / words_N.sum(), "low": 100 * low, "high": 100 * high}


def difference(first, second, split):
    """WER of ``second`` minus WER of ``first`` in points, and its 95 % interval by paired bootstrap over utterances."""
    one_N, words_N = errors_of(first, split)
    two_N, _ = errors_of(second, split)
    rng, count = np.random.default_rng(0), len(one_N)
    drawn_SN = rng.integers(0, count, (10_000, count))
    apart_S = 100 * (two_N - one_N)[drawn_SN].sum(axis=1) / words_N[drawn_SN].sum(axis=1)
    low, high = np.quantile(apart_S, [0.025, 0.975]).tolist()
    return {"difference": 100 * (two_N - one_N).sum() / words_N.sum(), "low": low, "high": high}


def rows_of(manifest):
    """The lines of a manifest with the absolute paths of their audio."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [row | {"audio_filepath": str((manifest.parent / row["audio_filepath"]).resolve())} for row in rows]


def write_rows(path, rows):
    """Write a manifest. Returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def commit():
    """The commit of this code."""
    return git_commit(REPO)
