"""Faults that are planted in real speech are all in the report of the check, and nothing else is."""

import pytest

from ssl_asr.data.doctor.report import examine
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.inference import text_check
from ssl_asr.inference.batches import Transcripts
from ssl_asr.inference.long_form import NO_VAD
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Hypothesis
from tests.benchmarks.fine_tuning import rows_of, write_rows
from tests.e2e import injected_faults


def test_every_planted_fault_is_in_the_report_and_nothing_else_is(data_root, tmp_path, monkeypatch):
    """A recognizer without errors stands for the model that finds swapped texts."""
    folder = data_root / "en_librispeech_mini"
    clean, dev = rows_of(folder / "train_1h.jsonl")[::8], rows_of(folder / "dev.jsonl")[::20]
    train, left, faults = injected_faults.inject(tmp_path / "audio", clean, dev, seed=1, share=0.11)
    paths = {name: write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in (("train", train), ("dev", left))}
    manifests = {name: read_manifest(path) for name, path in paths.items()}
    said = {row["id"]: row["text"] for row in [*clean, *dev]}

    def transcribed(module, manifests, **_):
        rows = {
            name: [Prediction.of(one, Hypothesis(id=one.id, text=said[one.id], score=0.0)) for one in manifest]
            for name, manifest in manifests.items()
        }
        return Transcripts(rows, {})

    monkeypatch.setattr(text_check, "transcribe_manifests", transcribed)
    normalize = get_normalizer("lower")
    report = examine(manifests, normalize=normalize, threads=2)
    kept = {name: report.kept(name, manifest) for name, manifest in manifests.items()}
    report.add(
        text_check.check_texts(None, kept, normalize=normalize, run=None, long_form=NO_VAD, console=None).findings
    )
    missed, others = injected_faults.in_report(report.record()["findings"], faults)
    assert sorted(faults.values()) == sorted(4 * list(injected_faults.NAMES))
    assert (missed, others) == ([], [])
    errors = {one.id for one in report.dropped("train")}
    kept_with_a_fault = {name for name in faults if name not in errors}
    # A duration that is too short is a warning: it may be meant. So is a packet that cannot be decoded.
    assert {faults[name] for name in kept_with_a_fault} <= {"duration", "corrupt"}


@pytest.mark.slow
def test_a_model_finds_swapped_texts_and_training_is_as_good_as_without_faults(data_root, whisper_tiny_en, tmp_path):
    words = [str(tmp_path), "--data", str(data_root), "--step", "2", "--seeds", "0", "--sets", "clean", "checked"]
    record = injected_faults.run(injected_faults.arguments(words))
    assert record["missed"] == {}
    # The interval is that of the test set. The random order of the batches adds to it.
    assert record["against_clean"]["checked"]["low"] < 0.5
