"""The check of manifests: each planted fault is found, and nothing else is."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssl_asr.commands.check import check
from ssl_asr.config.tools import CheckConfig
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.doctor import findings
from ssl_asr.data.doctor.findings import DROPPED, LEVELS, MEANINGS, Finding, level_of
from ssl_asr.data.doctor.report import Report, examine, write_clean
from ssl_asr.data.doctor.text import ModelLimits, rate_findings, usual_durations
from ssl_asr.data.filters import Limits
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.signal import _SAID, Signal
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import UserErrors
from ssl_asr.types import Utterance
from tests.training.toy_runs import build, toy_overrides

RATE = 16_000
COUNTS = {"train": 24, "dev": 6, "test": 6}


def noise(rng, seconds, rate=RATE):
    return (0.1 * rng.standard_normal(round(seconds * rate))).clip(-0.9, 0.9).astype(np.float32)


def save(folder, split, rows):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def clean_corpus(tmp_path_factory):
    """Noise of 0.05 s for each character and 0.2 s of pause, with other words and another speaker in each line."""
    folder = tmp_path_factory.mktemp("clean")
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            words = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(2, 6))) for _ in range(3)]
            seconds = 0.2 + 0.05 * len("".join(words))
            samples = noise(rng, seconds * rng.uniform(0.95, 1.05))
            soundfile.write(folder / f"{split}{number}.flac", samples, RATE)
            row = {"id": f"{split}{number}", "audio_filepath": f"{split}{number}.flac", "duration": len(samples) / RATE}
            rows.append(row | {"text": " ".join(words), "speaker": f"{split}-{number}"})
        save(folder, split, rows)
    return folder


@pytest.fixture
def corpus(clean_corpus, tmp_path):
    return shutil.copytree(clean_corpus, tmp_path / "corpus")


def rows_of(folder, split="train"):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def checked(folder, model=None):
    """What the check finds, as (split, id, finding)."""
    manifests = {
        split: read_manifest(folder / f"{split}.jsonl", require_text=False, unique_ids=False, measure=False)
        for split in COUNTS
    }
    report = examine(manifests, normalize=get_normalizer("lower"), model=model, threads=2)
    return report, sorted((one.split, one.id, one.finding) for one in report.findings)


def test_a_corpus_without_faults_is_clean(clean_corpus):
    report, found = checked(clean_corpus)
    assert found == []
    assert (report.errors, +report.counts, +report.unseen) == (0, {}, {})
    assert {name: split.lines for name, split in report.splits.items()} == COUNTS
    train = report.splits["train"]
    assert (train.rates, train.channels, train.speakers) == ({16_000: 24}, {1: 24}, 24)
    rows = rows_of(clean_corpus)
    assert train.hours == pytest.approx(sum(row["duration"] for row in rows) / 3600)
    assert train.rate[3] == pytest.approx(len(rows[3]["text"].replace(" ", "")) / rows[3]["duration"])
    assert train.level_db == pytest.approx([-20.0] * 24, abs=0.3), "noise of 0.1"


def rewrite(folder, number, change):
    rows = rows_of(folder)
    rows[number] |= change(folder / rows[number]["audio_filepath"], rows[number]) or {}
    save(folder, "train", rows)


def longer(path, row):
    samples, rate = soundfile.read(path)
    soundfile.write(path, np.concatenate([samples, samples[:8_000]]), rate)


def samples_of(change):
    def rewritten(path, row):
        samples, rate = soundfile.read(path, dtype="float32")
        samples, rate = change(samples), rate
        soundfile.write(path.with_suffix(".wav"), samples, rate, subtype="FLOAT")
        return {"audio_filepath": path.with_suffix(".wav").name}

    return rewritten


def with_nan(samples):
    samples[100] = np.nan
    return samples


FAULTS = {
    "missing_file": lambda path, row: path.unlink(),
    "empty_file": lambda path, row: path.write_bytes(b"") and None,
    "not_audio": lambda path, row: path.write_text("<html><body>not found</body></html>" * 20) and None,
    "decode_error": lambda path, row: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None,
    "duration_mismatch": lambda path, row: {"duration": row["duration"] + 0.2},
    "longer_than_manifest": longer,
    "silent": samples_of(lambda samples: samples * 0),
    "non_finite": samples_of(with_nan),
    "clipped": samples_of(lambda samples: (samples * 20).clip(-1, 1)),
    "several_channels": samples_of(lambda samples: np.stack([samples, samples], axis=1)),
    "empty_text": lambda path, row: {"text": "  "},
    "duplicate_id": lambda path, row: {"id": "train0"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_line_is_found_and_nothing_else(corpus, fault):
    rewrite(corpus, 7, FAULTS[fault])
    report, found = checked(corpus)
    assert found == [("train", "train0" if fault == "duplicate_id" else "train7", fault)]
    assert report.errors == (level_of(fault) == "error")
    assert len(report.dropped("train")) == (level_of(fault) == "error" or fault == "silent")


def test_other_sample_rates_are_notes(corpus):
    rng = np.random.default_rng(5)
    for number, rate in ((3, 8_000), (4, 44_100)):
        row = rows_of(corpus)[number]
        soundfile.write(corpus / row["audio_filepath"], noise(rng, row["duration"], rate), rate)
    report, found = checked(corpus)
    assert found == [("train", "train3", "resampled"), ("train", "train4", "resampled")]
    assert report.splits["train"].rates == {16_000: 22, 8_000: 1, 44_100: 1}
    assert report.errors == 0


def test_a_wrong_text_and_a_wrong_duration_are_outliers(corpus):
    rows = rows_of(corpus)
    # A text of the same characters that is too long for the audio, and one that is too short.
    rows[5]["text"] = "abc def gha bcd efg hab cde fgh ab"
    rows[9]["text"] = "a"
    save(corpus, "train", rows)
    report, found = checked(corpus)
    assert found == [("train", "train5", "rate_outlier"), ("train", "train9", "rate_outlier")]
    assert [skip.reason for skip in report.dropped("train")] == ["rate_outlier"] * 2, "left out, though no errors"
    assert report.errors == 0


def test_no_heuristic_decides_what_is_tested():
    for split, left_out in (("train", ["a", "b"]), ("test", ["b"])):
        report = Report({"train": None, "test": None}, frozenset({"train"}))
        rows = (("a", "rate_outlier"), ("b", "missing_file"), ("c", "clipped"), ("d", "leaked_audio"))
        report.add(Finding(split, name, f"m:{name}", finding, "") for name, finding in rows)
        assert [skip.id for skip in report.dropped(split)] == left_out


def test_duplicates_and_leaks_are_found_by_path_content_samples_text_and_speaker(corpus):
    """A copied file and a decoded copy of training audio, each under another id, name and text."""
    train, test = rows_of(corpus), rows_of(corpus, "test")
    shutil.copy(corpus / "train2.flac", corpus / "unknown.flac")
    samples, rate = soundfile.read(corpus / "train3.flac", dtype="int16")
    soundfile.write(corpus / "decoded.wav", samples, rate)
    same = {key: train[4][key] for key in ("audio_filepath", "duration")}
    test[0] |= {"audio_filepath": "unknown.flac", "duration": train[2]["duration"]}
    test[1] |= {"audio_filepath": "decoded.wav", "duration": train[3]["duration"]}
    test[2] |= same
    test[3]["text"] = train[10]["text"].upper()
    test[4]["speaker"] = "train-11"
    long = "a b c d e f g h"
    train[12]["text"] = test[5]["text"] = long
    # Within train: the same span of a file, the same samples in another file, and the same text.
    shutil.copy(corpus / "train14.flac", corpus / "again.flac")
    train[13] |= {key: train[15][key] for key in ("audio_filepath", "duration")}
    train[16] |= {"audio_filepath": "again.flac", "duration": train[14]["duration"]}
    train[17]["text"] = train[18]["text"]
    for split, rows in (("train", train), ("test", test)):
        save(corpus, split, rows)
    report, found = checked(corpus)
    wanted = {
        *(("test", f"test{i}", "leaked_audio") for i in (0, 1, 2)),
        *(("train", f"train{i}", "in_evaluation") for i in (2, 3, 4)),
        ("test", "test3", "shared_text"),
        ("test", "test4", "shared_speaker"),
        ("train", "train11", "leaked_speaker"),
        ("test", "test5", "leaked_text"),
        ("train", "train15", "duplicate_path"),
        ("train", "train16", "duplicate_audio"),
        ("train", "train18", "duplicate_text"),
    }
    assert {one for one in found if one[2] != "rate_outlier"} == wanted
    assert report.dropped("test") == [], "training loses what it shares with a test set"
    assert {skip.id for skip in report.dropped("train")} >= {"train2", "train3", "train4", "train11"}
    [leak] = [one for one in report.findings if one.id == "test0"]
    assert leak.detail.endswith("train.jsonl:3")


@pytest.mark.parametrize(("shared", "leaked"), [(2, 2), (3, 0)])
def test_speakers_of_over_a_tenth_of_training_are_shared_on_purpose(corpus, shared, leaked):
    test = rows_of(corpus, "test")
    for number in range(shared):
        test[number]["speaker"] = f"train-{number}"
    save(corpus, "test", test)
    report, _ = checked(corpus)
    kinds = {("test", "shared_speaker"): shared, ("train", "leaked_speaker"): leaked}
    assert +report.counts == {key: count for key, count in kinds.items() if count}
    assert len(report.dropped("train")) == leaked
    assert not report.errors


def test_segments_of_one_recording_share_no_audio(tmp_path):
    """Lines with other spans of a file are other audio. A span that overlaps is not."""
    soundfile.write(tmp_path / "talk.flac", noise(np.random.default_rng(1), 4.0), RATE)

    def line(name, offset):
        return {"id": name, "audio_filepath": "talk.flac", "offset": offset, "duration": 1.0, "text": "a bc"}

    save(tmp_path, "train", [line("a", 0.0), line("b", 1.0)])
    save(tmp_path, "dev", [line("c", 2.0)])
    save(tmp_path, "test", [line("d", 1.5)])
    _, found = checked(tmp_path)
    assert [one for one in found if "text" not in one[2]] == [
        ("test", "d", "leaked_audio"),
        ("train", "b", "in_evaluation"),
    ]


def test_limits_of_a_model_and_characters_that_training_lacks(corpus):
    train, test = rows_of(corpus), rows_of(corpus, "test")
    train[2]["text"] = train[2]["text"].replace(" ", "é", 1)
    test[1]["text"] = test[1]["text"].replace(" ", "ß", 1)
    for split, rows in (("train", train), ("test", test)):
        save(corpus, split, rows)
    # 20 frames a second, but 0.05 s for each character and 0.2 s of pause: repeats and spaces take the pause.
    limits = Limits(max_s=0.8, max_s_why="the model's window", ctc_frames=lambda samples: samples // 1_200)
    model = ModelLimits(name="toy", limits=limits, tokenizer=CharTokenizer(characters=" abcdefgh", normalizer="lower"))
    report, found = checked(corpus, model)
    kinds = {kind: [one[:2] for one in found if one[2] == kind] for kind in {one[2] for one in found}}
    assert kinds["unseen_labels"] == [("train", "train2")]
    assert kinds["unseen_characters"] == [("test", "test1")]
    assert report.unseen == {"ß": 1}
    manifests = {split: rows_of(corpus, split) for split in COUNTS}
    too_long = [(split, row["id"]) for split, rows in manifests.items() for row in rows if row["duration"] > 0.8]
    assert kinds["too_long"] == sorted(too_long)
    assert 0 < len(too_long) < 36
    needed = {row["id"]: len(row["text"]) + sum(map(str.__eq__, row["text"], row["text"][1:])) for row in train}
    frames = {row["id"]: round(row["duration"] * RATE) // 1_200 for row in train}
    late = {("train", name) for name in needed if needed[name] > frames[name]} - set(too_long)
    assert set(kinds["ctc_target_too_long"]) == late
    assert late


def test_the_usual_duration_is_not_moved_by_outliers():
    """0.3 s and 0.06 s a character, with a tenth of the durations three times as long."""
    rng = np.random.default_rng(0)
    characters_N = rng.integers(5, 60, 200).astype(np.float64)
    seconds_N = 0.3 + 0.06 * characters_N
    wrong_N = np.arange(200) % 10 == 0
    usual_N = usual_durations(characters_N, np.where(wrong_N, 3 * seconds_N, seconds_N))
    np.testing.assert_allclose(usual_N, seconds_N, rtol=0.05)
    utterances = [Utterance(f"u{i}", "a.wav", 1.0, text="a" * int(n)) for i, n in enumerate(characters_N)]
    found = rate_findings("train", utterances, np.where(wrong_N, 3 * seconds_N, seconds_N))
    assert [one.id for one in found] == [f"u{i}" for i in range(0, 200, 10)]


def test_every_finding_that_the_code_names_has_a_meaning():
    """Reasons of audio errors, findings of signals, reasons of limits, and findings of the check itself."""
    data = Path(findings.__file__).parent.parent
    text = "".join(path.read_text() for path in sorted(data.rglob("*.py")))
    named = {
        *re.findall(r"Finding\.of\([^()]*?\"(\w+)\"", text),
        *re.findall(r"_skip\(utterance, \"(\w+)\"", text),
        *re.findall(r"(?:AudioError|MediaError)\((?:[^()]|\([^()]*\))*, \"([a-z_]+)\"\)", text),
        *Signal(1).findings(),
        *_SAID,
    }
    assert len(named) > 30
    # Samples in memory, which no manifest has, and a plural.
    assert named - {"bad_array", "channels"} <= set(MEANINGS)
    assert {level_of(name) for name in MEANINGS} == set(LEVELS)
    assert {level_of(name) for name in DROPPED} == {"warning"}


@pytest.mark.parametrize(
    ("text", "seconds", "impossible"),
    [
        ("a" * 40, 1.0, False),
        ("a b" * 30, 1.0, True),
        ("...,,,!!!" * 9, 1.0, False),
        ("语" * 13, 1.0, False),
        ("语" * 14, 1.0, True),
        ("word", 0.01, False),
        ("words", 0.01, True),
    ],
)
def test_rates_that_nobody_speaks_are_found_in_a_single_line(text, seconds, impossible):
    found = list(rate_findings("train", [Utterance("u", "a.wav", seconds, text=text)], np.array([seconds])))
    assert [one.finding for one in found] == ["impossible_rate"] * impossible


def test_invalid_lines_are_listed_and_the_others_are_checked(corpus, tmp_path, capsys):
    """More lines than the errors of a command list. Of the two errors of a line, both are named."""
    lines = (corpus / "train.jsonl").read_text().splitlines()
    bad = ["no json"] * 22 + ['{"audio_filepath": 3, "duration": -1}', "\xff", '["a list"]']
    (corpus / "train.jsonl").write_text("\n".join([*bad[:3], *lines[:5], *bad[3:], *lines[5:]]), encoding="latin-1")
    (corpus / "train3.flac").unlink()
    config = CheckConfig(
        manifest={"train": str(corpus / "train.jsonl")}, output_dir=str(tmp_path / "check"), verbose=False
    )
    with pytest.raises(SystemExit) as ended:
        check(config, None)
    assert ended.value.code == 1
    assert "lines: 49 in, 23 in " in (said := capsys.readouterr().out)
    assert "26 left out, 26 errors" in said
    record = json.loads((tmp_path / "check" / "check.json").read_text())
    found = [one for one in record["findings"] if one["finding"] == "invalid_line"]
    invalid = {int(one["where"].split(":")[-1]): one["detail"] for one in found}
    assert list(invalid) == [1, 2, 3, *range(9, 31)]
    assert "'audio_filepath' is 3" in invalid[28]
    assert "'duration' is -1" in invalid[28]
    assert "missing_file" in {one["finding"] for one in record["findings"]}
    skipped = [json.loads(line) for line in (tmp_path / "check" / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 26
    assert {row["reason"] for row in skipped} == {"invalid_line", "missing_file"}
    page = (tmp_path / "check" / "check.html").read_text()
    assert "<dt>invalid_line</dt><dd>the line is no JSON object with the keys of a manifest</dd>" in page
    assert "<dt>leaked_audio</dt>" not in page


def test_manifests_that_cannot_be_checked_are_named_together(tmp_path):
    (tmp_path / "bad.jsonl").write_text("no json\n" * 3)
    paths = {"train": str(tmp_path / "bad.jsonl"), "dev": str(tmp_path / "none.jsonl")}
    with pytest.raises(UserErrors) as found:
        check(CheckConfig(manifest=paths, output_dir=str(tmp_path / "check"), verbose=False), None)
    assert len(found.value.errors) == 4
    assert str(found.value.errors[-1]).startswith(f"manifest: {tmp_path}/none.jsonl: no such manifest.")
    assert not (tmp_path / "check").exists()


@pytest.fixture
def report_folder(corpus, tmp_path, capsys):
    """The report of the command on a corpus with a cut file, a leak, a name with markup, and an unseen character."""
    train, test = rows_of(corpus), rows_of(corpus, "test")
    path = corpus / train[1]["audio_filepath"]
    path.write_bytes(path.read_bytes()[:2_000])
    shutil.copy(corpus / "train2.flac", corpus / "unknown.flac")
    test[0] |= {"audio_filepath": "unknown.flac", "duration": train[2]["duration"], "id": "<b>&amp;"}
    test[1]["text"] += "ß"
    del train[3]["duration"]
    for split, rows in (("train", train), ("test", test)):
        save(corpus, split, rows)
    output = tmp_path / "check"
    config = CheckConfig(
        manifest={split: str(corpus / f"{split}.jsonl") for split in COUNTS}, output_dir=str(output), verbose=False
    )
    with pytest.raises(SystemExit) as ended:
        check(config, None)
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert f"lines: 36 in, 34 in {output / 'clean'}, 2 left out, 3 errors" in said
    return output


def test_the_report_has_json_a_page_with_plots_and_reasons(report_folder):
    record = json.loads((report_folder / "check.json").read_text(), parse_constant=pytest.fail)
    counts = {(row["split"], row["finding"]): row["lines"] for row in record["counts"] if row["level"] == "error"}
    assert counts == {
        ("train", "decode_error"): 1,
        ("train", "in_evaluation"): 1,
        ("test", "leaked_audio"): 1,
    }
    assert record["splits"]["train"]["lines"] == 24
    assert record["unseen_characters"] == {"ß": 1}
    page = (report_folder / "check.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(pictures) == 5, "lengths, rates, levels, texts and unseen characters"
    for picture in pictures:
        bars = list(ET.fromstring(picture).iter("rect"))
        assert bars
        assert all(float(bar.get("width")) > 0 and float(bar.get("height")) > 0 for bar in bars)
    assert "Check of 3 manifests: 3 errors" in page
    assert ">ß U+00DF</text>" in page
    assert "<td>&lt;b&gt;&amp;amp;</td>" in page, "text is escaped"
    assert not re.search(r"<script|https?://|<link|<img", page)
    skipped = [json.loads(line) for line in (report_folder / "skipped.jsonl").read_text().splitlines()]
    assert [(row["split"], row["id"], row["reason"]) for row in skipped] == [
        ("train", "train1", "decode_error"),
        ("train", "train2", "in_evaluation"),
    ]


def test_cleaned_manifests_are_clean_and_train(report_folder, toy_checkpoints, tmp_path):
    folder = report_folder / "clean"
    report, _ = checked(folder)
    assert report.errors == 0
    assert {name: split.lines for name, split in report.splits.items()} == {"train": 22, "dev": 6, "test": 6}
    measured = next(row for row in rows_of(folder) if row["id"] == "train3")
    assert measured["duration"] > 0.3
    assert measured["speaker"] == "train-3"
    overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], {split: folder / f"{split}.jsonl" for split in COUNTS})
    more = ["trainer.max_epochs=1", "freeze=true", "data.max_batch_s=100", "data.min_s=0.01"]
    run = build(tmp_path / "run", *overrides, *more)
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step == 1
    assert len(run.data.selections["train"].kept) == 22
    assert run.module.skips.found == {}


def test_every_reference_is_checked_and_kept(corpus):
    train, dev = rows_of(corpus), rows_of(corpus, "dev")
    train[0]["references"] = [dev[0]["text"], "abcé"]
    train[1]["references"] = [" "]
    # An evaluation may accept silence.
    dev[1]["references"] = [" ", "abcñ"]
    save(corpus, "train", train)
    save(corpus, "dev", dev)
    manifests = {name: read_manifest(corpus / f"{name}.jsonl") for name in COUNTS}
    model = ModelLimits(name="m", limits=Limits(), tokenizer=CharTokenizer(characters=" abcdefgh", normalizer="none"))
    report = examine(manifests, normalize=get_normalizer("lower"), model=model, progress=False)
    found = {(one.split, one.id, one.finding) for one in report.findings}
    assert ("train", "train0", "unseen_labels") in found
    assert {(split, name) for split, name, kind in found if kind == "empty_text"} == {("train", "train1")}
    assert any(split == "dev" and name == "dev0" and kind.endswith("_text") for split, name, kind in found)
    assert ("dev", "dev1", "unseen_characters") in found
    write_clean(report, manifests, corpus / "out")
    assert [one.references for one in read_manifest(corpus / "out" / "clean" / "dev.jsonl")][1] == (" ", "abcñ")
