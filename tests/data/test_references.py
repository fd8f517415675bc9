"""Sets whose error rate would be no number are refused, and references that the model cannot write are named."""

import json

import pytest

from ssl_asr.console import Notice
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.references import check_references
from ssl_asr.data.text import get_normalizers
from ssl_asr.data.tokenizer import warn_of_unseen
from ssl_asr.errors import ManifestError


def pairs(*texts):
    return [(text, "en") for text in texts]


def test_one_reference_with_text_is_enough():
    check_references(pairs("", " ", "a"), get_normalizers(["none", "lower", "basic"]), where="d")
    # Another reference has text under each normalizer: "..." only under none, "uh" only under lower.
    check_references(pairs("...", "uh"), get_normalizers(["none", "lower"]), where="d")


def test_references_are_read_only_until_there_is_one_with_text():
    texts = iter(pairs("", "a", "b"))
    check_references(texts, get_normalizers(["lower"]), where="d")
    assert list(texts) == pairs("b")


@pytest.mark.parametrize("texts", [[], [""], ["", " \t", "\u00a0"]])
def test_references_without_text_are_refused(texts):
    with pytest.raises(ManifestError, match="d.jsonl: all references are empty, so there is no error rate. Add the"):
        check_references(pairs(*texts), get_normalizers(["lower"]), where="d.jsonl")


def test_references_that_a_normalizer_empties_are_refused():
    with pytest.raises(ManifestError, match="d: all references are empty after the normalizer basic, so there is no"):
        check_references(pairs("...", "?!", ""), get_normalizers(["none", "basic"]), where="d")
    with pytest.raises(ManifestError, match="after the normalizer whisper_english"):
        check_references(pairs("uh", "[noise]"), get_normalizers(["lower", "whisper_english"]), where="d")


def test_characters_that_a_model_cannot_write_are_named(tmp_path):
    path = tmp_path / "dev.jsonl"
    rows = [
        {"audio_filepath": "a", "duration": 1, "text": text, "id": f"u{i}"} for i, text in enumerate(["ab", "éx", "é"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(Notice) as caught:
        warn_of_unseen(CharTokenizer(characters="ab", normalizer="none"), read_manifest(path), where=str(path))
    [warning] = caught
    assert str(warning.message) == (
        f"{path}: 2 characters are not in the vocabulary: 'é' U+00E9 x2 (first in u1 at {path}:2); "
        f"'x' U+0078 x1 (first in u1 at {path}:2). The model cannot write them, so they count as errors."
    )


@pytest.mark.filterwarnings("error")
def test_texts_that_a_model_can_write_give_no_warning(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text('{"audio_filepath": "a", "duration": 1, "text": "ab"}\n')
    warn_of_unseen(CharTokenizer(characters="ab", normalizer="none"), read_manifest(path), where="d")
