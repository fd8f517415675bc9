"""Files of transcripts: formats, names, and what is refused before a model is loaded."""

import json
import os
import re
import tempfile
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.errors import ConfigError
from ssl_asr.inference.outputs import Outputs, formats_of, has_times
from ssl_asr.inference.subtitles import FORMATS
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import written_whole
from ssl_asr.types import Segment, Word

WORDS = [Word("one", 0.5, 0.8, 0.9), Word("two", 1.0, 1.25, 0.5)]
ROW = Prediction("u1", "", "one two", -0.1, 4.0, "/talks/a.wav", words=WORDS)
LATER = Prediction("u2", "", "four", -0.2, 2.0, "/talks/a.wav", offset=61.0, words=[Word("four", 0.25, 1.0, 0.4)])
OTHER = Prediction("u3", "", "no times", -0.2, 2.5, "/talks/b.wav")
ELSEWHERE = Prediction("u4", "", "other", 0.0, 1.0, "/other/b.wav")
LEFT = Prediction("u5", "", "left", 0.0, 1.0, "/talks/two.wav", channel=0)
RIGHT = Prediction("u6", "", "right", 0.0, 1.0, "/talks/two.wav", channel=1)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write(output, kinds, rows):
    Outputs(output, kinds, rows).write(rows)


def test_format_is_named_by_the_suffix_or_the_option():
    assert formats_of(None, None) == ["text"]
    assert formats_of("talk.TextGrid", None) == ["textgrid"]
    assert formats_of("talk.json", None) == ["json"]
    assert formats_of("folder", "vtt") == ["vtt"]
    assert formats_of("folder", ["srt", "vtt", "srt"]) == ["srt", "vtt"]
    with pytest.raises(ConfigError, match="does not say which format to write"):
        formats_of("talk.doc", None)
    with pytest.raises(ConfigError, match="standard output takes one format"):
        formats_of(None, ["srt", "vtt"])
    with pytest.raises(ConfigError, match=r"talk.srt is the name of one file"):
        formats_of("talk.srt", ["srt", "vtt"])
    assert has_times(["text", "json"])
    assert not has_times(["text", "jsonl"])


def test_files_have_the_style_of_subtitles(here):
    Outputs("a.srt", ["srt"], [ROW]).write([ROW], SubtitleStyle(max_line_width=3))
    assert "one\ntwo\n" in (here / "a.srt").read_text()


def test_every_format_can_be_written(here):
    for kind in FORMATS:
        write(f"out_{kind}", [kind, "text"], [ROW, OTHER])
        assert len(written(here / f"out_{kind}")) >= 1 + (kind != "text")


def test_subtitles_get_one_file_per_recording(here):
    write("out", ["srt"], [LATER, ROW, OTHER, ELSEWHERE])
    assert written(here / "out") == ["a.srt", "other_b.srt", "talks_b.srt"]
    text = (here / "out" / "a.srt").read_text()
    assert text.index("one two") < text.index("four")
    write("one.srt", ["srt"], [LATER, ROW])
    assert (here / "one.srt").read_text() == text
    with pytest.raises(ConfigError, match="2 recordings"):
        Outputs("two.srt", ["srt"], [ROW, OTHER])
    assert not (here / "two.srt").exists()


def test_channels_are_never_merged(here):
    write("out", ["srt", "textgrid"], [LEFT, RIGHT])
    assert written(here / "out") == ["two.ch0.TextGrid", "two.ch0.srt", "two.ch1.TextGrid", "two.ch1.srt"]
    assert "right" not in (here / "out" / "two.ch0.srt").read_text()
    for output in (None, "two.vtt"):
        with pytest.raises(ConfigError, match="2 recordings"):
            Outputs(output, ["vtt"], [LEFT, RIGHT])


def test_several_formats_are_written_from_the_same_rows(here):
    write("out", ["jsonl", "srt", "json", "ctm", "text"], [OTHER, LATER, ROW])
    names = ["a.json", "a.srt", "b.json", "b.srt", "transcripts.ctm", "transcripts.jsonl", "transcripts.txt"]
    assert written(here / "out") == names
    rows = [json.loads(line) for line in (here / "out" / "transcripts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["u3", "u1", "u2"]


def test_json_has_segments_with_times_of_the_recording(here):
    parts = Prediction("u", "", "x y", 0.0, 9.0, "a.wav", offset=10.0, segments=[Segment("x", 1.0, 2.0, 1.0)] * 2)
    write("a.json", ["json"], [LATER, ROW])
    made = json.loads((here / "a.json").read_text())
    assert made["text"] == "one two four"
    assert [(part["text"], part["start"], part["end"]) for part in made["segments"]] == [
        ("one two", 0.5, 1.25),
        ("four", 61.25, 62.0),
    ]
    assert made["segments"][1]["words"][0]["start"] == 61.25
    write("b.json", ["json"], [parts])
    assert [part["start"] for part in json.loads((here / "b.json").read_text())["segments"]] == [11.0, 11.0]
    chinese = [Prediction("u", "", text, 0.0, 1.0, "c.wav", offset=n, lang="zh") for n, text in enumerate("你好")]
    write("c.json", ["json"], chinese)
    assert json.loads((here / "c.json").read_text())["text"] == "你好"


@pytest.mark.parametrize("kind", ["text", "jsonl", "ctm", "srt", "vtt", "textgrid"])
def test_rows_of_a_recording_are_in_order_of_time_in_every_format(here, capsys, kind):
    def places(text):
        return list(dict.fromkeys(found.group() for found in re.finditer("one|four", text)))

    write("out", [kind, "json"], [LATER, ROW])
    folder = here / "out"
    [path] = [folder / name for name in written(folder) if not name.endswith(".json")]
    assert places(path.read_text()) == ["one", "four"]
    write(None, [kind], [LATER, ROW])
    assert places(capsys.readouterr().out) == ["one", "four"]


def test_names_do_not_depend_on_which_recordings_fail(here):
    Outputs("out", ["srt"], [ROW, OTHER, ELSEWHERE]).write([OTHER])
    assert written(here / "out") == ["talks_b.srt"]


def test_summary_and_progress_are_beside_a_file_and_in_a_folder(here):
    one = Outputs("o.jsonl", ["jsonl"], [ROW], with_summary=True)
    assert (str(one.summary), str(one.progress)) == ("o.jsonl.summary.json", "o.jsonl.progress.jsonl")
    several = Outputs(".", ["srt"], [ROW], with_summary=True)
    assert (str(several.summary), str(several.progress)) == ("summary.json", "progress.jsonl")
    named = Prediction("u", "", "x", 0.0, 1.0, "summary.wav")
    assert [path.name for path in Outputs("o", ["json"], [named], with_summary=True).files()] == [
        "summary.json",
        "progress.jsonl",
        "summary-2.json",
    ]


def test_recording_with_gz_in_its_name_is_not_compressed(here):
    write("out", ["srt"], [Prediction("u", "", "x", 0.0, 1.0, "talk.gz.wav"), ROW])
    assert "x" in (here / "out" / "talk.gz.srt").read_text()


def refusals(here):
    (here / "file").write_text("")
    (here / "folder").mkdir()
    (here / "closed").mkdir()
    (here / "link.jsonl").symlink_to("sub/a.wav")
    soundfile.write(here / "old.wav", np.zeros(160), 16000)
    (here / "train.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 1.0, "text": "x"}\n')
    os.mkfifo(here / "pipe.jsonl")
    return {
        "folder for a file": ("folder", ["jsonl"], "is a folder, and format=jsonl is one file"),
        "slash for a file": ("new/", ["text"], "is a folder"),
        "file for a folder": ("file", ["srt"], "is a file, and a folder is needed"),
        "file for several formats": ("file", ["srt", "vtt"], "is a file, and a folder is needed"),
        "file in the way": ("file/o.jsonl", ["jsonl"], "file is not a folder"),
        "input audio": ("sub/a.wav", ["jsonl"], "is an input"),
        "input by another road": ("sub/../sub/a.wav", ["jsonl"], "is an input"),
        "link to input": ("link.jsonl", ["jsonl"], "is an input"),
        "input manifest": ("mine.jsonl", ["jsonl"], "is an input"),
        "another manifest": ("train.jsonl", ["jsonl"], "holds a manifest"),
        "other audio": ("old.wav", ["text"], "holds audio"),
        "no file": ("pipe.jsonl", ["jsonl"], "is not a regular file"),
        "device": ("/dev/null", ["jsonl"], "is not a regular file"),
        "long folder": ("x" * 300 + "/o.srt", ["srt"], "is too long"),
        "no place for files": ("/proc/o.srt", ["srt"], "/proc: No such file or directory"),
        "long name": ("x" * 250 + ".jsonl", ["jsonl"], "is too long"),
    }


def test_outputs_that_cannot_be_or_would_replace_inputs_are_refused(here):
    (here / "sub").mkdir()
    soundfile.write(here / "sub" / "a.wav", np.zeros(160), 16000)
    (here / "mine.jsonl").write_text("{}\n")
    row = Prediction("u", "", "x", 0.0, 1.0, "sub/a.wav")
    for case, (output, kinds, message) in refusals(here).items():
        before = written(here)
        with pytest.raises(ConfigError, match=re.escape(message)):
            Outputs(output, kinds, [row], sources=[here / "mine.jsonl"], with_summary=True)
        assert written(here) == before, case


def test_json_beside_the_audio_does_not_replace_a_manifest_in_the_folder(here):
    """A manifest ``a.json`` of a folder with ``a.wav`` has the name of the output."""
    (here / "a.json").write_text('{"audio_filepath": "a.wav", "duration": 1.0}\n')
    with pytest.raises(ConfigError, match="would be overwritten"):
        Outputs(".", ["json"], [Prediction("u", "", "x", 0.0, 1.0, "a.wav")])


def test_outputs_of_an_earlier_run_are_replaced(here):
    for _ in range(2):
        write("o.jsonl", ["jsonl"], [ROW])
        write("out", ["json", "srt", "jsonl"], [ROW])


def test_folder_without_permission_is_refused(here, monkeypatch):
    def refuses(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(ConfigError, match="no permission"):
        Outputs("deep/below/o.jsonl", ["jsonl"], [ROW])


def test_subtitles_that_are_too_fast_to_read_are_counted(here):
    """ "unquestionably so" has 17 characters and needs 1 s. It is spoken in 0.2 s, and half a second can be added."""
    words = [Word("unquestionably", 0.0, 0.1, 0.9), Word("so.", 0.1, 0.2, 0.9), Word("Yes.", 0.3, 4.0, 0.9)]
    row = Prediction("u1", "", "unquestionably so. Yes.", -0.1, 4.0, "/talks/a.wav", words=words)
    style = SubtitleStyle(max_line_width=18, max_line_count=1)
    slow = Prediction("u2", "", "two", -0.2, 2.5, "/talks/b.wav", words=[Word("two", 0.5, 1.25, 0.5)])
    # From 0 to 0.8 s, without the gap of 0.08 s before the next: 18 characters in 0.72 s.
    [note] = Outputs("out", ["srt", "vtt"], [row, slow]).write([row, slow], style)
    told = "a: 1 of 2 subtitles have more than 17 characters a second, as fast as the speech; the fastest has 25.0"
    assert note == told
    assert "00:00:00,000 --> 00:00:00,720" in (here / "out" / "a.srt").read_text()
    assert Outputs("text", ["text"], [row]).write([row], style) == []


def test_error_while_writing_leaves_no_partial_file(here, monkeypatch):
    outputs = Outputs("out", ["srt", "vtt"], [ROW])

    @contextmanager
    def full(path):
        with written_whole(path) as file:
            yield file
            if path.suffix == ".vtt":
                raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_asr.inference.outputs.written_whole", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        outputs.write([ROW])
    assert written(here / "out") == ["a.srt"]


def test_names_of_240_bytes_are_the_longest(here):
    Outputs("a" * 236 + ".srt", ["srt"], [ROW])
    with pytest.raises(ConfigError, match="is too long"):
        Outputs("a" * 237 + ".srt", ["srt"], [ROW])
    with pytest.raises(ConfigError, match="is too long"):
        Outputs("ü" * 119 + ".srt", ["srt"], [ROW])


def test_standard_output_has_results_only(capsys):
    """A library may print while a command runs."""
    from ssl_asr.console import results_only
    from ssl_asr.inference.outputs import _put

    with results_only():
        print("[HYDRA] Failed to load a plugin")
        _put(None, "a transcript\n")
    print("later")
    captured = capsys.readouterr()
    assert captured.out == "a transcript\nlater\n"
    assert captured.err == "[HYDRA] Failed to load a plugin\n"


def test_files_of_an_earlier_command_are_kept(here):
    Outputs("one.jsonl", ["jsonl"], [ROW], with_summary=True, overwrite=False).write([ROW])
    Outputs("out", ["srt", "vtt"], [ROW]).write([ROW])
    for output, kinds in (("one.jsonl", ["jsonl"]), ("out", ["vtt"])):
        with pytest.raises(
            ConfigError, match=r"output: .* exists already. Write overwrite=true to replace it, or give"
        ):
            Outputs(output, kinds, [ROW], with_summary=True, overwrite=False)
        Outputs(output, kinds, [ROW], with_summary=True, overwrite=True)
    # Another recording has other files, and a summary alone holds no transcript.
    Outputs("out", ["srt"], [OTHER], with_summary=True, overwrite=False)
    (here / "two.jsonl.summary.json").write_text("{}")
    Outputs("two.jsonl", ["jsonl"], [ROW], with_summary=True, overwrite=False)


def test_an_interrupted_command_replaces_its_own_files(here):
    outputs = Outputs("one.jsonl", ["jsonl"], [ROW], with_summary=True, overwrite=False)
    outputs.write([ROW])
    outputs.progress.write_text("")
    Outputs("one.jsonl", ["jsonl"], [ROW], with_summary=True, overwrite=False).write([ROW])
