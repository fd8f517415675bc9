"""Texts for language models, from manifests and from text files."""

import json

import pytest

from ssl_asr.data.sentences import read_sentences
from ssl_asr.errors import ManifestError


def _texts(*paths, normalizer="none"):
    return [sentence.text for sentence in read_sentences(paths, normalizer=normalizer)]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfalpha beta\r\nbeta alpha\r\n",
        "alpha beta\nbeta alpha".encode("utf-16"),
        b"\n alpha\tbeta \r\r  beta  alpha",
        "\ufeffalpha\u00a0beta\n\ufeffbeta\u3000alpha\n\ufeff\n".encode(),
    ],
)
def test_marks_spaces_and_line_ends_are_no_text(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert _texts(tmp_path / "a.txt") == ["alpha beta", "beta alpha"]


def test_texts_of_a_manifest_with_a_mark(tmp_path):
    row = json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": "Alpha beta"})
    (tmp_path / "a.jsonl").write_bytes(f"\ufeff{row}\r\n".encode())
    assert _texts(tmp_path / "a.jsonl", normalizer="lower") == ["alpha beta"]
    (tmp_path / "a.json").write_text(row)
    with pytest.raises(ManifestError, match=r"a\.json:1: is a line of a manifest.*ends in \.jsonl"):
        _texts(tmp_path / "a.json")


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"alpha\nb\xe9ta\n")
    with pytest.raises(ManifestError, match=r"a\.txt:2: cannot be read as UTF-8: byte 0xe9"):
        _texts(tmp_path / "a.txt")
