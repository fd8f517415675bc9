"""Manifests with random contents and random damage: errors that name the line, or rows that can be written back.

`tests.fuzzing` says how to try more.
"""

import json
import math
import os
import pickle
import random
import warnings
from dataclasses import replace

import pytest

from ssl_asr.data.inputs import gather
from ssl_asr.data.manifest import pack_rows, read_manifest
from ssl_asr.textfiles import is_unicode, to_json
from tests.fuzzing import fuzz, result_of

BOM = b"\xef\xbb\xbf"
TEXTS = ["hello", "größe", "日本語", "e\u0301", "\U0001f600", "a\u2028b", "a\x85b", "\ufeffa", 'say "hi"\\n', "\x7f"]
TEXTS += [" ", "", "two\nlines", "tab\t", "\r", "a\x00b", "\x0b\x0c", "\u202e", "NaN", "{", "]}", "w " * 3000]
NAMES = ["a.wav", "d/é.flac", "/x/y.wav", "日本 ü.ogg", "a\n.wav", "~", "a:b.wav", "../a.wav", "a", " ", ".wav", "d/.."]
LANGUAGES = ["de", "deu", "cmn_hans_cn", "azj-script_latin", "German", "", "auto", "klingon", "x-y", "日本", "a" * 300]
LANGUAGES += ["\x00", "\ud800", "azj-script_x", "ABC-dialect_日本", "-", "de-" + "a-" * 99]
SECONDS = ["1.5", "3", "1e-3", "1E2", "0.1", "12.345678901234567", "1e9", "5e-324"]
# JSON text of the values of each key, all of which are right.
FIELDS = {
    "audio_filepath": lambda draw: _string(draw, draw.choice(NAMES)),
    "duration": lambda draw: draw.choice(SECONDS),
    "text": lambda draw: _string(draw, draw.choice(TEXTS)),
    "prompt": lambda draw: _string(draw, draw.choice(TEXTS)),
    "id": lambda draw: _string(draw, draw.choice([text for text in TEXTS if text]) + str(draw.random())),
    "offset": lambda draw: draw.choice([*SECONDS, "0", "-0", "0.0", "-0.0"]),
    "lang": lambda draw: _string(draw, draw.choice(LANGUAGES)),
    "task": lambda draw: draw.choice(['"transcribe"', '"translate"', '"\\u0074ranslate"']),
    "channel": lambda draw: draw.choice(["0", "1", "99", "65535"]),
    "weight": lambda draw: draw.choice(["0", "0.5", "1", "2", "1e9"]),
}
OTHERS = ["1", "-1.5e-7", "null", "true", "[]", '{"a": [1, {"b": null}]}', '"\\ud800"', "9" * 400, "[" * 90 + "]" * 90]
# JSON text of values that are wrong in all or most places. Some is no JSON.
WRONG = ["null", "true", "false", "[]", "{}", '""', "0", "-1", "1.0", "-0.0", '"1"', '"."', '"/"', '".."', '"\\u0000"']
WRONG += ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e308", "1e9999999999", "9" * 400, "-" + "9" * 5000]
WRONG += ["01", "1.", ".5", "+1", "0x1", "1_0", "١", "undefined", "'a'", "", '"', '"\t"', '"\\x"', '"\\u12"', '"\x0b"']
WRONG += ['"\\ud800"', '"\\udcff"', '"\\ude00\\ud83d"', '"a\\ud83d"', '{"a": 1, "a": 2}', "[NaN]", '{"x": Infinity}']
WRONG += ["[1,]", "//", '"' + "a" * 300 + '"', '"' + "a/" * 3000 + '"', "[" + "0," * 500 + "0]", "[" * 100_000]
WRONG += ["[" * depth + "]" * depth for depth in (101, 330, 900, 100_000)]
WRONG += ['{"a":' * depth + "1" + "}" * depth for depth in (101, 500, 100_000)]
LINE_ENDS = ["\n"] * 6 + ["\r\n", "\n\n", "\n \t\r\n", " \n", "\n\ufeff\n"]
SCRAPS = [b"", b"\0", b"\r", b"\n", b"\x0b", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", BOM]
SCRAPS += [b"\\", b'"', b"{", b"}", b"[", b",", b":", b"1", b"e999", b"-", b"\\u", b"\\ud800", b"NaN", b"true"]
SCRAPS += [b"\xf4\x90\x80\x80"]


def _string(draw, text):
    """A text as JSON, with and without escapes."""
    return json.dumps(text, ensure_ascii=draw.random() < 0.3 or not is_unicode(text))


def _pairs(draw):
    """Keys and values of a line, as JSON text. All are right."""
    keys = [key for key in FIELDS if key in ("audio_filepath", "duration", "text", "id") or draw.random() < 0.3]
    pairs = [(json.dumps(key), FIELDS[key](draw)) for key in keys]
    more = draw.sample(["speaker", "", "é", "Text", "score\u2028", "\ud800"], k=draw.choice([0, 0, 1, 2]))
    pairs += [(json.dumps(key), draw.choice([*OTHERS, _string(draw, draw.choice(TEXTS))])) for key in more]
    draw.shuffle(pairs)
    return pairs


def _changed(draw, pairs):
    """The pairs with one change, and without an id in some."""
    pairs = [pair for pair in pairs if pair[0] != '"id"'] if draw.random() < 0.3 else pairs
    at = draw.randrange(len(pairs))
    key, value = pairs[at]
    new = draw.choice(
        [
            [(key, draw.choice(WRONG))],
            [(key, draw.choice(WRONG))],
            [],
            [(key, value), (key, draw.choice(WRONG))],
            [(draw.choice(['"<where>"', '"x"', "x", '"a', "1", "null"]), value)],
        ]
    )
    return [*pairs[:at], *new, *pairs[at + 1 :]]


def _line(draw, pairs):
    gap, colon, comma = draw.choice([("", ":", ","), ("", ": ", ", "), (" ", " : ", "\t,")])
    return gap + "{" + comma.join(f"{key}{colon}{value}" for key, value in pairs) + "}" + gap


def _file(draw, lines):
    start = draw.choice(["", "", "", "\ufeff", "\n", "\ufeff\n"])
    whole = "".join(line + draw.choice(LINE_ENDS) for line in lines)
    whole = whole if draw.random() < 0.8 else whole.rstrip("\n")
    return (start + whole).encode(errors="surrogatepass")


def _damaged(draw, data):
    """The bytes with a few changes."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        at = draw.randrange(len(data) + 1)
        kind = draw.choice(["insert", "insert", "flip", "delete", "cut", "copy"])
        if kind == "insert":
            data[at:at] = draw.choice(SCRAPS)
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == "delete":
            del data[at : at + draw.randint(1, 9)]
        elif kind == "cut":
            del data[at:]
        elif kind == "copy":
            data[at:at] = data[at : at + draw.randint(1, 40)]
    return bytes(data)


def _rows_of(data):
    """Number and content of each line that is not blank, by the letter of JSON."""
    rows = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        while line.startswith(BOM):
            line = line.removeprefix(BOM)
        text = line.strip(b" \t\r\x0b\x0c")
        if text:
            rows[number] = json.loads(text.decode(), parse_constant=pytest.fail)
    return rows


def _equal(one, other):
    """Whether two utterances are equal, but for the line and the file that they come from."""
    none = 0.0 if math.isnan(one.duration) and math.isnan(other.duration) else None
    same = {"where": ""} if none is None else {"where": "", "duration": none}
    return replace(one, **same) == replace(other, **same)


def _check(manifest, path, data):
    """What is accepted is JSON, is kept whole, and can be written back, also by way of other processes."""
    rows = _rows_of(data)
    assert len(manifest) == len(rows)
    for (number, row), utterance in zip(rows.items(), manifest, strict=True):
        assert utterance.where == f"{path}:{number}"
        audio = path.parent / row["audio_filepath"]
        assert utterance.audio_filepath == (os.path.normpath(audio) if audio.parent.name == ".." else str(audio))
        assert utterance.text == (row.get("text") or "")
        utterance.text.encode()
        for key, default in (("duration", math.nan), ("offset", 0.0), ("weight", 1.0)):
            value = default if row.get(key) is None else row[key]
            assert not isinstance(value, bool)
            assert getattr(utterance, key) == value or math.isnan(value)
            assert abs(getattr(utterance, key)) != math.inf
        assert utterance.channel == row.get("channel")
        assert not isinstance(utterance.channel, bool)
        assert utterance.tags == {key: value for key, value in row.items() if key not in FIELDS or key == "prompt"}
        assert json.loads(to_json(row)) == row
        assert _equal(pickle.loads(pickle.dumps(utterance)), utterance)
    path.write_text("".join(f"{to_json(row)}\n" for row in rows.values()), encoding="utf-8")
    again = read_manifest(path, require_text=False, unique_ids=False, measure=False)
    assert all(map(_equal, again, manifest))
    if not any(math.isnan(utterance.duration) for utterance in manifest):
        assert all(map(_equal, pack_rows(list(rows.values()), path.parent), manifest))
        assert gather([path]).count == len(manifest)


@pytest.fixture(scope="module")
def path(memory_folder):
    return memory_folder / "rows.jsonl"


@pytest.fixture(autouse=True)
def _quiet():
    """Without warnings of unknown languages."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path, draw):
    options = {"require_text": draw.random() < 0.5, "unique_ids": draw.random() < 0.5, "measure": draw.random() < 0.5}
    return result_of(lambda: read_manifest(path, **options), path)


@fuzz(parts=3)
def test_any_right_manifest_is_read_whole(path, seed):
    draw = random.Random(seed)
    data = _file(draw, [_line(draw, _pairs(draw)) for _ in range(draw.randint(1, 4))])
    path.write_bytes(data)
    _check(read_manifest(path), path, data)


@fuzz(parts=3)
def test_wrong_rows_are_refused_or_written_back(path, seed):
    draw = random.Random(seed)
    rows = [_pairs(draw) for _ in range(draw.randint(1, 3))]
    for _ in range(draw.choice([1, 1, 2])):
        at = draw.randrange(len(rows))
        rows[at] = _changed(draw, rows[at]) or rows[at]
    data = _file(draw, [_line(draw, pairs) for pairs in rows])
    path.write_bytes(data)
    manifest = _read(path, draw)
    if manifest is not None:
        _check(manifest, path, data)


@fuzz(parts=3)
def test_damaged_bytes_are_refused_or_written_back(path, seed):
    draw = random.Random(seed)
    data = _damaged(draw, _file(draw, [_line(draw, _pairs(draw)) for _ in range(draw.randint(1, 3))]))
    path.write_bytes(data)
    manifest = _read(path, draw)
    if manifest is not None:
        _check(manifest, path, data)
