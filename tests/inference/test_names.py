"""Names of recordings: short, and never equal for two recordings."""

import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_asr.inference.names import by_recording, output_names, recording_names
from ssl_asr.metrics.report import Prediction


def row(path, channel=None, task=None, offset=0.0):
    return Prediction("u", "", "", 0.0, 1.0, path, offset=offset, channel=channel, task=task)


def stems(*paths):
    return list(output_names([row(path) for path in paths]).values())


NAMES = {
    "one": (["talks/my talk.wav"], ["my talk"]),
    "folders": (["a/x.wav", "b/x.wav"], ["a_x", "b_x"]),
    "folders above": (["/r/1/x/t.wav", "/r/2/x/t.wav"], ["1_x_t", "2_x_t"]),
    "suffixes": (["d/x.wav", "d/x.flac"], ["x.wav", "x.flac"]),
    "folders and suffixes": (["p/x.wav", "q/x.wav", "q/x.flac"], ["p_x", "q_x.wav", "q_x.flac"]),
    "joined parts": (["/r/a/b_c.wav", "/r/a_b/c.wav"], ["b_c", "c"]),
    "case": (["A.wav", "a.wav"], ["A", "a-2"]),
    "composed": (["\u00e9.wav", "e\u0301.wav"], ["\u00e9", "e\u0301-2"]),
    "number is taken": (["A.wav", "a.wav", "a-2.wav"], ["A", "a-3", "a-2"]),
    "dots at the end": (["x...wav"], ["x"]),
    "device": (["con.wav", "aux.1.wav"], ["_con", "_aux.1"]),
    "characters": (['a:b?"<c>|*.wav'], ["a_b___c___"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_files(case):
    paths, expected = NAMES[case]
    assert stems(*paths) == expected


def test_channels_and_tasks_of_one_file_have_files_of_their_own():
    rows = [row("two.wav", 0), row("two.wav", 1), row("two.wav", 1, "translate")]
    assert list(output_names(rows).values()) == ["two.ch0", "two.ch1", "two.ch1.translate"]
    assert list(output_names([row("two.wav", 1), row("./two.wav", 1, offset=2.0)]).values()) == ["two"]
    assert recording_names(rows) == ["two", "two", "two"], "CTM has a field for the channel"


def test_reserved_and_long_names():
    assert list(output_names([row("Summary.wav")], ["summary"]).values()) == ["Summary-2"]
    one, two = stems(f"{'x' * 300}a.wav", f"{'x' * 300}b.wav")
    assert one != two
    assert all(len(os.fsencode(name)) < 230 for name in (one, two, *stems("é" * 200 + ".wav")))


def test_names_of_recordings_have_no_spaces():
    rows = [row("my talk.wav"), row("my_talk.wav"), row("my\u00a0talk.wav"), row("my talk.wav", offset=3.0)]
    names = recording_names(rows)
    assert names == ["my_talk", "my_talk-2", "my_talk-3", "my_talk"]
    assert recording_names([row(";;x.wav")]) == ["_;x"], "a line of CTM with ;; is a comment"
    assert recording_names([]) == []


def test_rows_are_in_order_of_recordings_and_times():
    rows = [row("b.wav", offset=5.0), row("a.wav", offset=1.0), row("./b.wav", offset=2.0), row("b.wav", 1)]
    ordered = [(one.audio_filepath, one.channel, one.offset) for own in by_recording(rows) for one in own]
    assert ordered == [("./b.wav", None, 2.0), ("b.wav", None, 5.0), ("a.wav", None, 1.0), ("b.wav", 1, 0.0)]


_LETTERS = st.text(st.sampled_from("aAbe\u00e9\u0301\ufb01ſs .-_2;:\n"), min_size=1, max_size=4)
_PARTS = _LETTERS.filter(lambda name: name not in (".", ".."))
_SUFFIXES = st.sampled_from([".wav", ".WAV", ".flac", "", ".gz.wav"])
_PATHS = st.builds(lambda folders, name, suffix: "/".join(["", *folders, name + suffix]), st.lists(_PARTS, max_size=3),
                   _PARTS, _SUFFIXES)  # fmt: skip
_RECORDINGS = st.tuples(_PATHS, st.sampled_from([None, 0, 1]), st.sampled_from([None, "translate"]))


def folded(name):
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


@settings(max_examples=150, deadline=None)
@given(st.lists(_RECORDINGS, unique=True, max_size=12))
def test_no_two_recordings_share_a_name(recordings):
    rows = [row(*one) for one in recordings]
    names = list(output_names(rows, ["summary"]).values())
    assert len({folded(name) for name in names}) == len(rows)
    assert all(name and "/" not in name and not name.endswith((" ", ".")) for name in names)
    by_file = {}
    for one, name in zip(rows, recording_names(rows), strict=True):
        assert name
        assert not any(character.isspace() for character in name)
        assert by_file.setdefault(one.audio_filepath, name) == name
    assert len({folded(name) for name in by_file.values()}) == len(by_file)
