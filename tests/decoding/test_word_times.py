"""Word times from attention: time warping against transformers and brute force, and words on real speech."""

import itertools

import numpy as np
import pytest
import soundfile
import torch
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.word_times import first_frames, smoothed, words_of_tokens


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


def test_smoothed_table_equals_transformers():
    weights = torch.rand(3, 6, 40)
    normal = (weights - weights.mean(1, keepdim=True)) / weights.std(1, keepdim=True, unbiased=False)
    expected = _median_filter(normal[None], 7)[0].mean(0)
    assert np.allclose(smoothed(weights), expected.numpy(), atol=1e-5)


def test_tokens_of_one_character_stay_in_one_word():
    pieces = {1: b" na", 2: b"\xc3", 3: b"\xaf", 4: b"ve", 5: b" ok", 6: b","}
    weights = torch.rand(2, 7, 30)
    words = words_of_tokens(
        [1, 2, 3, 4, 5, 6],
        weights,
        [0.9, 0.8, 0.3, 0.7, 0.6, 0.5],
        spell=lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace"),
        frame_s=0.02,
        lang="fr",
    )
    assert [(word.text, word.confidence) for word in words] == [("naïve", 0.3), ("ok,", 0.5)]
    assert words[0].end == words[1].start
    assert [token.confidence for word in words for token in word.tokens] == [0.9, 0.8, 0.3, 0.7, 0.6, 0.5]
    for word in words:
        times = [at for token in word.tokens for at in (token.start, token.end)]
        assert times == sorted(times)
        assert (times[0], times[-1]) == (word.start, word.end)
    assert words_of_tokens([], weights, [], spell=str, frame_s=0.02, lang=None) == []


def test_each_character_is_a_word_in_languages_without_spaces():
    weights = torch.rand(2, 4, 30)

    def spell(ids):
        return "".join("你好。"[i] for i in ids)

    words = words_of_tokens([0, 1, 2], weights, [0.9] * 3, spell=spell, frame_s=0.02, lang="zh")
    assert [word.text for word in words] == ["你", "好。"]


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
