"""Word times from attention: time warping against transformers and brute force, and words on real speech."""

import itertools
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.word_times import first_frames, smoothed, words_of_tokens
from ssl_asr.types import text_of


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 5), (4, 30), (9, 3), (20, 70)])
def test_first_frames_equal_transformers(shape):
    table = np.random.default_rng(shape[0]).standard_normal(shape)
    text, time = _dynamic_time_warping(-table)
    expected = [int(time[text == row].min()) for row in range(shape[0])]
    assert first_frames(table).tolist() == expected


def test_path_has_the_largest_sum():
    table = np.random.default_rng(1).standard_normal((3, 5))
    best, firsts = -np.inf, None
    # All paths from corner to corner by steps down, right or diagonal.
    for steps in itertools.product([(1, 1), (1, 0), (0, 1)], repeat=6):
        for length in range(4, 7):
            places = [(0, 0)]
            for down, right in steps[:length]:
                places.append((places[-1][0] + down, places[-1][1] + right))
            if places[-1] == (2, 4) and all(i <= 2 and j <= 4 for i, j in places):
                total = sum(table[place] for place in places)
                if total > best:
                    best, firsts = total, [min(j for i, j in places if i == row) for row in range(3)]
    assert first_frames(table).tolist() == firsts


@pytest.mark.parametrize("tokens", [2, 3, 6])
def test_smoothed_table_equals_transformers(tokens):
    weights = torch.rand(3, tokens, 40)
    normal = (weights - weights.mean(1, keepdim=True)) / weights.std(1, keepdim=True, unbiased=False)
    expected = _median_filter(normal[None], 7)[0].mean(0)
    assert np.allclose(smoothed(weights), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_fewer_frames_than_half_a_filter_are_not_smoothed(frames):
    weights = torch.rand(2, 5, frames, dtype=torch.float64)
    normal = (weights - weights.mean(1, keepdim=True)) / weights.std(1, keepdim=True, unbiased=False)
    assert np.allclose(smoothed(weights), normal.mean(0).numpy())


def _spelled(pieces):
    """A ``spell`` for tokens that are numbers of byte strings."""
    return lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")


def _weights(rows, frames):
    """Attention of one head that moves on at the given frames: row ``i`` from ``rows[i]`` on."""
    weights = torch.full((1, len(rows), frames), 0.01)
    for i, (first, end) in enumerate(itertools.pairwise([*rows, frames])):
        weights[0, i, first:end] = 1.0
    return weights


def _words(pieces, weights, probabilities, breaks=()):
    return words_of_tokens(
        range(len(pieces)), weights, probabilities, spell=_spelled(pieces), frame_s=0.02, breaks=breaks
    )


def test_tokens_of_one_character_stay_in_one_word():
    pieces = [b" na", b"\xc3", b"\xaf", b"ve", b" ok"]
    [words] = _words(pieces, torch.rand(2, 6, 30), [0.9, 0.8, 0.3, 0.7, 0.6])
    assert [(word.text, word.confidence, word.spaced) for word in words] == [("naïve", 0.3, True), ("ok", 0.6, True)]
    assert words[0].end == words[1].start
    assert [token.confidence for word in words for token in word.tokens] == [0.9, 0.8, 0.3, 0.7, 0.6]
    for word in words:
        times = [at for token in word.tokens for at in (token.start, token.end)]
        assert times == sorted(times)
        assert (times[0], times[-1]) == (word.start, word.end)
    assert _words([], torch.rand(1, 1, 30), []) == [[]]


def test_punctuation_counts_for_neither_times_nor_confidence():
    pieces = [b' "', b"Well", b",", b" no", b"."]
    weights = _weights([0, 10, 25, 60, 75, 90], 100)
    [[well, no]] = _words(pieces, weights, [0.1, 0.91, 0.27, 0.8, 0.2])
    assert (well.text, no.text) == ('"Well,', "no.")
    assert (well.confidence, no.confidence) == (0.91, 0.8)
    assert [well.start, well.end, no.start, no.end] == pytest.approx([0.2, 0.5, 1.2, 1.5])
    assert [token.text for token in well.tokens] == [' "', "Well", ","]
    assert all(well.start <= token.start <= token.end <= well.end for token in well.tokens)


def test_a_word_of_punctuation_alone_has_its_own_times():
    pieces = [b" one", b" -", b" two"]
    [words] = _words(pieces, _weights([0, 20, 40, 60], 80), [0.9, 0.3, 0.8])
    assert [(word.text, word.confidence) for word in words] == [("one", 0.9), ("-", 0.3), ("two", 0.8)]
    assert [word.start for word in words] == pytest.approx([0.0, 0.4, 0.8])


def test_characters_are_words_in_scripts_without_spaces():
    text = ["你", "好", "。", "我", "用", " Py", "thon", "写", "😀"]
    [words] = _words([one.encode() for one in text], torch.rand(2, 10, 50), [0.9] * 9)
    assert [word.text for word in words] == ["你", "好。", "我", "用", "Python", "写😀"]
    assert [word.spaced for word in words] == [False, False, False, False, True, False]
    assert text_of(words) == "你好。我用 Python写😀"


@pytest.mark.parametrize("text", ["น้ำดี", "ខ្មែរ", "မန္တလေး", "नमस्ते जी", "שלום עולם", "מה👩‍💻זה", "日本語ー"])
def test_marks_stay_with_their_letter_if_each_byte_is_a_token(text):
    pieces = [bytes([byte]) for byte in text.encode()]
    [words] = _words(pieces, torch.rand(2, len(pieces) + 1, 150), [0.9] * len(pieces))
    assert text_of(words) == text
    assert not any(unicodedata.category(word.text[0]).startswith("M") for word in words)
    assert sum(len(word.tokens) for word in words) == len(pieces) - text.count(" ") + sum(w.spaced for w in words)


def test_a_broken_byte_does_not_swallow_the_words_after_it():
    pieces = [b" one", b"\xff", b" two", b" three", b"\xe5"]
    [words] = _words(pieces, torch.rand(2, 6, 40), [0.9] * 5)
    assert [word.text for word in words] == ["one\ufffd", "two", "three\ufffd"]


def test_no_word_extends_over_a_break():
    pieces = [b" no", b" no", b"body", b" no", b" "]
    parts = _words(pieces, torch.rand(2, 6, 40), [0.9] * 5, breaks=[2, 2, 4])
    assert [[word.text for word in part] for part in parts] == [["no", "no"], [], ["body", "no"], []]


def test_words_lie_within_their_utterance(whisper_tiny_en, data_root, tmp_path):
    """Two utterances with two seconds of silence in between: each word lies in its own utterance."""
    import ssl_asr

    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    short = sorted(manifest, key=lambda utterance: utterance.duration)[8:10]
    rate = soundfile.info(short[0].audio_filepath).samplerate
    first, second = (soundfile.read(one.audio_filepath, dtype="float32")[0] for one in short)
    joined = np.concatenate([first, np.zeros(2 * rate, np.float32), second])
    soundfile.write(tmp_path / "joined.flac", joined, rate)
    model = ssl_asr.load(whisper_tiny_en, device="cpu", times="max_prob")
    (result,) = model.transcribe(tmp_path / "joined.flac", vad=False)
    assert " ".join(word.text for word in result.words) == " ".join(result.text.split())
    starts = [word.start for word in result.words]
    assert starts == sorted(starts)
    assert all(0 < word.confidence <= 1 and word.start <= word.end for word in result.words)
    gap_start, gap_end = len(first) / rate, len(first) / rate + 2
    middles = [(word.start + word.end) / 2 for word in result.words]
    before = sum(middle < gap_start + 0.3 for middle in middles)
    after = sum(middle > gap_end - 0.3 for middle in middles)
    assert before + after >= len(middles) - 1, middles
    assert abs(before - len(short[0].text.split())) <= 2
    # The pause belongs to no word.
    inside = [word for word in result.words if word.end > gap_start + 0.05 and word.start < gap_end - 0.05]
    assert not inside
