"""Words moved out of the pauses, on made waveforms and on real speech."""

import pytest
import torch

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.pauses import sounds, without_pauses
from ssl_asr.types import Word


def _wave(*parts, noise=0.0):
    """Parts of (seconds, amplitude) of white noise, with noise over all of them."""
    samples_T = torch.cat([torch.randn(round(seconds * 16000)) * amplitude for seconds, amplitude in parts])
    return samples_T + noise * torch.randn(len(samples_T))


def _close(found, expected, by=0.03):
    assert len(found) == len(expected), found
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=by)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3, 1e-2])
def test_stretches_of_sound_are_found_at_any_level_of_noise(noise):
    wave = _wave((0.5, 0), (1.0, 0.2), (0.1, 0), (0.4, 0.2), (0.7, 0), (0.5, 0.1), (0.3, 0), noise=noise)
    _close(sounds(wave), [(0.5, 2.0), (2.7, 3.2)])


def test_no_stretch_is_found_without_contrast():
    assert sounds(_wave((3.0, 0.1))) == []
    assert sounds(torch.zeros(16000)) == []
    assert sounds(torch.zeros(0)) == sounds(torch.zeros(100)) == []


def test_a_click_is_no_stretch():
    wave = _wave((0.5, 0), (0.01, 0.5), (0.5, 0), (1.0, 0.2), (0.5, 0))
    _close(sounds(wave), [(1.01, 2.01)])


def _moved(times, stretches):
    words = without_pauses([Word("w", *pair, 1.0) for pair in times], stretches)
    return [(word.start, word.end) for word in words]


@pytest.mark.parametrize(
    ("times", "stretches", "expected"),
    [
        # The first word does not begin in the silence, the last one does not end in it.
        ([(0.0, 1.5), (1.5, 3.0)], [(1.0, 2.0)], [(1.0, 1.5), (1.5, 2.0)]),
        # The pause between two words belongs to neither of them.
        ([(0.0, 2.0), (2.0, 3.0)], [(0.0, 1.0), (1.8, 3.0)], [(0.0, 1.0), (1.8, 3.0)]),
        ([(0.0, 0.9), (0.9, 3.0)], [(0.0, 1.0), (1.8, 3.0)], [(0.0, 1.0), (1.8, 3.0)]),
        # A word without sound and words without stretches stay where they are.
        ([(0.0, 1.0), (1.2, 1.6), (1.6, 3.0)], [(0.0, 1.0), (1.8, 3.0)], [(0.0, 1.0), (1.2, 1.6), (1.8, 3.0)]),
        ([(0.0, 1.0), (1.0, 2.0)], [], [(0.0, 1.0), (1.0, 2.0)]),
        ([], [(0.0, 1.0)], []),
    ],
)
def test_words_are_moved_to_their_sound(times, stretches, expected):
    assert _moved(times, stretches) == expected


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_ends_of_real_speech_are_found(data_root, noise):
    """Utterances cut to their speech, between seconds of silence."""
    found = 0
    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    for utterance in [one for one in manifest if 3 < one.duration < 8][:10]:
        samples_T = read_waveform(utterance)
        level_F = samples_T[: len(samples_T) // 160 * 160].view(-1, 160).square().mean(1)
        loud = (level_F > level_F.quantile(0.95) / 1000).nonzero()[:, 0]
        speech_T = samples_T[int(loud[0]) * 160 : int(loud[-1] + 1) * 160]
        wave_T = torch.cat([torch.zeros(16000), speech_T, torch.zeros(16000)])
        stretches = sounds(wave_T + noise * torch.randn(len(wave_T)))
        found += abs(stretches[0][0] - 1) < 0.1 and abs(stretches[-1][1] - 1 - len(speech_T) / 16000) < 0.1
    assert found >= 9


def test_the_stretch_of_a_word_is_the_one_with_most_of_it():
    assert _moved([(0.5, 3.0)], [(0.0, 1.0), (1.5, 2.6), (2.8, 9.0)]) == [(1.5, 2.6)]
    assert _moved([(1.0, 2.0)], [(0.0, 1.0), (2.0, 3.0)]) == [(1.0, 2.0)], "a word that only touches its neighbors"
