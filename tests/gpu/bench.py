"""Training steps and transcription, ours and transformers', with random weights of the true shapes.

    python -m tests.gpu.bench                          (every row of the table in tests/benchmarks/README.md)
    python -m tests.gpu.bench wav2vec2_base/ours/ragged whisper_small/hf/eq
    python -m tests.gpu.bench --tiny                   (tiny shapes: checks that it runs)

A row has the median time of a step, speed in times real time, the share of the card's peak that the operations of real
frames and tokens reach (MFU), peak memory, and the places where the host waits for the GPU. Both sides run in bf16
autocast with fused AdamW and clipping, without LayerDrop and masking.
"""

import argparse
import gc
import os
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import transformers

from ssl_asr.types import Seconds
from tests.gpu.ctc import ctc_step
from tests.gpu.rows import add_row
from tests.gpu.search import search_step
from tests.gpu.steps import Setup, Step, ssl_hf, ssl_ours, transcribe_hf, transcribe_ours, whisper_hf, whisper_ours

PEAK_FLOPS = float(os.environ.get("GPU_PEAK_TFLOPS", "790")) * 1e12
"""Peak of the card in bf16. 790 TFLOP/s is what an H200 reached on a large matrix product."""

# Operations of a training step per second of audio, 1e9: forward and backward of real frames and tokens.
GFLOP_PER_S = {
    "wav2vec2_base": 35.2,
    "wav2vec2_base frozen": 15.0,
    "wav2vec2_large": 106.9,
    "wavlm_large": 106.9,
    "whisper_small": 37.3,
    "whisper_large_v3": 257.2,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table: how its step is built, and the audio that a step takes."""

    build: Callable[[Setup, Sequence[Seconds]], Step]
    durations: Sequence[Seconds]
    gflop_per_s: float = 0.0
    warmup: int = 3
    steps: int = 8


EQUAL = [12.0] * 32
RAGGED = [10.0 + 4.0 * i / 31 for i in range(32)]
SHORT = [5.3] * 64


# The table.


def _ssl_rows() -> dict[str, Row]:
    rows = {}
    for name, batches in {
        "wav2vec2_base": {"eq": EQUAL, "ragged": RAGGED},
        "wav2vec2_large": {"eq": EQUAL, "ragged": RAGGED},
        "wavlm_large": {"ragged": RAGGED},
    }.items():
        for kind, durations in batches.items():
            for side, build in (("ours", ssl_ours), ("hf", ssl_hf)):
                rows[f"{name}/{side}/{kind}"] = Row(
                    build=partial(build, name=name), durations=durations, gflop_per_s=GFLOP_PER_S[name]
                )
    name, gflop_per_s = "wav2vec2_base", GFLOP_PER_S["wav2vec2_base frozen"]
    for side, build in (("frozen", ssl_ours), ("hf_frozen", ssl_hf)):
        rows[f"{name}/{side}/ragged"] = Row(
            build=partial(build, name=name, frozen=True), durations=RAGGED, gflop_per_s=gflop_per_s
        )
    rows[f"{name}/compiled/eq"] = Row(
        build=partial(ssl_ours, name=name, compiled=True), durations=EQUAL, gflop_per_s=GFLOP_PER_S[name]
    )
    return rows


def _whisper_rows() -> dict[str, Row]:
    rows = {}
    for name, every in (("whisper_small", 1), ("whisper_large_v3", 2)):
        batches = {"eq": EQUAL[::every], "ragged": RAGGED[::every], "short": SHORT[::every]}
        sides = {"ours": batches, "hf": {kind: batches[kind] for kind in ("eq", "short")}}
        for side, own in sides.items():
            build = partial(whisper_ours if side == "ours" else whisper_hf, name=name)
            for kind, durations in own.items():
                rows[f"{name}/{side}/{kind}"] = Row(build=build, durations=durations, gflop_per_s=GFLOP_PER_S[name])
    rows["whisper_small/ours_30s/eq"] = Row(
        build=partial(whisper_ours, name="whisper_small", window="30s"),
        durations=EQUAL,
        gflop_per_s=GFLOP_PER_S["whisper_small"],
    )
    return rows


def _transcription_rows() -> dict[str, Row]:
    rows = {}
    for dtype, window in (("autocast", "30s"), ("bf16", "30s"), ("bf16", "real")):
        build = partial(transcribe_ours, name="whisper_small", window=window, bf16=dtype == "bf16")
        rows[f"whisper_small/greedy/{dtype}_{window}"] = Row(build=build, durations=[12.0] * 64, warmup=2, steps=4)
    for name in ("whisper_small", "whisper_large_v3"):
        if name == "whisper_large_v3":
            build = partial(transcribe_ours, name=name, window="real", bf16=True)
            rows[f"{name}/greedy/bf16_real"] = Row(build=build, durations=[12.0] * 64, warmup=2, steps=4)
        # Without CUDA graphs.
        build = partial(transcribe_ours, name=name, window="real", bf16=True, graphs=False)
        rows[f"{name}/greedy/eager_real"] = Row(build=build, durations=[12.0] * 64, warmup=2, steps=4)
        build = partial(transcribe_hf, name=name)
        rows[f"{name}/greedy/hf"] = Row(build=build, durations=[12.0] * 64, warmup=2, steps=4)
        for kind, window in (("bf16_30s", "30s"), ("bf16_real", "real"), ("eager_real", "real")):
            ours = partial(
                transcribe_ours, name=name, window=window, bf16=True, beams=5, graphs=not kind.startswith("eager")
            )
            rows[f"{name}/beam5/{kind}"] = Row(build=ours, durations=[12.0] * 16, warmup=2, steps=4)
        theirs = partial(transcribe_hf, name=name, beams=5)
        rows[f"{name}/beam5/hf"] = Row(build=theirs, durations=[12.0] * 16, warmup=2, steps=4)
    return rows


def _ctc_rows() -> dict[str, Row]:
    """The CTC loss alone, forward and backward. The first row also checks the kernel in edge cases."""
    return {
        f"ctc_loss/{side}/{vocabulary}": Row(
            build=partial(ctc_step, vocabulary=vocabulary, ours=side == "ours", edges=vocabulary == 32),
            durations=RAGGED,
            steps=20,
        )
        for vocabulary in (32, 1000)
        for side in ("ours", "torch")
    }


def _search_rows() -> dict[str, Row]:
    """CTC beam search with an n-gram model over words and hotwords, with one over labels, and without."""
    return {
        f"ctc_search/{kind}": Row(build=partial(search_step, kind=kind), durations=RAGGED, warmup=1, steps=3)
        for kind in ("words", "labels", "plain")
    }


ROWS = {**_ctc_rows(), **_search_rows(), **_ssl_rows(), **_whisper_rows(), **_transcription_rows()}
# The tiny shape of large-v3 is that of small.
TINY_ROWS = [name for name in ROWS if not name.startswith("whisper_large")]


# Measuring.


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_steps(setup: Setup, step: Step, row: Row, *, limit_s: Seconds) -> Seconds:
    """Median seconds of a step. Stops early after ``limit_s``."""
    for _ in range(1 if setup.tiny else row.warmup):
        step()
    _synchronize(setup.device)
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken, began = [], time.perf_counter()
    for _ in range(1 if setup.tiny else row.steps):
        start = time.perf_counter()
        step()
        _synchronize(setup.device)
        taken.append(time.perf_counter() - start)
        if time.perf_counter() - began > limit_s:
            break
    return statistics.median(taken)


def count_waits(step: Step) -> tuple[int, dict[str, int]]:
    """Points at which the host waits for the GPU, and their places, by torch's sync debug mode (a lower bound)."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{warning.filename.split('site-packages/')[-1]}:{warning.lineno}" for warning in seen)
    return len(seen), dict(places.most_common(8))


def measure(setup: Setup, name: str) -> dict[str, object]:
    """One row of the table, or what went wrong."""
    row, began = ROWS[name], time.perf_counter()
    durations = [1.5, 2.0] if setup.tiny else row.durations
    try:
        step = row.build(setup, durations)
        step_s = time_steps(setup, step, row, limit_s=8.0)
        speed = sum(durations) / step_s
        found = {"name": name, "ms": round(1000 * step_s, 2), "x_real_time": round(speed)}
        if row.gflop_per_s > 0:
            found["mfu_percent"] = round(100 * row.gflop_per_s * 1e9 * speed / PEAK_FLOPS, 1)
        if setup.device == "cuda":
            found["gb"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
            found["waits"], found["wait_places"] = count_waits(step)
    except Exception as error:
        return {"name": name, "error": repr(error)[:300], "trace": traceback.format_exc()[-1500:]}
    return {**found, "took_s": round(time.perf_counter() - began, 1)}


def main() -> int:
    """Measure the rows named, or all of them. Returns the number of rows that failed."""
    parser = argparse.ArgumentParser(description="Training steps and transcription, ours and transformers'.")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: checks that everything runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to measure: {', '.join(ROWS)}")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(ROWS))
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}")
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    setup = Setup(device="cuda" if torch.cuda.is_available() else "cpu", tiny=arguments.tiny)
    failed = 0
    for name in arguments.names or (TINY_ROWS if arguments.tiny else ROWS):
        row = measure(setup, name)
        failed += "error" in row
        add_row(row)
        gc.collect()
        if setup.device == "cuda":
            torch.cuda.empty_cache()
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
