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
        b"....ftypM4V ....",
        b"....ftyp3gp5....",
        b"....ftypqt  ....",
        b"\x1aE\xdf\xa3" + bytes(12),
        b"FLV\x01\x04" + bytes(11),
        b"wvpk" + bytes(12),
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(8),
        b"\xff\xfb\x90\x64" + bytes(12),
        b"\xff\xf1\x50\x80" + bytes(12),
    ],
)
def test_audio_is_known_by_its_first_bytes(tmp_path, head):
    path = tmp_path / "a"
    path.write_bytes(head)
    assert holds_audio(path)
    for other in (b"x" + head, head[1:], b"?" * 16):
        path.write_bytes(other)
        assert not holds_audio(path), other


@pytest.mark.parametrize("head", [b"\xff\xfea\0b\0", b"\xff\xd8\xff\xe0", b"....ftypheic....", b"%PDF-1.7", b"PK\3\4"])
def test_text_pictures_and_archives_are_no_audio(tmp_path, head):
    (tmp_path / "a").write_bytes(head + bytes(12))
    assert not holds_audio(tmp_path / "a")


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
