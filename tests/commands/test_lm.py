"""``ssl-asr lm`` on texts as editors write them."""

import pytest

from ssl_asr.commands.lm import lm
from ssl_asr.config.tools import LmConfig
from ssl_asr.decoding.ngram import NGram
from ssl_asr.errors import LanguageModelError


def _config(tmp_path, data, **options):
    (tmp_path / "text.txt").write_bytes(data)
    return LmConfig(input=[str(tmp_path / "text.txt")], output=str(tmp_path / "lm.arpa"), verbose=False, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encoding_and_line_ends_do_not_change_the_model(tmp_path, encoding):
    lm(_config(tmp_path, "alpha beta\r\nbeta alpha\r\n".encode(encoding), order=2), tmp_path)
    model = NGram.from_arpa(tmp_path / "lm.arpa")
    assert model.vocabulary == {"alpha", "beta"}
    assert model.counts() == [5, 6]


@pytest.mark.parametrize("mark", ["<unk>", "<UNK>", "</S>", "[unk]"])
def test_marks_are_refused_with_their_line(tmp_path, mark):
    with pytest.raises(LanguageModelError, match=r"text\.txt:2: got .*expected no marks"):
        lm(_config(tmp_path, f"alpha\nbeta {mark}\n".encode(), normalizer="none"), tmp_path)
