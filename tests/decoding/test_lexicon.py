"""The lexicon decoder against prefix beam search with the same closed vocabulary."""

import math

import pytest
import torch

from ssl_asr.decoding import lexicon
from ssl_asr.decoding.alignment import align, listed_words
from ssl_asr.decoding.ctc_beam import prefix_beam_search
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.lexicon import CtcLexicon
from ssl_asr.errors import LanguageModelError
from tests.decoding.test_ctc_beam import EVERYTHING, LABELS, _log_probs, _text

pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed")

OPTIONS = {"lm": None, "lm_weight": 0.0, "word_score": 0.0, "beam_size": 500, "beam_threshold": 1000.0}
OPTIONS |= {"max_labels": None, "n_best": 1}


def _search(tmp_path, lines, labels=LABELS, **options):
    path = tmp_path / "lexicon.txt"
    path.write_text(lines)
    return CtcLexicon(**(OPTIONS | options), lexicon=str(path)).build(labels)


@pytest.mark.parametrize("word_score", [0.0, 1.5])
def test_words_spelled_as_written_equal_prefix_beam_search_with_a_closed_vocabulary(tmp_path, word_score):
    search = _search(tmp_path, "ab\nb\nabba\n", word_score=word_score)
    vocabulary = dict.fromkeys(("ab", "b", "abba"), 0.0)
    words = Words(LABELS, model=None, weight=0.0, word_score=word_score, unknown_score=-math.inf, vocabulary=vocabulary)
    log_probs = torch.cat([3 * _log_probs(1, 7, len(LABELS), seed=seed) for seed in range(12)]).log_softmax(-1)
    lengths = torch.tensor([7, 5, 6] * 4)
    fusion = Fusion([words], size=len(LABELS))
    expected = prefix_beam_search(log_probs, lengths, beam_size=256, fusion=fusion, n_best=1, **EVERYTHING)
    found = search(log_probs, lengths)
    same = 0
    for (ours, *_), (theirs, *_) in zip(expected, found, strict=True):
        assert _text(theirs.tokens) == " ".join(word for word, _ in theirs.words)
        assert sum(count for _, count in theirs.words) == len(theirs.tokens) == len(theirs.frames)
        # A space counts to the word before it.
        last = len(theirs.words) - 1
        assert [count for _, count in theirs.words] == [len(w) + (i < last) for i, (w, _) in enumerate(theirs.words)]
        same += _text(ours.tokens).strip() == _text(theirs.tokens)
    # flashlight sums "ab" and " ab", our search scores each alone. The best text of confident frames is the same.
    assert same == 12


def test_words_with_several_pronunciations_are_found_and_timed(tmp_path):
    labels = [None, None, "n", "ai", "t", "d", "ei"]
    search = _search(tmp_path, "night n ai t\nday d ei\ndata d ei t\ndata d ai t\n", labels, n_best=3)
    said = [0, 2, 3, 3, 0, 4, 0, 5, 3, 4, 0]
    log_probs = torch.full((1, 11, 7), -9.0)
    log_probs[0, torch.arange(11), torch.tensor(said)] = -0.001
    found = search(log_probs, torch.tensor([11]))[0]
    assert found[0].words == (("night", 3), ("data", 3))
    assert found[0].tokens == [2, 3, 4, 5, 3, 4]
    assert found[0].frames == [1, 2, 5, 7, 8, 9]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    spans = align(log_probs[0], found[0].tokens, blank=0, measure="max_prob")
    words = listed_words(spans, found[0].words, labels, 0.1)
    assert [(w.text, round(w.start, 6), round(w.end, 6)) for w in words] == [("night", 0.1, 0.6), ("data", 0.7, 1.0)]


def test_results_do_not_depend_on_the_rest_of_the_batch(tmp_path):
    search = _search(tmp_path, "ab\nb\n")
    log_probs = _log_probs(3, 9, len(LABELS), seed=5)
    together = search(log_probs, torch.tensor([9, 4, 0]))
    assert together[1] == search(log_probs[1:2, :4], torch.tensor([4]))[0]
    assert together[2][0].words == ()


def test_language_model_weight_changes_the_ranking(tmp_path):
    pytest.importorskip("kenlm", reason="kenlm is not installed: it needs a C++ compiler")
    from ssl_asr.decoding.kneser_ney import estimate

    estimate([["b", "b"]] * 9 + [["ab"]], order=2).model.write_arpa(tmp_path / "lm.arpa")
    log_probs = torch.zeros(1, 6, len(LABELS)).log_softmax(-1)
    preference = {}
    for weight in (0.0, 20.0):
        search = _search(tmp_path, "ab\nb\n", lm=str(tmp_path / "lm.arpa"), lm_weight=weight, n_best=50)
        found = {" ".join(w for w, _ in one.words): one.score for one in search(log_probs, torch.tensor([6]))[0]}
        preference[weight] = found["b b"] - found["ab ab"]
    assert preference[20.0] > preference[0.0] + 20


@pytest.mark.parametrize(
    ("lines", "message"), [("", "contains no word"), ("ab a x b\n", "lexicon.txt:1"), ("ab\nxyz\n", "lexicon.txt:2")]
)
def test_wrong_lexicon_raises_an_error_with_its_line(tmp_path, lines, message):
    with pytest.raises(LanguageModelError, match=message):
        _search(tmp_path, lines)
    with pytest.raises(LanguageModelError, match="no such lexicon"):
        CtcLexicon(**OPTIONS, lexicon=str(tmp_path / "none")).build(LABELS)


def test_score_of_a_text_sums_its_paths(tmp_path):
    """Of two frames with half a blank and half an "a", three paths of four say "a"."""
    log_probs = torch.tensor([[[0.5, 0.5, 1e-6]] * 2]).log()
    [[found]] = _search(tmp_path, "a\n", [None, "a", " "])(log_probs, torch.tensor([2]))
    assert found.words == (("a", 1),)
    assert found.score == pytest.approx(math.log(0.75), abs=1e-4)


def test_language_model_that_kenlm_cannot_read_is_named(tmp_path, monkeypatch):
    from ssl_asr.decoding.kneser_ney import estimate

    def ctc_decoder(**_):
        raise RuntimeError("wrong version of the format\nmore")

    monkeypatch.setattr(lexicon, "_import_decoder", lambda: ctc_decoder)
    estimate([["b", "b"]] * 9 + [["ab"]], order=2).model.write_arpa(tmp_path / "lm.arpa")
    with pytest.raises(LanguageModelError, match=r"lm.arpa: wrong version of the format. Build the model again"):
        _search(tmp_path, "ab\n", lm=str(tmp_path / "lm.arpa"))


def test_a_missing_package_is_found_before_a_model_is_loaded(monkeypatch, tmp_path):
    options = CtcLexicon(
        lexicon=str(tmp_path / "lexicon.txt"),
        lm=None,
        lm_weight=0.0,
        word_score=0.0,
        beam_size=5,
        beam_threshold=25.0,
        max_labels=None,
        n_best=1,
    )
    assert list(options.conflicts(None)) == []
    monkeypatch.setattr("ssl_asr.decoding.lexicon.find_spec", lambda name: None)
    [error] = options.conflicts(None)
    assert "needs the package flashlight-text, which is not installed. Run pip install 'ssl_asr[lexicon]'" in str(error)
