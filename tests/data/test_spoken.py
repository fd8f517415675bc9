"""Synthesized corpora: sentences, levels, lengths and manifests."""

import json
import random
from typing import ClassVar

import numpy as np
import pytest
import soundfile

from ssl_asr.data.corpora import spoken
from ssl_asr.data.corpora.spoken import VOICES, CorpusSizes, Espeak, make_corpus, sentences
from ssl_asr.errors import ConfigError


@pytest.fixture(scope="module")
def espeak():
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")
    return Espeak()


def test_sentences_do_not_repeat_and_two_drugs_of_a_sentence_differ():
    stream = sentences(random.Random(0))
    made = [next(stream) for _ in range(500)]
    assert len(set(made)) == 500
    assert all("{" not in text for text in made)
    assert [next(sentences(random.Random(0))) for _ in range(2)] == made[:1] * 2


def test_speech_is_louder_than_nothing_and_quicker_with_more_words_per_minute(espeak):
    assert espeak.rate == 22_050
    slow = espeak.say("give warfarin at night", voice="en", words_per_minute=150, pitch=50)
    quick = espeak.say("give warfarin at night", voice="en", words_per_minute=250, pitch=50)
    assert slow.dtype == np.float32
    assert 0.05 < np.abs(slow).max() <= 1.0
    assert 1.3 < len(slow) / len(quick) < 2.0
    with pytest.raises(ConfigError, match="espeak-ng has no voice 'nobody'"):
        espeak.say("a", voice="nobody", words_per_minute=150, pitch=50)


def test_a_room_adds_silence_and_noise_of_the_level_that_was_drawn():
    """A tone of 0.5 with power 1/8: peak 0.2 to 0.8, 0.05 to 0.3 s on both sides, noise 20 to 35 dB below the tone."""
    tone = (0.5 * np.sin(np.arange(32_000) * 0.2)).astype(np.float32)
    lengths, snrs, peaks = [], [], []
    for seed in range(60):
        made = spoken._room(tone.copy(), np.random.default_rng(seed))
        noise = made[:800].std()
        lengths.append(len(made) - 32_000)
        snrs.append(10 * np.log10(0.125 / noise**2))
        peaks.append(np.abs(made[2000:30_000]).max() - 3.5 * noise)
        assert np.abs(made[:800]).max() < 5 * noise
    assert 1600 <= min(lengths) < 3500
    assert 7500 < max(lengths) < 9600
    assert min(snrs) == pytest.approx(20, abs=1.5)
    assert max(snrs) == pytest.approx(35, abs=1.5)
    assert 0.1 < min(peaks) < 0.35
    assert 0.65 < max(peaks) < 0.85


class _Beep:
    """Says everything as half a second of a tone, and notes how."""

    rate = 8000
    said: ClassVar[list] = []

    def say(self, text, **how):
        self.said.append((text, how))
        return np.sin(np.arange(4000) * 0.3).astype(np.float32)


def test_corpus_has_its_sizes_voices_and_durations(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "Espeak", _Beep)
    _Beep.said = []
    finished = []
    sizes = CorpusSizes(train=12, dev=2, test=3)
    manifests = make_corpus(tmp_path, sizes, seed=4, progress=lambda done, total: finished.append((done, total)))
    assert finished == [(number, 17) for number in range(1, 18)]
    assert list(manifests) == ["train", "dev", "test"]
    texts = []
    for split, count in (("train", 12), ("dev", 2), ("test", 3)):
        rows = [json.loads(line) for line in manifests[split].read_text().splitlines()]
        assert [row["id"] for row in rows] == [f"{split}-{number:04d}" for number in range(count)]
        assert [row["speaker"] for row in rows] == [VOICES[split][n % len(VOICES[split])] for n in range(count)]
        for row in rows:
            samples, rate = soundfile.read(tmp_path / row["audio_filepath"])
            assert (rate, row["duration"], row["lang"]) == (16_000, len(samples) / 16_000, "en")
            assert 0.6 <= row["duration"] <= 1.1, "half a second, and 0.05 to 0.3 s on both sides"
            assert row["audio_filepath"] == f"audio/{split}/{row['id']}.flac"
        texts += [row["text"] for row in rows]
    assert [text for text, _ in _Beep.said] == texts
    assert len(set(texts)) == 17
    speeds, heights = ([how[key] for _, how in _Beep.said] for key in ("words_per_minute", "pitch"))
    assert 150 <= min(speeds) < 175 < 190 < max(speeds) < 210
    assert 35 <= min(heights) < 45 < 55 < max(heights) < 65
    assert [how["voice"] for _, how in _Beep.said][12:14] == [VOICES["dev"][n % len(VOICES["dev"])] for n in (0, 1)]


def test_corpus_is_made_again_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken, "Espeak", _Beep)
    sizes = CorpusSizes(train=2, dev=1, test=1)
    manifests = make_corpus(tmp_path, sizes, seed=4)
    first = [path.read_text() for path in manifests.values()]
    assert make_corpus(tmp_path, sizes, seed=4) == manifests
    assert [path.read_text() for path in manifests.values()] == first
