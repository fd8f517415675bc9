"""Forced alignment against exhaustive search over all paths."""

import itertools
import json
import math

import pytest
import torch

from ssl_asr.decoding.alignment import (
    Span,
    align,
    evenly_spread,
    frame_confidence,
    listed_text,
    listed_words,
    words_of,
)
from ssl_asr.decoding.ctc import collapse
from ssl_asr.types import Word, text_of


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 1]])
@pytest.mark.parametrize("seed", range(3))
def test_spans_equal_the_best_of_all_paths(tokens, seed):
    log_probs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
    paths = [path for path in itertools.product(range(3), repeat=5) if collapse(list(path), 0) == tokens]
    best = max(paths, key=lambda path: sum(float(log_probs[t, v]) for t, v in enumerate(path)))
    spans = align(log_probs, tokens, blank=0, measure="max_prob")
    assert [span.label for span in spans] == tokens
    for span in spans:
        assert set(best[span.begin : span.end]) == {span.label}
        assert span.begin == 0 or best[span.begin - 1] != span.label
        assert span.end == 5 or best[span.end] != span.label
        own = [math.exp(float(log_probs[t, span.label])) for t in range(span.begin, span.end)]
        assert span.confidence == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_align_returns_none_if_labels_do_not_fit_and_no_spans_for_no_labels():
    log_probs = torch.randn(3, 3).log_softmax(-1)
    assert align(log_probs, [1, 1, 2], blank=0, measure="max_prob") is None
    assert align(log_probs, [], blank=0, measure="max_prob") == []


def test_labels_with_probability_zero_do_not_break_the_path():
    log_probs = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.9, 0.1, 0.0]]).log()
    (span,) = align(log_probs, [1], blank=0, measure="max_prob")
    assert (span.begin, span.end) == (1, 2)


def test_confidence_is_one_for_certain_frames_and_zero_for_uniform_frames():
    certain, uniform = torch.tensor([1.0, 0.0, 0.0, 0.0]).log(), torch.full((4,), 0.25).log()
    between = torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    frames, labels = torch.stack([certain, between, uniform]), torch.zeros(3, dtype=torch.int64)
    entropy = frame_confidence(frames, labels, "entropy").tolist()
    assert entropy[0] == pytest.approx(1.0, abs=1e-6)
    assert entropy[2] == pytest.approx(0.0, abs=1e-6)
    assert 0.01 < entropy[1] < 0.7
    assert frame_confidence(frames, labels, "max_prob").tolist() == pytest.approx([1.0, 0.7, 0.25])


def test_word_confidence_is_the_lowest_label_confidence():
    labels = [None, None, "a", "b", " ", " ab", " b"]
    spans = [
        Span(2, 0, 1, 0.9),
        Span(3, 2, 4, 0.5),
        Span(4, 4, 5, 0.1),
        Span(1, 6, 7, 0.3),
        Span(5, 8, 9, 0.8),
        Span(2, 9, 11, 0.7),
        Span(6, 12, 13, 1.0),
    ]
    words = words_of(spans, labels, 0.02)
    assert [word.text for word in words] == ["ab", "⁇", "aba", "b"]
    assert [(round(w.start, 3), round(w.end, 3)) for w in words] == [
        (0, 0.08),
        (0.12, 0.14),
        (0.16, 0.22),
        (0.24, 0.26),
    ]
    assert [word.confidence for word in words] == [0.5, 0.3, 0.7, 1.0]
    tokens = [[(token.text, token.confidence) for token in word.tokens] for word in words]
    assert tokens == [[("a", 0.9), ("b", 0.5)], [("⁇", 0.3)], [("ab", 0.8), ("a", 0.7)], [("b", 1.0)]]
    late = words[0].later(2.0)
    assert [token.start for token in late.tokens] == [2.0, 2.04]
    assert Word.from_record(json.loads(json.dumps(late.record()))) == late


def _characters(text, step=40):
    """Labels of all characters of a text, and spans of ten frames each."""
    labels = [None, None, *sorted(set(text))]
    return [Span(labels.index(c, 2), i * step, i * step + 10, 0.9) for i, c in enumerate(text)], labels


def test_each_character_of_an_unspaced_script_is_a_word():
    text = "今天天气很好我们去公园散步然后回家吃饭晚上看电影明天早上还要上班所以早点睡觉"
    spans, labels = _characters(text)
    words = words_of(spans, labels, 0.02)
    assert [word.text for word in words] == list(text)
    assert [word.start for word in words] == pytest.approx([i * 0.8 for i in range(38)])
    assert all(word.end - word.start == pytest.approx(0.2) for word in words)
    assert not any(word.spaced for word in words[1:])
    assert text_of(words) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("很好，我们 去「家」。", ["很", "好，", "我", "们", "去", "「家」。"]),
        ("用python3写", ["用", "python3", "写"]),
        ("ดีน้ำ", ["ดี", "น้ำ"]),
        ("ខ្មែរ", ["ខ្មែ", "រ"]),
        ("カメラー", ["カ", "メ", "ラ", "ー"]),
        ("a b  c", ["a", "b", "c"]),
        ("안녕 하세요", ["안녕", "하세요"]),
        ("it's 5%, ok", ["it's", "5%,", "ok"]),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text, expected):
    words = words_of(*_characters(text), 0.02)
    assert [word.text for word in words] == expected
    assert text_of(words) == " ".join(text.split())


def test_punctuation_counts_for_neither_times_nor_confidence_of_its_word():
    spans = [Span(2, 0, 5, 0.9), Span(3, 30, 31, 0.2), Span(4, 40, 41, 0.1), Span(2, 60, 64, 0.8)]
    words = words_of(spans, [None, None, "a", ",", " "], 0.02)
    assert [(w.text, w.confidence) for w in words] == [("a,", 0.9), ("a", 0.8)]
    assert words[0].end == pytest.approx(0.1)
    assert [token.text for token in words[0].tokens] == ["a", ","]


def test_words_of_a_lexicon_are_joined_as_their_script_is_written():
    spans, labels = _characters("今天天气好")
    listed = [("今天", 2), ("天气", 2), ("好", 1)]
    words = listed_words(spans, listed, labels, 0.02)
    assert text_of(words) == listed_text(listed, labels) == "今天天气好"
    phonemes = [None, None, "n", "ai", "t"]
    spans = [Span(2, 0, 1, 0.5), Span(3, 1, 2, 0.5), Span(4, 2, 3, 0.5)]
    listed = [("nigh", 2), ("tea", 1)]
    assert text_of(listed_words(spans, listed, phonemes, 0.02)) == listed_text(listed, phonemes) == "nigh tea"


def test_labels_that_do_not_fit_are_spread_evenly():
    assert [(one.begin, one.end, one.confidence) for one in evenly_spread([5, 6, 7], 2)] == [
        (0, 0, 0.0),
        (0, 1, 0.0),
        (1, 2, 0.0),
    ]


def test_a_space_separates_a_listed_word_from_the_one_before_it():
    """Labels without a space: "好" and "tea" are not separated, "tea" and "nigh" are, whatever the first word was."""
    labels = [None, "a"]
    spans = [Span(1, place, place + 1, 0.5) for place in range(3)]
    words = listed_words(spans, [("好", 1), ("tea", 1), ("nigh", 1)], labels, 0.02)
    assert [word.spaced for word in words] == [True, False, True]
