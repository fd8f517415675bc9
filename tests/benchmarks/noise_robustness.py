"""What ``audio_augment`` brings: WER of Whisper tiny.en on clean and on noisy speech, trained with and without noise.

python -m tests.benchmarks.noise_robustness FOLDER [--corpora an4 librispeech] [--seeds 0 1] [--kinds none noise]

Noise and rooms are divided: four fifths are for training, and the last fifth (ESC-10's fifth fold, every fifth room) is
added to the test sets. Noise is added to them once, with a seed of its own, at fixed signal-to-noise ratios. Runs that
are in FOLDER are not repeated. ``FOLDER/noise_robustness.json`` has all figures, and a table is printed.
"""

import argparse
import json
from pathlib import Path

import soundfile

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.augment import Augmentation
from ssl_asr.data.augment.sounds import Noise, Rooms
from ssl_asr.data.manifest import read_manifest
from ssl_asr.types import SAMPLE_RATE
from tests.benchmarks.fine_tuning import REPO, commit, difference, rows_of, trained, wer, write_rows

CORPORA = {
    "an4": ("en_an4/train", "en_an4/test"),
    "librispeech": ("en_librispeech_mini/train_1h", "en_librispeech_mini/test"),
}
# Of the LibriSpeech test, which is long, every third utterance and fewer conditions.
STEPS = {"an4": 1, "librispeech": 3}
CONDITIONS = {"an4": ("snr_10", "snr_5", "snr_0", "room_10"), "librispeech": ("snr_10", "snr_0")}
KINDS = ("none", "noise", "rooms,noise")


def divided(folder, data):
    """Manifests of noise and rooms, for training and for test sets."""
    noise, rooms = rows_of(data / "noise" / "noise.jsonl"), rows_of(data / "rir" / "rir.jsonl")
    parts = {
        "noise_train": [row for row in noise if row["fold"] != 5],
        "noise_test": [row for row in noise if row["fold"] == 5],
        "rooms_train": [row for i, row in enumerate(rooms) if i % 5],
        "rooms_test": [row for i, row in enumerate(rooms) if i % 5 == 0],
    }
    return {name: write_rows(folder / "sounds" / f"{name}.jsonl", rows) for name, rows in parts.items()}


def noisy(folder, manifest, corpus, sounds):
    """Test manifests by condition: clean, noise at each ratio in dB, and a room with noise."""
    rows = rows_of(manifest)[:: STEPS[corpus]]
    noise, rooms = str(sounds["noise_test"]), str(sounds["rooms_test"])
    tests = {"clean": write_rows(folder / "clean.jsonl", rows)}
    for name in CONDITIONS[corpus]:
        place, _, snr = name.partition("_")
        options = {"rooms": Rooms(manifest=rooms, probability=1.0)} if place == "room" else {}
        options |= {"noise": Noise(manifest=noise, snr_db=[float(snr)] * 2, probability=1.0)}
        augmentation = Augmentation(options, seed=20_261_127)
        changed = []
        for row, utterance in zip(rows, read_manifest(tests["clean"]), strict=True):
            path = folder / name / f"{utterance.id}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            waveform_T = augmentation(read_waveform(utterance), utterance, 0)
            # At most full scale, so that no sample is clipped. The ratio stays.
            waveform_T = waveform_T / waveform_T.abs().max().clamp(min=1.0)
            soundfile.write(path, waveform_T.numpy(), SAMPLE_RATE, subtype="PCM_16")
            changed.append(row | {"audio_filepath": str(path), "duration": len(waveform_T) / SAMPLE_RATE})
        tests[name] = write_rows(folder / f"{name}.jsonl", changed)
    return tests


def overrides(kind, sounds):
    """Overrides of a kind of augmentation."""
    names = [] if kind == "none" else kind.split(",")
    manifests = {name: f"audio_augment.{name}.manifest={sounds[f'{name}_train']}" for name in names}
    return [f"audio_augment=[{kind}]", *manifests.values()]


def main():
    """Train and test everything, write the figures, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared" / "data")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    given = parser.parse_args()
    folder = given.folder.resolve()
    sounds = divided(folder, given.data.resolve())
    record = {"commit": commit(), "corpora": {}}
    for corpus in given.corpora:
        train, test = (given.data.resolve() / f"{name}.jsonl" for name in CORPORA[corpus])
        tests = noisy(folder / corpus, test, corpus, sounds)
        runs = {kind: [] for kind in given.kinds}
        for seed in given.seeds:
            for kind in given.kinds:
                name = f"{corpus}_{kind.replace(',', '_')}_{seed}"
                done = trained(
                    folder / "runs" / name, corpus, *overrides(kind, sounds), train=train, test=tests, seed=seed
                )
                runs[kind].append(done)
                print(name, {split: round(wer([done], split)["wer"], 2) for split in tests}, flush=True)
        record["corpora"][corpus] = {
            "seeds": given.seeds,
            "runs": {kind: {split: wer(some, split) for split in tests} for kind, some in runs.items()},
            "seed_wers": {
                kind: {split: [wer([one], split)["wer"] for one in some] for split in tests}
                for kind, some in runs.items()
            },
            "against_none": {
                kind: {split: difference(runs["none"], some, split) for split in tests}
                for kind, some in runs.items()
                if kind != "none" and "none" in runs
            },
        }
        (folder / "noise_robustness.json").write_text(json.dumps(record, indent=1) + "\n")
    print_tables(record)


def print_tables(record):
    """Print a Markdown table of each corpus."""
    for corpus, figures in record["corpora"].items():
        splits = list(next(iter(figures["runs"].values())))
        print(f"\n| {corpus} | " + " | ".join(splits) + " |\n|" + " --- |" * (1 + len(splits)))
        for kind, row in figures["runs"].items():
            cells = [f"{row[name]['wer']:.2f} ({row[name]['low']:.2f} to {row[name]['high']:.2f})" for name in splits]
            print(f"| {kind} | " + " | ".join(cells) + " |")
        for kind, row in figures["against_none"].items():
            cells = [
                f"{row[name]['difference']:+.2f} ({row[name]['low']:+.2f} to {row[name]['high']:+.2f})"
                for name in splits
            ]
            print(f"| {kind} - none | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
