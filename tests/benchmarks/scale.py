"""Time and memory of one large manifest. Run as a script, it prints one JSON object.

python -m tests.benchmarks.scale train.jsonl
"""

import json
import os
import resource
import sys
import time

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.filters import Limits, select
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.sampler import TrainBatchSampler
from ssl_asr.data.tokenizer import check_coverage

LIMITS = Limits(min_s=0.1, max_s=30.0, max_tokens=600, ctc_frames=lambda samples: samples // 320)


def cpu_s():
    """CPU time of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path):
    found = {"imports, MB": peak_mb()}

    def step(name, work):
        began, spent = time.perf_counter(), cpu_s()
        result = work()
        found[f"{name}, s"] = time.perf_counter() - began
        found[f"{name}, CPU s"] = cpu_s() - spent
        found[f"{name}, MB"] = peak_mb() - found["imports, MB"]
        return result

    def selected(manifest, tokenizer):
        targets = check_coverage(tokenizer, manifest, where="train")
        return select(
            "train", manifest, LIMITS, tokenizer=tokenizer, check_audio=False, progress=False, targets=targets
        )

    tokenizer = CharTokenizer(characters=" 'abcdefghijklmnopqrstuvwxyz", normalizer="lower")
    manifest = step("open", lambda: read_manifest(path))
    manifest = step("open again", lambda: read_manifest(path))
    selection = step("select", lambda: selected(manifest, tokenizer))
    again = step("select again", lambda: selected(manifest, tokenizer))
    assert len(again.kept) == len(selection.kept) == len(manifest)
    batches = step("epoch", lambda: list(TrainBatchSampler(selection.kept.durations_N, max_batch_s=200.0)))
    assert sum(map(len, batches)) == len(manifest)
    return {**found, "lines": len(manifest), "bytes": os.path.getsize(path)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
