"""CSV and TSV with any names of columns, and the metadata of audiofolder."""

import pytest

from ssl_asr.data.formats.columns import guess
from ssl_asr.errors import ConfigError, ManifestError
from tests.data.sources import clip, reasons, run, text


def test_columns_are_guessed_and_said(tmp_path, capsys):
    for name in ("a", "b c"):
        clip(tmp_path / "clips" / f"{name}.wav")
    table = text(
        tmp_path / "Train.csv",
        '\ufeffPath;Sentence;client_id;age\r\na.wav;"He said ""hi""; é";ann;30\r\nb c.wav;ok;;\r\n',
    )
    found = run(table, tmp_path / "out")
    first, second = found["train"]
    assert first["text"] == 'He said "hi"; é'
    assert (first["speaker"], first["age"], first["id"]) == ("ann", "30", "clips/a")
    assert "speaker" not in second
    assert "age" not in second
    said = capsys.readouterr().err
    assert "columns audio=Path, text=Sentence, speaker=client_id" in said
    assert "kind=table" in said


def test_given_columns_come_before_guesses(tmp_path):
    clip(tmp_path / "a.wav", 2.0)
    table = text(tmp_path / "x.tsv", "file\ttext\tclean words\tfrom\tto\tpart\na.wav\tno\tyes\t0.5\t1.25\tvalidation\n")
    columns = {"text": "clean words", "offset": "from", "end": "to", "split": "part"}
    [row] = run(table, tmp_path / "out", columns=columns)["dev"]
    assert (row["text"], row["offset"], row["duration"], row["id"]) == ("yes", 0.5, 0.75, "a@0.5")
    assert row["text_column"] == "no"
    with pytest.raises(ConfigError, match=r"columns\.text: .* has no column 'nope': it has file, text"):
        run(table, tmp_path / "two", columns={"text": "nope"})


def test_a_table_without_names_takes_numbers(tmp_path):
    clip(tmp_path / "a.wav")
    table = text(tmp_path / "x.csv", "a.wav|hello there\n")
    with pytest.raises(ConfigError, match=r"no column of .* looks like the audio: it has a\.wav, hello there"):
        run(table, tmp_path / "out")
    [row] = run(table, tmp_path / "out", columns={"audio": "1", "text": "2"})["all"]
    assert row["text"] == "hello there"


def test_other_columns_do_not_break_the_manifest(tmp_path):
    clip(tmp_path / "a.wav")
    table = text(tmp_path / "x.csv", "audio,text,weight,task,lang,prompt\na.wav,hi,2,reading,en-US,p\n")
    [row] = run(table, tmp_path / "out")["all"]
    assert (row["weight_column"], row["task_column"], row["prompt"], row["lang"]) == ("2", "reading", "p", "en-US")


@pytest.mark.parametrize("column", ["audio", "text"])
def test_a_lacking_column_is_named(column):
    other = {"audio": "text", "text": "audio"}[column]
    with pytest.raises(
        ConfigError, match=rf"columns\.{column}: no column of t looks like the {column}: it has {other}, x"
    ):
        guess([other, "x"], {}, "t")


def test_bad_rows_are_named_with_their_lines(tmp_path):
    clip(tmp_path / "a.wav", 1.0)
    rows = [
        "audio,text,start,duration,id",
        "a.wav,good,0,0.5,1",
        "a.wav,too,many,0,1,2",
        "a.wav,few",
        ",no audio,0,1,4",
        "b.wav,missing,0,1,5",
        "a.wav,backward,0.5,-1,6",
        "a.wav,not a number,x,1,7",
        "a.wav,outside,0.5,0.7,8",
        "a.wav,,0,1,9",
        "a.wav,again,0,0.5,1",
        "a.wav,good,0,0.5,1",
        "",
        "a.wav,last,0.5,0.5,10",
    ]
    table = text(tmp_path / "x.csv", "\n".join(rows))
    found = run(table, tmp_path / "out")
    assert [row["id"] for row in found["all"]] == ["1", "1-2", "10"]
    assert reasons(found) == {
        f"{table}:3": "bad_row",
        f"{table}:4": "bad_row",
        "4": "no_audio",
        "5": "missing_file",
        "6": "bad_times",
        "7": "bad_times",
        "8": "outside",
        "9": "no_text",
        "1": "duplicate",
    }


def test_an_open_quotation_mark_is_an_error_with_its_line(tmp_path):
    clip(tmp_path / "a.wav")
    table = text(tmp_path / "x.csv", 'audio,text\na.wav,fine\na.wav,"open\na.wav,more\n')
    with pytest.raises(ManifestError, match=r"x\.csv:3: has a quotation mark that is not closed"):
        run(table, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_field_may_have_several_lines(tmp_path):
    clip(tmp_path / "a.wav")
    table = text(tmp_path / "x.csv", 'audio,text\r\na.wav,"one\r\ntwo"\r\nb.wav,gone\r\n')
    found = run(table, tmp_path / "out")
    assert found["all"][0]["text"] == "one\ntwo"
    assert found["skipped"][0]["where"] == f"{table}:4"


def test_quotation_marks_in_tsv_are_text_unless_they_match(tmp_path):
    clip(tmp_path / "a.wav")
    plain = text(tmp_path / "x.tsv", 'audio\ttext\na.wav\t"open\na.wav\tfine\n')
    assert run(plain, tmp_path / "one")["all"][0]["text"] == '"open'
    quoted = text(tmp_path / "y.tsv", 'audio\ttext\na.wav\t"a ""b"" c"\n')
    assert run(quoted, tmp_path / "two")["all"][0]["text"] == 'a "b" c'


def test_audio_may_lie_elsewhere(tmp_path):
    clip(tmp_path / "far" / "sub" / "a.wav")
    table = text(tmp_path / "near" / "x.csv", "audio,text\nsub/a.wav,hi\n")
    [row] = run(table, tmp_path / "out", audio_dir=str(tmp_path / "far"))["all"]
    assert row["audio_filepath"] == "../far/sub/a.wav"
    assert row["id"] == "sub/a"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_audiofolder_is_read_by_split(tmp_path, name):
    contents = {
        "metadata.csv": 'file_name,transcription\nx/a b.wav,"one, two"\n',
        "metadata.jsonl": '{"file_name": "x/a b.wav", "transcription": "one, two"}\n',
    }
    for split in ("train", "validation"):
        clip(tmp_path / "in" / split / "x" / "a b.wav")
        text(tmp_path / "in" / split / name, contents[name])
    found = run(tmp_path / "in", tmp_path / "out", kind="audiofolder")
    assert found["train"][0]["text"] == found["dev"][0]["text"] == "one, two"
    assert set(run(tmp_path / "in", tmp_path / "auto")) == {"train", "dev", "skipped"}
