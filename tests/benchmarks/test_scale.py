"""How opening, filtering and sampling grow with the number of lines of a manifest.

BENCH_LINES=10000,100000 takes other numbers of lines than 10^4 to 10^6. Each line takes about 320 bytes of disk.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ssl_asr.data.manifest import read_manifest

LINES = [int(count) for count in os.environ.get("BENCH_LINES", "10000,100000,1000000").split(",")]
KEYS = ("audio_filepath", "duration", "text", "speaker", "lang", "id")


def write_lines(source, path, count):
    """Texts and durations of a real manifest, repeated under other ids."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    parts = [json.dumps({key: row[key] for key in KEYS}, ensure_ascii=False).removesuffix('"}') for row in rows]
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f'{parts[i % len(parts)]}-{i}"}}\n' for i in range(count))


@pytest.mark.benchmark
def test_growth_with_the_number_of_lines(data_root, tmp_path):
    """Prints a table, and the exponent of the growth of each figure. Asserts that every line is opened and sampled."""
    found = []
    for count in LINES:
        path = tmp_path / "train.jsonl"
        write_lines(data_root / "en_librispeech_mini" / "train.jsonl", path, count)
        done = subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
        print(done.stdout, flush=True)
        assert found[-1]["lines"] == count
        assert read_manifest(path)[count - 1].id.endswith(f"-{count - 1}")
        for kept in tmp_path.iterdir():
            kept.unlink()
    print("| | " + " | ".join(f"{count:,}" for count in LINES) + " | growth |\n|" + " --- |" * (len(LINES) + 2))
    for key in found[0]:
        values = [one[key] for one in found]
        slope = np.polyfit(np.log(LINES), np.log(np.maximum(values, 1e-3)), 1)[0] if len(LINES) > 1 else np.nan
        print(f"| {key} | " + " | ".join(f"{value:,.2f}" for value in values) + f" | n^{slope:.2f} |")
