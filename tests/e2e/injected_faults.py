"""Plants faults in LibriSpeech, looks for each in the report of ``ssl-asr check``, and trains on what the check leaves.

python -m tests.e2e.injected_faults FOLDER [--step 2] [--seeds 0 1] [--sets clean checked]

    corrupt      files cut in half, emptied, overwritten with text, and with a damaged middle
    duration     'duration' is half as long, or half as long again, as the audio
    speaker      lines of dev speakers moved to training
    silence      audio replaced by zeros, or by noise below -70 dB
    swap         pairs of lines with each other's text

Each fault is planted in 2 % of the lines, in lines of its own, chosen by a seed. Whisper tiny.en transcribes all lines,
which finds swapped texts. Then it is fine-tuned on the lines before the faults, with the faults, and after the check,
with the same seeds. ``FOLDER/injected_faults.json`` has all figures.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

from tests.benchmarks.fine_tuning import REPO, commit, difference, rows_of, ssl_asr, trained, wer, write_rows

# Findings that name each fault.
NAMES = {
    "corrupt": {"duration_mismatch", "empty_file", "not_audio", "decode_error", "damaged"},
    "duration": {"duration_mismatch", "longer_than_manifest"},
    "speaker": {"leaked_speaker"},
    "silence": {"silent"},
    "swap": {"text_mismatch", "rate_outlier"},
}
SHARE = 0.02


def inject(folder, train, dev, seed, share=SHARE):
    """Plant faults in copies of the lines.

    Args:
        folder: Path for changed audio.
        train, dev: Lists of lines with absolute paths.
        seed: int.
        share: Share of the training lines that get each fault.

    Returns:
        The lines of training and of dev with the faults, and the kind of each fault by the id of its line.
    """
    rng = random.Random(seed)
    train, dev, faults = [dict(row) for row in train], list(dev), {}
    folder.mkdir(parents=True, exist_ok=True)
    count = 2 * max(1, round(share * len(train) / 2))
    chosen = iter(rng.sample(range(len(train)), 4 * count))
    for kind in ("corrupt", "duration", "silence"):
        for nth in range(count):
            row = train[next(chosen)]
            faults[row["id"]] = kind
            _spoil(row, kind, nth, folder, rng)
    for _ in range(count // 2):
        one, other = train[next(chosen)], train[next(chosen)]
        one["text"], other["text"] = other["text"], one["text"]
        faults |= {one["id"]: "swap", other["id"]: "swap"}
    # A line of each speaker stays in dev.
    first = {row["speaker"]: place for place, row in reversed(list(enumerate(dev)))}
    moved = rng.sample([place for place in range(len(dev)) if place not in first.values()], count)
    faults |= {dev[place]["id"]: "speaker" for place in moved}
    train += [dev[place] for place in moved]
    return train, [row for place, row in enumerate(dev) if place not in moved], faults


def _spoil(row, kind, nth, folder, rng):
    source = Path(row["audio_filepath"])
    path = folder / f"{row['id']}{source.suffix}"
    if kind == "duration":
        row["duration"] = round(row["duration"] * (1.5, 0.5)[nth % 2], 3)
    elif kind == "silence":
        path = path.with_suffix(".flac")
        noise = np.random.default_rng(nth).uniform(-1, 1, round(row["duration"] * 16_000))
        soundfile.write(path, noise * (0.0, 1e-4)[nth % 2], 16_000)
        row["audio_filepath"] = str(path)
    else:
        data = source.read_bytes()
        middle, size = len(data) // 2, len(data) // 4
        kinds = (data[:middle], b"", b"no audio\n", data[:middle] + rng.randbytes(size) + data[middle + size :])
        path.write_bytes(kinds[nth % len(kinds)])
        row["audio_filepath"] = str(path)


def in_report(found, faults):
    """Which faults a report names, and which other lines it would leave out.

    Args:
        found: List of findings, as in ``check.json``.
        faults: Kind of each fault by the id of its line.

    Returns:
        The ids of faults without a finding of their kind, and the findings in lines without a fault that are errors or
        warnings.
    """
    names = {(one["id"], one["finding"]) for one in found if one["split"] == "train"}
    missed = [name for name, kind in faults.items() if not any((name, finding) in names for finding in NAMES[kind])]
    others = [one for one in found if one["id"] not in faults and one["level"] != "note"]
    return missed, others


def arguments(words=None):
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared" / "data")
    parser.add_argument("--step", type=int, default=1, help="take every STEP-th line of one hour of training")
    parser.add_argument("--sets", nargs="+", default=["clean", "faulty", "checked"], help="what is trained on")
    parser.add_argument("--fault-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1], help="seeds of the training")
    return parser.parse_args(words)


def run(given):
    """Plant, check, train, and write the figures. Returns them."""
    folder, data = given.folder.resolve(), given.data.resolve() / "en_librispeech_mini"
    clean, dev = rows_of(data / "train_1h.jsonl")[:: given.step], rows_of(data / "dev.jsonl")[::8]
    train, left, faults = inject(folder / "audio", clean, dev, given.fault_seed)
    manifests = {
        "clean": write_rows(folder / "clean.jsonl", clean),
        "faulty": write_rows(folder / "faulty.jsonl", train),
        "checked": folder / "check" / "clean" / "train.jsonl",
    }
    named = f"{{train: {manifests['faulty']}, dev: {write_rows(folder / 'dev.jsonl', left)}}}"
    words = [f"manifest={named}", "model=openai/whisper-tiny.en", "transcribe=true", f"output_dir={folder / 'check'}"]
    if not (folder / "check" / "check.json").is_file():
        ssl_asr("check", *words, "verbose=false", log=folder / "check.log", codes=(1,))
    report = json.loads((folder / "check" / "check.json").read_text())
    missed, others = in_report(report["findings"], faults)
    record = {
        "commit": commit(),
        "lines": {name: len(rows_of(path)) for name, path in manifests.items()},
        "faults": Counter(faults.values()),
        "found_as": _found_as(report["findings"], faults),
        "missed": {name: faults[name] for name in missed},
        "other_lines": [(one["split"], one["id"], one["finding"], one["detail"]) for one in others],
    }
    print(json.dumps(record, indent=1), flush=True)
    test = {"clean": write_rows(folder / "test.jsonl", rows_of(data / "test.jsonl")[::3])}
    runs = {name: [] for name in given.sets}
    for seed in given.seeds:
        for name in given.sets:
            place, words = folder / "runs" / f"{name}_{seed}", ["data.max_skip_fraction=0.2"]
            runs[name].append(trained(place, "librispeech", *words, train=manifests[name], test=test, seed=seed))
            print(name, seed, wer(runs[name][-1:], "clean"), flush=True)
    if given.seeds:
        record["wer"] = {name: wer(some, "clean") for name, some in runs.items()}
        record["against_clean"] = {
            name: difference(runs["clean"], some, "clean") for name, some in runs.items() if name != "clean"
        }
        print(json.dumps({key: record[key] for key in ("wer", "against_clean")}, indent=1))
    (folder / "injected_faults.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _found_as(found, faults):
    """Number of faults of each kind by the findings in their lines, notes left out."""
    named = {name: [] for name in faults}
    for one in found:
        if one["id"] in faults and one["split"] == "train" and one["level"] != "note":
            named[one["id"]].append(one["finding"])
    counts = {kind: Counter() for kind in NAMES}
    for name, findings in named.items():
        counts[faults[name]][" ".join(sorted(findings))] += 1
    return counts


if __name__ == "__main__":
    sys.exit(bool(run(arguments())["missed"]))
