"""Folders of audio with transcripts beside each file."""

import pytest

from ssl_asr.data.formats.beside import read_folder
from ssl_asr.data.formats.rows import ReadOptions, Segment
from ssl_asr.data.formats.subtitles import read_subtitles
from ssl_asr.data.formats.textgrid import read_textgrid, segments_of
from ssl_asr.errors import ManifestError
from tests.data.sources import clip, reasons, run, text

SRT = (
    "1\r\n00:00:00,100 --> 00:00:00,400\r\n<i>Good</i> morning,\r\nDr. Ü.\r\n\r\n"
    "2\r\n00:00:00,5 --> 00:00:00,900\r\n{\\an8}again\r\n"
)


def test_plain_texts_of_any_form_become_rows(tmp_path):
    folder = tmp_path / "my talks"
    for name in ("a b", "é/ü", "one/same", "two/same", "loud"):
        clip(folder / f"{name}.{'WAV' if name == 'loud' else 'flac'}")
    text(folder / "a b.txt", "\ufefffirst line\r\nsecond line\r\n")
    text(folder / "é" / "ü.txt", "größer, œuvre", "utf-16")
    text(folder / "one" / "same.lab", "one")
    text(folder / "two" / "same.TXT", "two")
    text(folder / "loud.WAV.txt", "named after the file")
    found = run(folder, tmp_path / "out")
    texts = {row["id"]: row["text"] for row in found["all"]}
    assert texts == {
        "a b": "first line second line",
        "é/ü": "größer, œuvre",
        "one/same": "one",
        "two/same": "two",
        "loud": "named after the file",
    }
    assert found["skipped"] == []
    assert all(row["duration"] == 0.5 for row in found["all"])


def test_whatever_is_left_out_is_named(tmp_path):
    folder = tmp_path / "in"
    for name in ("good", "no_text", "empty_text", "latin", "htk", "twice"):
        clip(folder / f"{name}.wav")
    clip(folder / "twice.flac")
    text(folder / "zero.wav", "")
    text(folder / "page.wav", "<html>not found</html>")
    for name in ("good", "zero", "page", "twice", "only_text"):
        text(folder / f"{name}.txt", "words")
    text(folder / "empty_text.txt", "\n \n")
    text(folder / "latin.txt", "stra\xdfe", "latin-1")
    text(folder / "htk.lab", "0 1000000 sil\n1000000 2000000 ah\n")
    text(folder / "README.txt", "about")
    found = run(folder, tmp_path / "out")
    assert [row["id"] for row in found["all"]] == ["good", "twice"]
    assert reasons(found) == {
        "no_text": "no_transcript",
        "latin": "bad_transcript",
        "htk": "bad_transcript",
        "only_text.txt": "no_audio",
        "zero": "empty_file",
        "page": "not_audio",
        "empty_text": "no_text",
        "twice.wav": "duplicate",
    }


def test_cues_become_rows_that_read_the_same_file(tmp_path, capsys):
    clip(tmp_path / "in" / "talk.wav", 1.0)
    text(tmp_path / "in" / "talk.srt", SRT)
    found = run(tmp_path / "in", tmp_path / "out")
    times = [(row["id"], row.get("offset"), row["duration"], row["text"]) for row in found["all"]]
    assert times == [
        ("talk@0.100-0.400", 0.1, 0.3, "Good morning, Dr. Ü."),
        ("talk@0.500-0.900", 0.5, 0.4, "again"),
    ]
    assert {row["audio_filepath"] for row in found["all"]} == {"../in/talk.wav"}
    assert "kind=folder" in capsys.readouterr().err


def test_segments_can_be_kept_in_one_row(tmp_path):
    clip(tmp_path / "in" / "talk.wav", 1.0)
    text(
        tmp_path / "in" / "talk.vtt", "WEBVTT\n\nNOTE a\nb\n\nx\n00:00.100 --> 00:00.400 line:0\n<v Ann>A &amp; b</v>\n"
    )
    [row] = run(tmp_path / "in", tmp_path / "out", segments="keep")["all"]
    assert row["text"] == "A & b"
    assert row["segments"] == [{"start": 0.1, "end": 0.4, "text": "A & b"}]
    assert row["duration"] == 1.0
    [segment] = run(tmp_path / "in", tmp_path / "rows")["all"]
    assert segment["speaker"] == "Ann"


def test_times_out_of_order_or_outside_are_named(tmp_path):
    clip(tmp_path / "in" / "talk.wav", 1.0)
    cues = [(0.5, 0.9, "second"), (0.0, 0.4, "first"), (0.8, 0.7, "backward"), (0.9, 1.5, "over"), (3, 4, "after")]
    blocks = [
        f"{i}\n00:00:{a:06.3f} --> 00:00:{b:06.3f}\n{t}\n".replace(".", ",") for i, (a, b, t) in enumerate(cues, 1)
    ]
    text(tmp_path / "in" / "talk.srt", "\n".join([*blocks, "6\n00:00:x --> 00:00:y\nbroken\n"]))
    found = run(tmp_path / "in", tmp_path / "out")
    assert [row["text"] for row in found["all"]] == ["first", "second"]
    assert sorted(reasons(found).values()) == ["bad_times", "bad_times", "outside", "outside"]


LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "transcript"
        xmin = 0
        xmax = 1.0
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 0.75 ! a comment
            text = "he said ""yes"" é"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.0
        points: size = 1
        points [1]:
            number = 0.5
            mark = "click"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.0
<exists>
2
"IntervalTier"
"transcript"
0
1.0
2
0
0.25
""
0.25
0.75
"he said ""yes"" é"
"TextTier"
"clicks"
0
1.0
1
0.5
"click"
"""


@pytest.mark.parametrize("content", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_textgrids_of_both_forms_are_read(tmp_path, content, encoding):
    [tier] = read_textgrid(text(tmp_path / "a.TextGrid", content, encoding))
    assert segments_of([tier], None)[0] == [Segment(0.25, 0.75, 'he said "yes" é')]


def test_textgrids_are_read_as_praatio_writes_them(tmp_path):
    from praatio import textgrid

    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("Ann", [(0.0, 0.5, "one 2 three"), (0.5, 1.0, "four")], 0, 2))
    grid.addTier(textgrid.IntervalTier("Bob", [(0.75, 1.5, "five")], 0, 2))
    for form in ("long_textgrid", "short_textgrid"):
        path = tmp_path / f"{form}.TextGrid"
        grid.save(str(path), format=form, includeBlankSpaces=True)
        segments, how = segments_of(read_textgrid(path), None)
        assert [(s.speaker, s.start, s.end, s.text) for s in segments] == [
            ("Ann", 0.0, 0.5, "one 2 three"),
            ("Ann", 0.5, 1.0, "four"),
            ("Bob", 0.75, 1.5, "five"),
        ]
        assert how == "one tier for each speaker"


def test_words_are_joined_up_to_pauses_where_there_is_nothing_else(tmp_path):
    from ssl_asr.data.formats.textgrid import Tier

    words = Tier(
        "words", [Segment(0.0, 0.2, "a"), Segment(0.2, 0.3, "sp"), Segment(0.3, 0.5, "b"), Segment(1.0, 1.2, "c")]
    )
    phones = Tier("phones", [Segment(0.0, 0.2, "AH")])
    assert segments_of([phones, words], None)[0] == [Segment(0.0, 0.5, "a b"), Segment(1.0, 1.2, "c")]
    assert segments_of([phones, words], "phones")[0] == [Segment(0.0, 0.2, "AH")]
    fluent = Tier("words", [Segment(i, i + 0.875 - 0.125 * (i == 19), f"w{i}") for i in range(70)])
    parts = segments_of([fluent], "words")[0]
    assert " ".join(part.text for part in parts) == " ".join(f"w{i}" for i in range(70))
    assert [(part.start, part.end) for part in parts] == [(0, 19.75), (20, 44.875), (45, 69.875)]
    with pytest.raises(ValueError, match="no tier 'x'"):
        segments_of([phones, words], "x")


@pytest.mark.parametrize("content", ["", "abc", LONG[:200], SHORT.replace('\n2\n"Int', '\n9\n"Int')])
def test_damaged_textgrids_are_refused(tmp_path, content):
    with pytest.raises(ManifestError, match="not a whole TextGrid"):
        read_textgrid(text(tmp_path / "a.TextGrid", content))


def test_subtitles_are_read_as_pysubs2_reads_them(tmp_path):
    import pysubs2

    path = text(tmp_path / "a.srt", SRT)
    cues, faults = read_subtitles(path)
    expected = pysubs2.load(str(path))
    assert faults == []
    assert [(round(1000 * cue.start), cue.text) for cue in cues] == [
        (event.start, " ".join(event.plaintext.split())) for event in expected if event.start != 500
    ] + [(500, "again")]


def test_words_of_the_aligner_cut_a_long_recording(tmp_path, capsys):
    from ssl_asr.inference.subtitles import render
    from ssl_asr.metrics.report import Prediction
    from ssl_asr.types import Word

    audio = clip(tmp_path / "in" / "talk.wav", 45.0, rate=1000)
    text(tmp_path / "in" / "talk.txt", "so many words")
    [row] = run(tmp_path / "in", tmp_path / "long")["all"]
    assert row["duration"] == 45.0
    assert "1 recordings are longer than 40 s and have one text without times, such as talk." in capsys.readouterr().err
    words = [Word(word, start, start + 1.0, 1.0) for start, word in ((1.0, "so"), (2.0, "many"), (44.0, "words"))]
    made = Prediction("talk", "", "so many words", 0.0, 45.0, str(audio), words=words)
    text(tmp_path / "in" / "talk.TextGrid", render([made], "textgrid"))
    found = run(tmp_path / "in", tmp_path / "kept", columns={"tier": "words"}, segments="keep")
    assert [segment["text"] for segment in found["all"][0]["segments"]] == ["so many", "words"]
    assert "without times" not in capsys.readouterr().err
    found = run(tmp_path / "in", tmp_path / "out", columns={"tier": "words"})
    assert [(r["offset"], r["duration"], r["text"]) for r in found["all"]] == [
        (1.0, 2.0, "so many"),
        (44.0, 1.0, "words"),
    ]


def test_folders_behind_links_and_several_transcripts(tmp_path):
    clip(tmp_path / "far" / "a.wav")
    text(tmp_path / "far" / "a.txt", "plain")
    text(tmp_path / "far" / "a.srt", "1\n00:00:00,000 --> 00:00:00,400\ntimed\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    found = read_folder(tmp_path / "in", ReadOptions())
    assert [(row.id, row.text) for row in found.rows] == [("link/a@0.000-0.400", "timed")]
    assert found.skips == []
    assert found.notes == ["1 recordings have several transcripts, of which one is read: link/a.srt of 2"]


def test_folders_give_splits_and_speakers(tmp_path):
    for split, speaker in (("train", "ann"), ("test", "bob")):
        clip(tmp_path / split / speaker / "a.wav")
        text(tmp_path / split / speaker / "a.txt", "hello")
    found = read_folder(tmp_path, ReadOptions(columns={"speaker": "folder"}))
    assert {(row.split, row.speaker, row.id) for row in found.rows} == {
        ("train", "ann", "train/ann/a"),
        ("test", "bob", "test/bob/a"),
    }
