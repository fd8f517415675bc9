"""Seconds of audio that a loader reads per second, from files and from shards of the same corpus.

    python -m tests.benchmarks.shards /path/to/train.jsonl /path/to/an/empty/folder

Every epoch reads all utterances in the order of a training epoch, in this process and in two workers. CPU seconds count
this process and its workers.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from ssl_asr.commands.prepare import prepare
from ssl_asr.config.tools import PrepareConfig
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.sampler import TrainBatchSampler


def epoch(path: Path, workers: int) -> tuple[float, float, float]:
    """Seconds of audio, seconds of the clock, and seconds of CPUs for one epoch."""
    manifest = read_manifest(path)
    sampler = TrainBatchSampler(
        manifest.durations_N, max_batch_s=120.0, max_batch_size=None, seed=0, epoch=0, rank=0, world_size=1
    )
    dataset = SpeechDataset(manifest, tokenizer=None)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    before, start = os.times(), time.perf_counter()
    audio_s = sum(float(batch.lengths_B.sum()) / 16_000 for batch in loader)
    clock_s, after = time.perf_counter() - start, os.times()
    return audio_s, clock_s, sum(after[:4]) - sum(before[:4])


def main() -> None:
    """Write the shards, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    prepare(
        PrepareConfig(input=[str(arguments.manifest)], output_dir=str(arguments.folder), format="shar", verbose=False),
        Path(),
    )
    print(f"written in {time.perf_counter() - start:.0f} s")
    shards = arguments.folder / arguments.manifest.name
    for workers in (0, 2):
        for repeat in range(3):
            for name, path in (("files", arguments.manifest), ("shards", shards)):
                audio_s, clock_s, cpu_s = epoch(path, workers)
                print(
                    f"{workers} workers, epoch {repeat}, {name}: {audio_s / 3600:.2f} h in {clock_s:.1f} s, "
                    f"{audio_s / clock_s:,.0f} s/s, {audio_s / cpu_s:,.0f} s per CPU second",
                    flush=True,
                )


if __name__ == "__main__":
    main()
