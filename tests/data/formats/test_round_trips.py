"""What is written in a format is read again as it was, and what a format cannot hold is said."""

import json

import pytest

from ssl_asr.errors import ManifestError, UserErrors
from tests.data.sources import clip, lines, reasons, run, text

FORMATS = ["manifest", "nemo", "kaldi", "speechbrain_csv", "speechbrain_json", "lhotse", "audiofolder"]
TAGS = {"speaker": "ann", "lang": "de", "gender": "f"}


def manifest(path, rows):
    return text(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def whole(tmp_path):
    """A manifest of two splits whose rows are whole files, with lengths that no short decimal number has."""
    rows = []
    for i, words in enumerate(['größer, "ja"; ja', "it's|a test", "日本語 テキスト"]):
        audio = clip(tmp_path / "my audio" / f"clip {i}.flac", 1 / 3 + i / 7, seed=i)
        own = {"audio_filepath": str(audio), "text": words, "id": f"utt-{i}", **TAGS}
        rows.append(own | ({"speaker": "bob"} if i == 1 else {}))
    manifest(tmp_path / "in" / "train.jsonl", rows[:2])
    manifest(tmp_path / "in" / "test.jsonl", rows[2:])
    return tmp_path / "in"


@pytest.fixture
def parts(tmp_path):
    """A manifest whose rows are parts of one file."""
    audio = str(clip(tmp_path / "long.wav", 3.0))
    times = [(0.0, 1 / 3), (0.1, 0.2), (1 / 3, 0.7), (1.23456789, 1.0000001)]
    rows = [
        {"audio_filepath": audio, "text": f"part {i}", "id": f"p{i}", "offset": offset, "duration": duration, **TAGS}
        for i, (offset, duration) in enumerate(times)
    ]
    manifest(tmp_path / "in" / "train.jsonl", rows)
    return tmp_path / "in"


def plain(found, *, paths=True):
    """Rows by split and id."""
    left_out = set() if paths else {"audio_filepath"}
    return {
        split: {row["id"]: {k: v for k, v in row.items() if k not in left_out} for row in rows}
        for split, rows in found.items()
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_files_come_back_as_they_were(whole, tmp_path, kind, capsys):
    first = run(whole, tmp_path / "first")
    run(tmp_path / "first", tmp_path / kind, kind="manifest", format=kind)
    capsys.readouterr()
    sources = sorted((tmp_path / kind).glob("*.*")) if kind.startswith("speechbrain") else tmp_path / kind
    if kind.startswith("speechbrain"):
        sources = [path for path in sources if path.name not in ("skipped.jsonl", ".prepare.json")]
    second = run(sources, tmp_path / "second")
    paths = kind != "audiofolder"
    assert plain(second, paths=paths) == plain(first, paths=paths)
    assert "kind=" + {"nemo": "manifest"}.get(kind, kind) in capsys.readouterr().err


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "audiofolder"])
def test_parts_of_a_recording_come_back_as_they_were(parts, tmp_path, kind):
    first = run(parts, tmp_path / "first")
    run(parts, tmp_path / kind, format=kind)
    name = {"speechbrain_csv": "train.csv", "speechbrain_json": "train.json"}.get(kind, "")
    second = run(tmp_path / kind / name, tmp_path / "second")
    assert plain(second) == plain(first)


def test_parts_of_a_recording_are_cut_for_audiofolder(parts, tmp_path, capsys):
    import soundfile

    run(parts, tmp_path / "folder", format="audiofolder")
    assert "4 parts of recordings in train are cut" in capsys.readouterr().err
    found = run(tmp_path / "folder", tmp_path / "second")
    assert [row["text"] for row in found["train"]] == [f"part {i}" for i in range(4)]
    samples = [soundfile.info(tmp_path / "second" / row["audio_filepath"]).frames for row in found["train"]]
    assert samples == pytest.approx([16000 / 3, 3200, 11200, 16000], abs=2)
    assert all("offset" not in row for row in found["train"])


def test_audiofolder_holds_its_audio_without_a_copy(whole, tmp_path):
    run(whole, tmp_path / "out", format="audiofolder")
    [row] = lines(tmp_path / "out" / "test" / "metadata.jsonl")
    audio = tmp_path / "out" / "test" / row["file_name"]
    assert audio.samefile(tmp_path / "my audio" / "clip 2.flac")


def test_audio_below_the_output_folder_has_relative_paths(tmp_path):
    clip(tmp_path / "a" / "x.wav")
    text(tmp_path / "a" / "x.txt", "words")
    [row] = run(tmp_path / "a", tmp_path)["all"]
    assert row["audio_filepath"] == "a/x.wav"


def test_lost_keys_and_changed_ids_are_said(tmp_path, capsys):
    audio = str(clip(tmp_path / "x.wav", channels=2))
    row = {"audio_filepath": audio, "text": "a", "id": "a b", "channel": 1, "take": 3, "book": "b"}
    run(manifest(tmp_path / "m.jsonl", [row]), tmp_path / "kaldi", format="kaldi")
    said = capsys.readouterr().err
    assert "1 ids have spaces, which are written as _" in said
    assert "these keys have no file and are left out: book, channel, take" in said
    run(manifest(tmp_path / "n.jsonl", [row]), tmp_path / "csv", format="speechbrain_csv")
    assert "these keys become text: take" in capsys.readouterr().err
    twice = manifest(tmp_path / "o.jsonl", [row, row | {"id": "a_b"}])
    with pytest.raises(ManifestError, match="a_b: is the id of two utterances without spaces"):
        run(twice, tmp_path / "twice", format="kaldi")
    assert [path.name for path in (tmp_path / "twice").iterdir()] == ["skipped.jsonl"]


# Kaldi --------------------------------------------------------------------------------------------------------------


def test_kaldi_files_are_sorted_and_have_all_that_kaldi_needs(whole, tmp_path):
    run(whole, tmp_path / "out", format="kaldi")
    folder = tmp_path / "out" / "train"
    assert {path.name for path in folder.iterdir()} == {
        *("wav.scp", "text", "utt2spk", "spk2utt", "utt2dur", "utt2lang", "spk2gender"),
    }
    assert (folder / "utt2spk").read_text() == "utt-0 ann\nutt-1 bob\n"
    assert (folder / "spk2utt").read_text() == "ann utt-0\nbob utt-1\n"
    assert (folder / "wav.scp").read_text().splitlines()[0] == f"utt-0 {tmp_path}/my audio/clip 0.flac"


def kaldi(folder, **files):
    for name, content in files.items():
        text(folder / name.replace("_", "."), content) if name == "wav_scp" else text(folder / name, content)
    return folder


def test_pipes_of_kaldi_are_refused(tmp_path):
    marker = tmp_path / "marker"
    scp = f"a touch {marker} |\nb | cat\nc {clip(tmp_path / 'c.wav')}\n"
    with pytest.raises(UserErrors) as caught:
        run(kaldi(tmp_path / "in", wav_scp=scp, text="a x\nb y\nc z\n"), tmp_path / "out")
    assert "wav.scp:1: 'a' is a pipe, which would run a program" in str(caught.value)
    assert "wav.scp:2: 'b' is a pipe" in str(caught.value)
    assert not marker.exists()


def test_what_kaldi_files_lack_is_named(tmp_path):
    clip(tmp_path / "egs" / "wav" / "r 1.wav", 2.0)
    scp = "r1 wav/r 1.wav\r\nr2 x.ark:123\r\nr3\r\nr4 none.wav\r\n"
    segments = "u1 r1 0.5 1.5\nu2 r1 1.5 -1\nu3 r1 0 1\nu4 r9 0 1\nu5 r4 0 1\nu6 r1 1.5 3\n"
    folder = kaldi(
        tmp_path / "egs" / "data" / "dev",
        wav_scp=scp,
        segments=segments,
        text="u1 one  two\nu2\tend\nu4 x\nu5 y\nu6 z\nu7 extra\n",
        utt2spk="u1 ann\nu2 u2\n",
    )
    found = run(folder.parent, tmp_path / "out")
    rows = [(r["id"], r.get("offset"), r["duration"], r["text"], r.get("speaker")) for r in found["dev"]]
    assert rows == [("u1", 0.5, 1.0, "one  two", "ann"), ("u2", 1.5, 0.5, "end", None)]
    assert reasons(found) == {
        "r2": "archive",
        "r3": "no_audio",
        "u3": "no_text",
        "u4": "no_audio",
        "u5": "missing_file",
        "u6": "outside",
        "u7": "no_audio",
    }


@pytest.mark.parametrize("line", ["u1 r1 1 0", "u1 r1 x 1", "u1 r1", "u1 r1 0 nan", "u1 r1 -1 2", "u1 r1 0 1e400"])
def test_wrong_segments_of_kaldi_are_errors(tmp_path, line):
    scp = f"r1 {clip(tmp_path / 'c.wav')}\n"
    folder = kaldi(tmp_path / "in", wav_scp=scp, segments=f"{line}\n", text="u1 a\n")
    with pytest.raises(ManifestError, match="segments:1: 'u1' is .*, expected RECORDING START END"):
        run(folder, tmp_path / "out")


def test_repeated_names_of_kaldi_are_errors(tmp_path):
    scp = f"r1 {clip(tmp_path / 'c.wav')}\n"
    with pytest.raises(ManifestError, match="text:2: 'r1' is already at line 1"):
        run(kaldi(tmp_path / "in", wav_scp=scp, text="r1 a\nr1 b\n"), tmp_path / "out")


# SpeechBrain and lhotse -----------------------------------------------------------------------------------------------


def test_speechbrain_starts_and_stops_are_samples(tmp_path):
    clip(tmp_path / "a.wav", 2.0, rate=16000)
    records = {
        "u1": {"wav": {"file": "{data_root}/a.wav", "start": 4000, "stop": 12000}, "words": "one", "spk_id": "ann"},
        "u2": {"wav": "$data_root/a.wav", "length": 2.0, "words": "two"},
        "u3": [],
    }
    found = run(text(tmp_path / "valid.json", json.dumps(records, indent=1)), tmp_path / "out")
    first, second = found["dev"]
    assert (first["offset"], first["duration"], first["speaker"]) == (0.25, 0.5, "ann")
    assert (second["duration"], second["text"]) == (2.0, "two")
    assert reasons(found) == {"u3": "bad_row"}
    table = text(tmp_path / "t.csv", "ID,duration,wav,start,stop,wrd\nu1,0.5,a.wav,4000,12000,one\n")
    [row] = run(table, tmp_path / "csv")["t"]
    assert (row["offset"], row["duration"]) == (0.25, 0.5)


def test_speechbrain_takes_what_is_written(parts, tmp_path):
    run(parts, tmp_path / "out", format="speechbrain_json")
    records = json.loads((tmp_path / "out" / "train.json").read_text())
    assert records["p3"]["wav"]["start"] == round(1.23456789 * 8000)
    assert records["p3"]["wav"]["stop"] - records["p3"]["wav"]["start"] == 8000
    assert records["p3"]["spk_id"] == "ann"


def test_lhotse_takes_what_is_written(parts, tmp_path):
    import lhotse

    run(parts, tmp_path / "out", format="lhotse")
    recordings = lhotse.load_manifest(tmp_path / "out" / "recordings_train.jsonl.gz")
    supervisions = lhotse.load_manifest(tmp_path / "out" / "supervisions_train.jsonl.gz")
    lhotse.validate_recordings_and_supervisions(recordings, supervisions)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    cuts = cuts.trim_to_supervisions(keep_overlapping=False)
    assert [cut.supervisions[0].text for cut in cuts] == [f"part {i}" for i in range(4)]
    (tmp_path / "cuts").mkdir()
    cuts.to_file(tmp_path / "cuts" / "cuts_test.jsonl.gz")
    again = run(tmp_path / "cuts", tmp_path / "again")["test"]
    assert [(row["text"], row["duration"]) for row in again] == [
        (row["text"], pytest.approx(row["duration"])) for row in run(parts, tmp_path / "first")["train"]
    ]


def test_recordings_of_lhotse_that_are_no_files_are_named(tmp_path):
    from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    def recording(name, kind, source, **more):
        sources = [AudioSource(type=kind, channels=[0], source=source)]
        return Recording(id=name, sources=sources, sampling_rate=8000, num_samples=4000, duration=0.5, **more)

    file = str(clip(tmp_path / "a.wav"))
    speed = [{"name": "Speed", "kwargs": {"factor": 1.1}}]
    made = [
        recording("a", "file", file),
        recording("b", "command", "touch /tmp/x"),
        recording("c", "file", file, transforms=speed),
    ]
    segments = [SupervisionSegment(id=f"s{n}", recording_id=n, start=0, duration=0.5, text="x") for n in "abcd"]
    (tmp_path / "in").mkdir()
    RecordingSet.from_recordings([*made, recording("e", "file", file)]).to_file(tmp_path / "in" / "recordings.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file(tmp_path / "in" / "supervisions.jsonl.gz")
    found = run(tmp_path / "in", tmp_path / "out")
    assert [row["id"] for row in found["all"]] == ["sa"]
    assert reasons(found) == {"sb": "not_a_file", "sc": "effects", "sd": "no_audio", "e": "no_text"}


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("kaldi", "speechbrain_csv")])
def test_several_references_come_back(tmp_path, kind):
    audio = str(clip(tmp_path / "x.wav"))
    row = {"audio_filepath": audio, "text": "colour", "references": ["color", "colour"], "id": "a"}
    run(manifest(tmp_path / "all.jsonl", [row]), tmp_path / kind, format=kind)
    source = tmp_path / kind / "all.json" if kind.startswith("speechbrain") else tmp_path / kind
    [found] = run(source, tmp_path / "second")["all"]
    assert (found["text"], found["references"]) == ("colour", ["color"])


@pytest.mark.parametrize(
    ("kind", "said"), [("kaldi", "are left out: references"), ("speechbrain_csv", "become text: references")]
)
def test_formats_that_cannot_hold_references_say_so(tmp_path, kind, said, capsys):
    row = {"audio_filepath": str(clip(tmp_path / "x.wav")), "text": "colour", "references": ["color"], "id": "a"}
    run(manifest(tmp_path / "m.jsonl", [row]), tmp_path / kind, format=kind)
    assert said in capsys.readouterr().err
