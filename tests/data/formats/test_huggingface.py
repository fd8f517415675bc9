"""Hugging Face datasets on disk and as Parquet: audio becomes FLAC, and is not written twice."""

import io

import numpy as np
import pytest
import soundfile

from ssl_asr.errors import ConfigError
from tests.data.sources import clip, reasons, run

datasets = pytest.importorskip("datasets")
# How Audio is stored. The library itself encodes audio only with torchcodec.
ENCODED = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}


def encoded(seconds, kind, rate=8000, seed=0):
    """Samples, and a file with them."""
    samples = (8192 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).clip(-32768, 32767)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.int16), rate, format=kind)
    return samples.astype(np.int16), file.getvalue()


@pytest.fixture(scope="module")
def rows():
    first, wav = encoded(0.5, "WAV")
    second, flac = encoded(0.25, "FLAC", rate=16000, seed=1)
    audio = [{"bytes": wav, "path": "a b.wav"}, {"bytes": flac, "path": None}, {"bytes": b"no audio", "path": "c.wav"}]
    made = {
        "audio": audio,
        "sentence": ["größer", "two", "three"],
        "speaker_id": ["ann", None, "bob"],
        "language": [1, 0, 0],
        "duration": [9.0, 9.0, 9.0],
        "image": [b"\0", b"\1", b"\2"],
    }
    features = datasets.Features(
        {
            "audio": ENCODED,
            "sentence": datasets.Value("string"),
            "speaker_id": datasets.Value("string"),
            "language": datasets.ClassLabel(names=["en", "de"]),
            "duration": datasets.Value("float64"),
            "image": datasets.Value("binary"),
        }
    )
    dataset = datasets.Dataset.from_dict(made, features=features)
    return dataset.cast_column("audio", datasets.Audio()), first, second


def check(found, out, first, second, split):
    one, two = found[split]
    assert (one["text"], one["speaker"], one["lang"], one["duration"]) == ("größer", "ann", "de", 0.5)
    assert (two["text"], two["lang"], two["duration"]) == ("two", "en", 0.25)
    assert "speaker" not in two
    assert one["audio_filepath"] == f"audio/{split}/0000000_a_b.flac"
    for row, samples, rate in ((one, first, 8000), (two, second, 16000)):
        read, own = soundfile.read(out / row["audio_filepath"], dtype="int16")
        assert own == rate
        assert np.array_equal(read, samples)
    assert [skip["reason"] for skip in found["skipped"]] == ["not_audio"]


def test_saved_datasets_are_written_as_flac(rows, tmp_path, capsys):
    dataset, first, second = rows
    datasets.DatasetDict({"validation": dataset}).save_to_disk(tmp_path / "saved")
    found = run(tmp_path / "saved", tmp_path / "out")
    check(found, tmp_path / "out", first, second, "dev")
    said = capsys.readouterr().err
    assert "kind=huggingface" in said
    assert "audio=audio, text=sentence, speaker=speaker_id, lang=language" in said
    assert "column 'image' has values that are no JSON" in said
    assert sorted(path.name for path in (tmp_path / "out" / "audio" / "dev").iterdir()) == [
        "0000000_a_b.flac",
        "0000001.flac",
    ]
    dataset.save_to_disk(tmp_path / "one")
    assert set(run(tmp_path / "one", tmp_path / "two")) == {"all", "skipped"}


def test_parquet_files_are_streamed(rows, tmp_path):
    dataset, first, second = rows
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    found = run(tmp_path / "data", tmp_path / "out")
    check(found, tmp_path / "out", first, second, "train")


def test_audio_is_not_written_twice_and_not_among_other_files(rows, tmp_path):
    dataset, *_ = rows
    dataset.save_to_disk(tmp_path / "saved")
    run(tmp_path / "saved", tmp_path / "out")
    (tmp_path / "out" / "all.jsonl").unlink()
    audio = tmp_path / "out" / "audio" / "all" / "0000001.flac"
    before = audio.stat().st_mtime_ns
    run(tmp_path / "saved", tmp_path / "out")
    assert audio.stat().st_mtime_ns == before
    clip(tmp_path / "mine" / "audio" / "a.wav")
    with pytest.raises(ConfigError, match="audio has files of something else"):
        run(tmp_path / "saved", tmp_path / "mine")


def test_paths_of_files_are_kept(tmp_path):
    audio = [{"bytes": None, "path": str(clip(tmp_path / "x" / "a.wav"))}, {"bytes": None, "path": "gone.wav"}]
    features = datasets.Features({"clip": ENCODED, "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"clip": audio, "text": ["one", "two"]}, features=features)
    made.save_to_disk(tmp_path / "saved")
    found = run(tmp_path / "saved", tmp_path / "out")
    assert [row["audio_filepath"] for row in found["all"]] == ["../x/a.wav"]
    assert list(reasons(found).values()) == ["missing_file"]


def test_datasets_without_audio_and_unknown_names_are_errors(tmp_path):
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"columns\.audio: no column of .* has audio: it has text"):
        run(tmp_path / "saved", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"input: nobody/nothing cannot be loaded: "):
        run("nobody/nothing", tmp_path / "out2")
