"""Corpora as they are extracted: the kind is found, splits and speakers are kept, and losses are named."""

import pytest

from ssl_asr.data.kinds import KINDS
from ssl_asr.errors import ConfigError, ManifestError
from tests.data.sources import clip, lines, reasons, run, text


def rows_of(found, *keys):
    """Values of keys, by split and id."""
    return {
        (split, row["id"]): tuple(row.get(key) for key in keys)
        for split, rows in found.items()
        if split != "skipped"
        for row in rows
    }


def kind_said(capsys):
    return capsys.readouterr().err.split("kind=")[1].split(" ")[0]


def test_librispeech(tmp_path, capsys):
    root = tmp_path / "LibriSpeech"
    for split, speaker in (("train-clean-5", "19"), ("dev-clean-2", "84")):
        folder = root / split / speaker / "121"
        clip(folder / f"{speaker}-121-0000.flac")
        text(folder / f"{speaker}-121.trans.txt", f"{speaker}-121-0000 CHAPTER ONE\n{speaker}-121-0001 GONE\n")
    clip(root / "dev-clean-2" / "84" / "121" / "84-121-0009.flac")
    text(
        root / "SPEAKERS.TXT", ";ID |SEX| SUBSET\n19   | F | train-clean-100 | 25 | Ann\n84 | M | dev-clean | 8 | Bob\n"
    )
    found = run(tmp_path, tmp_path / "out")
    assert kind_said(capsys) == "librispeech"
    assert rows_of(found, "text", "speaker", "gender", "lang", "chapter") == {
        ("train-clean-5", "19-121-0000"): ("CHAPTER ONE", "19", "f", "en", "121"),
        ("dev-clean-2", "84-121-0000"): ("CHAPTER ONE", "84", "m", "en", "121"),
    }
    assert reasons(found) == {
        "19-121-0001": "missing_file",
        "84-121-0001": "missing_file",
        "84-121-0009": "no_transcript",
    }
    assert set(run(root / "dev-clean-2", tmp_path / "part")) == {"dev-clean-2", "skipped"}


def test_mls(tmp_path, capsys):
    root = tmp_path / "mls_german_opus"
    for split in ("train", "dev"):
        clip(root / split / "audio" / "10" / "20" / "10_20_000001.flac")
        text(root / split / "transcripts.txt", "10_20_000001\tguten tag\n10_20_000002\tfehlt\n")
    found = run(root, tmp_path / "out")
    assert kind_said(capsys) == "mls"
    expected = ("guten tag", "10", "20", "de")
    assert rows_of(found, "text", "speaker", "book", "lang") == {
        ("train", "10_20_000001"): expected,
        ("dev", "10_20_000001"): expected,
    }
    assert [skip["reason"] for skip in found["skipped"]] == ["missing_file", "missing_file"]


def test_common_voice(tmp_path, capsys):
    root = tmp_path / "cv-corpus" / "de"
    head = "client_id\tpath\tsentence\tage\tlocale\n"
    for split in ("train", "dev", "test", "validated"):
        clip(root / "clips" / f"cv_{split}.mp3", rate=16000)
        text(root / f"{split}.tsv", f'{head}ann\tcv_{split}.mp3\t"Ja, er sagte\t\tde\n')
    text(root / "clip_durations.tsv", "clip\tduration[ms]\n")
    found = run(tmp_path / "cv-corpus", tmp_path / "out")
    said = capsys.readouterr().err
    assert "kind=common_voice" in said
    assert "also has validated.tsv" in said
    assert rows_of(found, "text", "speaker", "lang") == {
        (split, f"cv_{split}"): ('"Ja, er sagte', "ann", "de") for split in ("train", "dev", "test")
    }
    assert [row["id"] for row in run(root / "validated.tsv", tmp_path / "more")["all"]] == ["clips/cv_validated"]


def test_fleurs(tmp_path, capsys):
    for split in ("train", "dev", "test"):
        clip(tmp_path / "de_de" / "audio" / split / "123.wav")
        text(tmp_path / "de_de" / f"{split}.tsv", '7\t123.wav\tDas "Haus".\tdas haus\td a s | h\t4000\tFEMALE\n1\tx\n')
    found = run(tmp_path / "de_de", tmp_path / "out")
    assert kind_said(capsys) == "fleurs"
    expected = ("das haus", 'Das "Haus".', "female", "de", "7")
    assert rows_of(found, "text", "text_raw", "gender", "lang", "sentence_id") == {
        (split, "123"): expected for split in ("train", "dev", "test")
    }
    assert [skip["reason"] for skip in found["skipped"]] == ["bad_row"] * 3


def test_voxpopuli(tmp_path, capsys):
    root = tmp_path / "transcribed_data" / "pl"
    names = ["id", "raw_text", "normalized_text", "speaker_id", "split", "gender", "is_gold_transcript", "accent"]
    name = "20130114-0900-PLENARY-1-pl_20130114-17:12:30_0"
    clip(root / "2013" / f"{name}.ogg", rate=16000)
    table = "\t".join(names) + f'\n{name}\tHe "said".\tsaid\t12\ttrain\tmale\tTrue\tNone\nx\ta\t\t1\ttrain\tm\tF\tN\n'
    text(root / "asr_train.tsv", table)
    found = run(tmp_path / "transcribed_data", tmp_path / "out")
    assert kind_said(capsys) == "voxpopuli"
    assert rows_of(found, "text", "raw_text", "speaker", "lang", "gender", "accent") == {
        ("train", name): ("said", 'He "said".', "12", "pl", "male", None)
    }
    assert reasons(found) == {"x": "missing_file"}


def test_ljspeech(tmp_path, capsys):
    root = tmp_path / "LJSpeech-1.1"
    clip(root / "wavs" / "LJ001-0001.wav", rate=22050)
    text(root / "metadata.csv", 'LJ001-0001|Mr. "X", 1|Mister "X", one\nLJ001-0002|a|b|c|d\n')
    found = run(tmp_path, tmp_path / "out")
    assert kind_said(capsys) == "ljspeech"
    assert rows_of(found, "text", "text_raw", "speaker") == {
        ("all", "LJ001-0001"): ('Mister "X", one', 'Mr. "X", 1', "LJ")
    }
    assert [skip["reason"] for skip in found["skipped"]] == ["bad_row"]


def test_tedlium(tmp_path, capsys):
    root = tmp_path / "TEDLIUM_release-3"
    stm = (
        ";; comment\n"
        "talk 1 talk 0.00 0.50 <NA> ignore_time_segment_in_scoring\n"
        "talk 1 Ann_B 0.50 1.25 <o,f0,female> it 's what they 're for 'cause we 'll go\n"
        "talk 1 Ann_B 1.50 9.00 <NA> too long\n"
        "nonsense\n"
    )
    clip(root / "legacy" / "train" / "sph" / "talk.wav", 2.0).rename(root / "legacy" / "train" / "sph" / "talk.sph")
    text(root / "legacy" / "train" / "stm" / "talk.stm", stm)
    text(root / "data" / "stm" / "talk.stm", stm)
    found = run(root, tmp_path / "out")
    said = capsys.readouterr().err
    assert "kind=tedlium" in said
    assert "the splits in legacy are read; data, which overlaps with them, is not" in said
    assert "1 segments are marked ignore_time_segment_in_scoring" in said
    assert rows_of(found, "text", "offset", "duration", "speaker") == {
        ("train", "talk-0000050-0000125"): ("it's what they're for 'cause we'll go", 0.5, 0.75, "Ann_B")
    }
    assert sorted(reasons(found).values()) == ["bad_row", "outside"]


def test_an4(tmp_path, capsys):
    root = tmp_path / "an4"
    clip(root / "wav" / "an4_clstk" / "fash" / "an251-fash-b.wav", 1.0)
    text(root / "wav" / "an4test_clstk" / "fcaw" / "an406-fcaw-b.raw", "x")
    text(root / "etc" / "an4_train.transcription", "<s> YES </s> (an251-fash-b)\nNO BRACKETS\n")
    text(root / "etc" / "an4_test.transcription", "RUBOUT G M (an406-fcaw-b)\nGONE (an1-x-b)\n")
    found = run(tmp_path, tmp_path / "out")
    assert kind_said(capsys) == "an4"
    assert rows_of(found, "text", "speaker") == {("train", "an251-fash-b"): ("YES", "fash")}
    assert sorted(reasons(found).values()) == ["bad_row", "missing_file", "no_header"]


@pytest.mark.parametrize(
    ("corpus", "splits"),
    [
        ("en_an4", {"train": 845, "dev": 103, "test": 130}),
        ("en_digits_fsdd", {"test": None}),
        ("st_asterisk", {"st_dev": 128, "st_test": 129, "st_train": 641}),
        ("noise", {"noise": 148}),
    ],
)
def test_manifests_of_real_corpora(data_root, tmp_path, corpus, splits):
    found = run(data_root / corpus, tmp_path / "out", require_text=corpus != "noise")
    for split, count in splits.items():
        given = lines(data_root / corpus / f"{split}.jsonl")
        assert len(found[split]) == len(given)
        assert count is None or len(given) == count
        for row, old in zip(found[split], given, strict=True):
            assert row["audio_filepath"] == str(data_root / corpus / old["audio_filepath"])
            left = {key: value for key, value in old.items() if key not in ("audio_filepath", "id") and value != 0.0}
            assert {key: row[key] for key in left} == left
            assert row["id"].startswith(old["id"])
    assert found["skipped"] == []


def test_kinds_of_the_command_are_those_that_are_read():
    from typing import get_args

    from ssl_asr.config.tools import CorpusFormat, SourceKind
    from ssl_asr.data.preparation import WRITERS

    assert set(get_args(SourceKind)) == {"auto", *KINDS}
    assert set(get_args(CorpusFormat)) == set(WRITERS)


def test_sources_that_fit_no_kind_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    clip(tmp_path / "audio" / "a.wav")
    with pytest.raises(ManifestError, match="no such file or folder"):
        run(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ManifestError, match="has no audio, no table and no manifest"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ManifestError, match="is no data folder of Kaldi. It looks like kind=folder"):
        run(tmp_path / "audio", tmp_path / "out", kind="kaldi")
    text(tmp_path / "audio" / "a.txt", "a")
    with pytest.raises(ManifestError, match="is no table. It looks like kind=folder"):
        run(tmp_path / "audio", tmp_path / "out", kind="table")
    with pytest.raises(ConfigError, match="subset: changes nothing for these inputs"):
        run(tmp_path / "audio", tmp_path / "out", subset="de")
    with pytest.raises(ConfigError, match=r"columns\.text: changes nothing for these inputs"):
        run(tmp_path / "audio", tmp_path / "out", columns={"text": "x"})
    with pytest.raises(ConfigError, match=r"columns\.speaker: is 'x', and audio beside transcripts has no columns"):
        run(tmp_path / "audio", tmp_path / "out", columns={"speaker": "x"})
    assert not (tmp_path / "out").exists()
