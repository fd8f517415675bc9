"""What a run looks for in its splits before it trains."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from ssl_asr.data.doctor.leakage import check_leakage, is_long, leakage, speaker_of
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError
from ssl_asr.types import Utterance
from tests.tables import cells, heads, wide_console
from tests.training.toy_runs import build, toy_overrides

LONG = "one two three four five six seven"


@pytest.fixture
def folder(tmp_path):
    """Four lines of train and of test, each with audio, a text and a speaker of its own."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        rows = []
        for i in range(4):
            soundfile.write(tmp_path / f"{split}{i}.wav", 0.1 * rng.standard_normal(8_000), 16_000)
            rows.append({"id": f"{split}{i}", "audio_filepath": f"{split}{i}.wav", "duration": 0.5})
            rows[-1] |= {"text": f"{split} {i}", "speaker": f"{split}{i}"}
        write(tmp_path, split, rows)
    return tmp_path


def write(folder, split, rows):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change(folder, number, **values):
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    rows[number] |= values
    write(folder, "test", rows)


def manifests(folder):
    return {split: read_manifest(folder / f"{split}.jsonl") for split in ("train", "test")}


def run_check(folder, *, limit=0.0, contents=True, console=None):
    check_leakage(manifests(folder), max_leakage=limit, contents=contents, console=console, warns=True)


def test_splits_that_share_nothing_print_nothing(folder, capsys):
    run_check(folder)
    console = wide_console()
    run_check(folder, console=console)
    assert console.export_text() == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["path", "link in the path", "copy"])
def test_audio_of_training_under_another_id_is_refused(folder, how):
    if how == "link in the path":
        (folder / "linked").symlink_to(folder)
    path = {"path": "train2.wav", "link in the path": "linked/train2.wav", "copy": "other.wav"}[how]
    if how == "copy":
        shutil.copy(folder / "train2.wav", folder / "other.wav")
    change(folder, 1, audio_filepath=path)
    where = (
        r"test\.jsonl: the audio of 1 of 4 utterances is also in training: test1: .*train\.jsonl:3\. .*max_leakage=1"
    )
    with pytest.raises(ManifestError, match=where):
        run_check(folder)
    with pytest.raises(ManifestError, match="the audio of 1 of 4"):
        run_check(folder, limit=0.24)
    run_check(folder, limit=0.25)
    run_check(folder, limit=1.0)
    if how == "copy":
        run_check(folder, contents=False)


def test_another_span_or_channel_of_a_training_file_is_other_audio(folder):
    change(folder, 0, audio_filepath="train0.wav", offset=0.49, duration=0.01)
    change(folder, 1, audio_filepath="train1.wav", channel=0)
    found = {(one.id, one.finding) for one in leakage(manifests(folder), {"train"}, get_normalizer("lower"))}
    assert found == {("test1", "leaked_audio"), ("train1", "in_evaluation")}, "train1 mixes all channels"


def test_long_texts_are_warnings_and_short_texts_are_notes(folder, capsys):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[0]["text"], rows[1]["text"] = LONG.upper(), "yes"
    write(folder, "train", rows)
    change(folder, 0, text=LONG)
    change(folder, 1, text="yes", speaker="train3")
    run_check(folder)
    assert capsys.readouterr().err.splitlines() == [
        "warning: test: 1 of 4 utterances: leaked_text, the first is test0: "
        f"the text is also in training, at {folder}/train.jsonl:1: '{LONG}'"
    ]
    console = wide_console()
    run_check(folder, console=console)
    assert heads(console) == [["split", "finding", "utterances", "%", "first"]]
    assert [row[:4] for row in cells(console)] == [
        ["test", "leaked_text", "1", "25.0"],
        ["test", "shared_speaker", "1", "25.0"],
        ["test", "shared_text", "1", "25.0"],
    ]


def test_a_test_set_of_long_texts_of_training_is_refused(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for i in range(4):
        rows[i]["text"] = f"{LONG} {i}"
        change(folder, i, text=rows[i]["text"])
    write(folder, "train", rows)
    with pytest.raises(ManifestError, match="the text of 4 of 4 utterances is also in training: test0"):
        run_check(folder)
    change(folder, 0, text="another text")
    run_check(folder)


def test_the_same_line_of_the_same_manifest_is_meant(folder):
    train = manifests(folder)["train"]
    check_leakage({"train": train, "dev": train}, max_leakage=0.0, contents=True, console=None, warns=True)


@pytest.mark.parametrize(
    ("text", "long"), [("one two three four five", False), ("a b c d e f", True), ("你" * 29, False), ("你" * 30, True)]
)
def test_long_texts_have_six_words_or_thirty_characters(text, long):
    assert is_long(text) == long


def test_the_speaker_has_several_names():
    assert speaker_of(Utterance("a", "a.wav", 1.0, tags={"spk": "x", "gender": "f"})) == "x"
    assert speaker_of(Utterance("a", "a.wav", 1.0, tags={"speaker": 7})) == "7"
    assert speaker_of(Utterance("a", "a.wav", 1.0, tags={"speaker": None})) is None


def test_training_refuses_test_audio_under_other_ids_before_the_model_is_loaded(toy_checkpoints, toy_corpus, tmp_path):
    corpus = {split: tmp_path / "c" / path.name for split, path in toy_corpus.items()}
    shutil.copytree(toy_corpus["train"].parent, tmp_path / "c")
    shutil.copy(tmp_path / "c" / "train0.wav", tmp_path / "c" / "test1.wav")
    rows = [json.loads(line) for line in corpus["test"].read_text().splitlines()]
    rows[1]["duration"] = json.loads(corpus["train"].read_text().splitlines()[0])["duration"]
    write(tmp_path / "c", "test", rows)
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_group"], corpus), "backbone.source=/nowhere"]
    with pytest.raises(ManifestError, match="the audio of 1 of 5 utterances is also in training: test1"):
        build(tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("corpus", "names"),
    [
        ("en_an4", ("train", "dev", "test")),
        ("en_digits_fsdd", ("train", "dev", "test")),
        ("en_digits_fsdd", ("spk_train", "spk_dev", "spk_test")),
        ("en_librispeech_mini", ("train", "dev", "test")),
        ("de_kerstin", ("train", "dev", "test")),
    ],
)
def test_real_corpora_are_not_refused(data_root, corpus, names):
    splits = dict(zip(("train", "dev", "test"), names, strict=True))
    read = {split: read_manifest(data_root / corpus / f"{name}.jsonl") for split, name in splits.items()}
    check_leakage(read, max_leakage=0.0, contents=True, console=None, warns=False)
