"""Manifests: fields and defaults, errors with file and line, memory shared by workers, and filters."""

import json
import math
import os
import pickle

import pytest

from ssl_asr.data.manifest import pack_rows, read_manifest
from ssl_asr.errors import ConfigError, ManifestError, UserErrors

GOOD = {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello"}


def write(tmp_path, *lines):
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_fields_and_defaults_of_lines(tmp_path):
    path = write(
        tmp_path,
        GOOD,
        "",
        {**GOOD, "id": "x", "offset": 2, "lang": "de", "task": "translate", "channel": 1, "weight": 0.5, "age": 7},
        {"audio_filepath": "dir/ü.flac", "duration": 3, "text": "größe"},
    )
    manifest = read_manifest(path)
    first, second, third = manifest
    assert (first.id, first.text, first.duration, first.offset) == ("a", "hello", 1.5, 0.0)
    assert first.audio_filepath == str(tmp_path / "a.wav")
    assert first.where == f"{path}:1"
    assert (second.lang, second.task, second.channel, second.weight, second.tags) == (
        "de",
        "translate",
        1,
        0.5,
        {"age": 7},
    )
    assert second.where == f"{path}:3", "blank lines count as lines of the file"
    assert third.text == "größe"
    assert third.id == "dir/ü"
    assert manifest.total_s == 6.0
    assert [u.id for u in manifest.select([2, 0])] == ["dir/ü", "a"]
    assert manifest[-1] == third
    assert manifest[0:2] == [first, second]


def test_last_line_without_newline_and_very_long_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({**GOOD, "text": "w " * 20_000}) + "\n" + json.dumps({**GOOD, "id": "last"}))
    manifest = read_manifest(path)
    assert len(manifest[0].text.split()) == 20_000
    assert manifest[1].id == "last"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "JSON list"),
        ({"duration": 1, "text": "x"}, "has no 'audio_filepath'"),
        ({"audio_filepath": "a.wav", "text": "x"}, "has no 'duration'"),
        ({"audio_filepath": "a.wav", "duration": 1}, "has no 'text'"),
        ({**GOOD, "duration": "abc"}, "'duration' is 'abc'"),
        ({**GOOD, "duration": True}, "'duration' is True"),
        ({**GOOD, "duration": -1}, "'duration' is -1"),
        ('{"audio_filepath": "a.wav", "duration": NaN, "text": "x"}', "is not valid JSON: it has NaN"),
        ({**GOOD, "score": -math.inf}, "is not valid JSON: it has -Infinity"),
        ('{"audio_filepath": "a.wav", "duration": 1, "text": "x", "score": 1e400}', "the number '1e400' is too large"),
        ({**GOOD, "duration": 10**400}, "'duration' is 10000"),
        ({**GOOD, "duration": 1e300}, "'duration' is 1e+300"),
        ('{"audio_filepath": "a.wav", "text": "x", "n": %s}' % ("9" * 5000), "has a number with thousands of digits"),
        ('{"audio_filepath": "a.wav", "text": "x", "text": "y"}', "is not valid JSON: the key 'text' is repeated"),
        ("[" * 100_000, "is nested more than 100 levels deep"),
        ('{"audio_filepath": "a.wav", "text": "x", "n": %s}' % ("[" * 100 + "]" * 100), "is nested more than 100"),
        ({**GOOD, "id": None, "audio_filepath": "."}, "'audio_filepath' is '.', expected the path of a file"),
        ({**GOOD, "audio_filepath": "a\0.wav"}, r"'audio_filepath' is 'a\x00.wav'"),
        ({**GOOD, "<where>": "x:1"}, "has the key '<where>'"),
        ({**GOOD, "text": 5}, "'text' is 5"),
        ({**GOOD, "prompt": ["names"]}, "'prompt' is ['names'], expected a string"),
        ({**GOOD, "text": [0] * 9999}, "'text' is [0, 0, 0, 0, 0, 0, ...], expected a string"),
        ({**GOOD, "text": "half of a pair: \ud83d"}, r"'text' is 'half of a pair: \ud83d'"),
        ({**GOOD, "offset": -0.1}, "'offset' is -0.1"),
        ({**GOOD, "channel": "left"}, "'channel' is 'left'"),
        ({**GOOD, "task": "sing"}, "'task' is 'sing'"),
    ],
)
def test_error_names_file_and_line(tmp_path, line, message):
    path = write(tmp_path, {**GOOD, "id": "fine"}, line)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert f"{path}:2" in str(caught.value)
    assert message in str(caught.value)


def test_all_invalid_lines_are_reported_together(tmp_path):
    path = write(tmp_path, "{", {**GOOD, "text": 1, "duration": 0}, GOOD, GOOD)
    with pytest.raises(UserErrors) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert [f"{path}:{n}" in message for n in (1, 2, 3, 4)] == [True, True, True, True]
    assert len(caught.value.errors) == 4, "one JSON error, two wrong fields, one duplicate id"
    assert f"is already used at {path}:3" in message


def test_undecodable_empty_and_missing_files_are_refused(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ManifestError, match=r"m\.jsonl:1: is not UTF-8"):
        read_manifest(tmp_path / "m.jsonl")
    # Python's reader of JSON takes surrogates in UTF-8, and UTF-16.
    for data in (b'{"audio_filepath": "a.wav", "text": "\xed\xa0\x80"}', json.dumps(GOOD).encode("utf-16")):
        (tmp_path / "m.jsonl").write_bytes(data)
        with pytest.raises(ManifestError, match=r"is not UTF-8|is text in UTF-16, expected UTF-8"):
            read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="has no utterance"):
        read_manifest(write(tmp_path, ""))
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")


def test_byte_order_marks_are_left_out(tmp_path):
    """Also on blank lines, and in the middle of joined files."""
    path = write(
        tmp_path, "\ufeff", "\ufeff\ufeff\ufeff" + json.dumps(GOOD), " \r", json.dumps({**GOOD, "id": "b"}) + "\r"
    )
    assert [(u.id, u.where) for u in read_manifest(path)] == [("a", f"{path}:2"), ("b", f"{path}:4")]


def test_a_language_may_be_any_text(tmp_path):
    odd = ["\0", "\ud800", "azj-script_x"]
    path = write(tmp_path, *({**GOOD, "id": str(number), "lang": lang} for number, lang in enumerate(odd)))
    with pytest.warns(UserWarning, match="is not a known language"):
        assert [u.lang for u in read_manifest(path)] == odd


def test_a_name_that_no_file_can_have_is_an_error_of_its_line(tmp_path):
    path = write(tmp_path, {"audio_filepath": "a" * 300, "text": "x"})
    with pytest.raises(ManifestError, match="m.jsonl:1: has no 'duration'.*: cannot be opened: File name too long"):
        read_manifest(path)


def test_workers_share_the_memory_of_rows(tmp_path):
    rows = [{**GOOD, "id": f"u{i}"} for i in range(200_000)]
    manifest = pack_rows(rows, tmp_path)
    del rows

    def private_mb() -> float:
        fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
        return int(fields["Private_Dirty"].split()[0]) / 1024

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        before = private_mb()
        for utterance in manifest:
            assert utterance.duration == 1.5
        os.write(writer, str(private_mb() - before).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    grown = float(os.read(reader, 100))
    assert grown < 20, f"a worker that read all rows grew by {grown:.0f} MB"


def test_manifest_can_be_pickled(tmp_path):
    manifest = read_manifest(write(tmp_path, GOOD))
    assert pickle.loads(pickle.dumps(manifest))[0] == manifest[0]


def test_only_selects_lines_and_checks_duplicate_ids_among_them(tmp_path):
    """A recording with translations into two languages has two lines with one id."""
    pairs = [("es", "en"), ("es", "fr"), ("en", "es")]
    path = write(tmp_path, *({**GOOD, "id": "one", "lang": lang, "target_lang": target} for lang, target in pairs))
    with pytest.raises((ManifestError, UserErrors), match="already used at"):
        read_manifest(path)
    manifest = read_manifest(path, only={"lang": "es", "target_lang": "fr"})
    assert [(u.lang, u.tags["target_lang"], u.where) for u in manifest] == [("es", "fr", f"{path}:2")]
    with pytest.raises(ConfigError, match="no line of"):
        read_manifest(path, only={"lang": "de"})


def test_rows_that_come_from_no_file_are_numbered_from_one(tmp_path):
    rows = [{"id": f"u{i}", "audio_filepath": f"{i}.wav", "duration": i + 0.5, "text": "a" * i} for i in range(3)]
    manifest = pack_rows(rows, tmp_path)
    assert [utterance.id for utterance in manifest] == ["u0", "u1", "u2"]
    assert [utterance.where for utterance in manifest] == [f"{tmp_path}/<files>:{line}" for line in (1, 2, 3)]
    assert [utterance.text for utterance in manifest] == ["", "a", "aa"]
    assert manifest.total_s == 4.5
    assert [utterance.id for utterance in manifest.select([2, 0])] == ["u2", "u0"]
    assert [utterance.where[-1] for utterance in manifest.select([2, 0])] == ["3", "1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_manifests_in_other_encodings_of_unicode_are_named(tmp_path, encoding):
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"audio_filepath": "a.wav", "text": "a"}\n'.encode(encoding))
    with pytest.raises(ManifestError, match=f"is text in {encoding[:6].upper()}, expected UTF-8"):
        read_manifest(path)


NAN = "NaN", "Infinity", "-Infinity", "1e400"
HUGE = f"1{'0' * 400}", "9" * 5000
DEEP = "[" * 200 + "]" * 200, '{"a": ' * 5000 + "1" + "}" * 5000
HALF = '"\\ud800"', '"a\\udc00b"'


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("audio_filepath", (*NAN, *HUGE, *DEEP, '"\\ud800"', '"a\\u0000.wav"', f'"{"x" * 5000}"', '""', '".."', "[1]")),
        ("duration", (*NAN, *HUGE, *DEEP, '"1"', "0", "-1", "true")),
        ("offset", (*NAN, *HUGE, *DEEP, "-1", '""')),
        ("weight", (*NAN, *HUGE, *DEEP, "-1", "false")),
        ("channel", (*NAN, *HUGE, *DEEP, "-1", "1.5", "true")),
        ("text", (*NAN, *HUGE, *DEEP, *HALF, "5", "[1]")),
        ("prompt", (*NAN, *HUGE, *DEEP, *HALF, "5")),
        ("id", (*NAN, *HUGE, *DEEP, "5", '""')),
        ("lang", (*NAN, *HUGE, *DEEP, "5")),
        ("task", (*NAN, *HUGE, *DEEP, '"sing"', "5")),
        ("any_tag", (*NAN, HUGE[1], *DEEP)),
    ],
)
def test_a_value_that_nobody_means_is_an_error_of_its_line(tmp_path, key, values):
    path = tmp_path / "m.jsonl"
    row = {"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}
    row.pop(key, None)
    for value in values:
        path.write_text(f'{json.dumps(row)[:-1]}, "{key}": {value}}}\n')
        with pytest.raises(ManifestError) as caught:
            read_manifest(path)
        message = str(caught.value)
        assert message.startswith(f"{path}:1: "), value
        assert "\n" not in message
        assert len(message) < 600


def test_names_that_are_not_utf_8_and_tags_of_any_kind_are_kept(tmp_path):
    """A file may have such a name on Linux."""
    path = tmp_path / "m.jsonl"
    tags = f'"note": "\\ud800", "big": 1{"0" * 400}'
    path.write_text(f'{{"audio_filepath": "caf\\udce9.wav", "duration": 1.0, "text": "a", {tags}}}\n')
    [utterance] = read_manifest(path)
    assert utterance.audio_filepath == str(tmp_path / "caf\udce9.wav")
    assert utterance.tags == {"note": "\ud800", "big": 10**400}
