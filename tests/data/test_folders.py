"""Which files of a folder are taken for audio or for manifests, by their first bytes."""

import json

import pytest

from ssl_asr.data.folders import holds_audio, is_manifest


@pytest.mark.parametrize(
    "head",
    [
        b"RIFF....WAVEfmt ",
        b"RF64....WAVEds64",
        b"fLaC" + bytes(12),
        b"OggS" + bytes(12),
        b"ID3" + bytes(13),
        b"NIST_1A\n   1024\n",
        b".snd" + bytes(12),
        b"caff" + bytes(12),
        b"FORM....AIFFCOMM",
        b"FORM....AIFCFVER",
        b"....ftypM4A ....",
        b"....ftypmp42....",
        b"....ftypisom....",
        b"#!AMR\n" + bytes(10),
        b"ajkg" + bytes(12),
    ],
)
def test_audio_is_known_by_its_first_bytes(tmp_path, head):
    path = tmp_path / "a"
    path.write_bytes(head)
    assert holds_audio(path)
    for other in (b"x" + head, head[1:], b"?" * 16):
        path.write_bytes(other)
        assert not holds_audio(path), other


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("a.jsonl", {"audio_filepath": "a.wav"}, True),
        ("a.JSON", {"audio_filepath": "a.wav"}, True),
        ("a.txt", {"audio_filepath": "a.wav"}, False),
        ("a.jsonl", {"path": "a.wav"}, False),
        ("a.jsonl", ["audio_filepath"], False),
        *(("a.jsonl", {"audio_filepath": "a.wav", key: 1}, False) for key in ("score", "hyp", "segments")),
    ],
)
def test_a_manifest_is_known_by_its_first_row(tmp_path, name, row, expected):
    (tmp_path / name).write_text("\ufeff \n" + json.dumps(row) + "\nno json\n")
    assert is_manifest(tmp_path / name) == expected


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null"])
def test_other_json_is_no_manifest(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert not is_manifest(tmp_path / "a.json")
    assert not is_manifest(tmp_path / "nothing.json")
