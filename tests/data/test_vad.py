"""Voice activity detection against the published network, and what is not speech."""

import itertools
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.silero import FRAME, FRAME_S, speech_probabilities
from ssl_asr.data.vad import PAD_S, Activity, activity, batch_parts, packed, parts_of, speech_parts

RATE = 16000


def speech_of(samples):
    return activity(iter([torch.as_tensor(samples).float()[None]]))[0].speech()


def test_probabilities_equal_those_of_the_published_network():
    """The published network takes one frame at a time."""
    path = Path(find_spec("silero_vad").origin).parent / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published = torch.jit.load(path).eval()
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(FRAME * 40 + 100, generator=generator) * torch.linspace(0, 0.3, FRAME * 40 + 100)
    samples += 0.2 * torch.sin(torch.arange(len(samples)) * 0.08) * torch.sin(torch.arange(len(samples)) * 0.002)
    whole = torch.nn.functional.pad(samples, (0, -len(samples) % FRAME))
    with torch.no_grad():
        expected = [float(published(whole[i : i + FRAME], RATE)) for i in range(0, len(whole), FRAME)]
    found = speech_probabilities(iter([samples[None]]))[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    blocks = [samples[None, : 10 * FRAME], samples[None, 10 * FRAME : 30 * FRAME], samples[None, 30 * FRAME :]]
    assert speech_probabilities(iter(blocks))[0].tolist() == pytest.approx(expected, abs=1e-5)


def not_speech(seconds):
    """Sounds without speech, by name."""
    rng = np.random.default_rng(0)
    count = RATE * seconds
    t = np.arange(count) / RATE
    yield "zeros", np.zeros(count)
    yield "constant", np.full(count, 0.5)
    for level in (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0):
        yield f"white noise {level}", np.clip(rng.standard_normal(count) * level, -1, 1)
    brown = np.cumsum(rng.standard_normal(count))
    yield "brown noise", 0.5 * brown / np.abs(brown).max()
    yield "noise in bursts", rng.standard_normal(count) * 0.1 * (1 + np.sin(2 * np.pi * 4 * t)) / 2
    for frequency in (50, 60, 100, 150, 200, 300, 440, 700, 1000, 4000):
        for level in (0.01, 0.3, 1.0):
            yield f"{frequency} Hz {level}", level * np.sin(2 * np.pi * frequency * t)
        yield f"{frequency} Hz after a pause", 0.3 * np.sin(2 * np.pi * frequency * t) * (t > seconds / 2)
    yield "dial tone", 0.3 * (np.sin(2 * np.pi * 350 * t) + np.sin(2 * np.pi * 440 * t))
    yield "key tone", 0.3 * (np.sin(2 * np.pi * 697 * t) + np.sin(2 * np.pi * 1209 * t))
    yield "beeps", 0.5 * np.sin(2 * np.pi * 1000 * t) * (t % 1 < 0.2)
    yield "square wave", 0.3 * np.sign(np.sin(2 * np.pi * 120 * t))
    yield "sweep", 0.5 * np.sin(2 * np.pi * (100 * t + 3900 / (2 * seconds) * t * t))
    yield "clicks", (np.arange(count) % RATE == 0).astype(float)
    yield "pulses", (np.arange(count) % 160 == 0).astype(float)


@pytest.mark.parametrize("seconds", [5, 40])
def test_nothing_is_heard_in_silence_noise_tones_and_clicks(seconds):
    assert not [name for name, samples in not_speech(seconds) if speech_of(samples)]


@pytest.mark.parametrize("samples", [1, 2, 511, 512, 513, 1024])
def test_very_short_recordings_have_no_speech(samples):
    assert speech_of(np.full(samples, 0.3)) == []


@pytest.mark.parametrize("corpus", ["en_an4", "en_digits_fsdd", "de_kerstin"])
def test_speech_is_heard_in_every_recording(data_root, corpus):
    """Also in isolated digits of a fifth of a second."""
    manifest = read_manifest(data_root / corpus / "test.jsonl")
    missed = [one.id for one in list(manifest)[:60] if not speech_of(read_waveform(one))]
    assert missed == []


@pytest.mark.parametrize("gain", [1.0, 0.03, 0.003, 0.001])
def test_quiet_speech_is_heard(data_root, gain):
    manifest = read_manifest(data_root / "en_an4" / "test.jsonl")
    assert [one.id for one in list(manifest)[:8] if not speech_of(read_waveform(one) * gain)] == []


def test_rows_of_a_batch_do_not_depend_on_each_other(data_root):
    manifest = read_manifest(data_root / "en_an4" / "test.jsonl")
    waves = [read_waveform(manifest[i]) for i in range(4)] + [torch.zeros(5000), torch.full((1,), 0.3)]
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    together = batch_parts(padded, lengths, longest_s=30.0)
    for wave, found in zip(waves, together, strict=True):
        assert found == batch_parts(wave[None], torch.tensor([len(wave)]), longest_s=30.0)[0]
        assert all(0 <= start < end <= len(wave) / RATE for start, end in found)
    assert [bool(found) for found in together] == [True] * 4 + [False] * 2


def test_blocks_of_a_long_recording_give_the_parts_of_the_whole(data_root, monkeypatch):
    manifest = read_manifest(data_root / "en_an4" / "test.jsonl")
    whole = torch.cat([torch.cat([read_waveform(manifest[i]), torch.zeros(16000)]) for i in range(6)])
    duration = len(whole) / RATE

    def read(start, length):
        return whole[round(start * RATE) : round((start + length) * RATE)]

    expected = speech_parts(read, duration=duration, longest_s=8.0)
    monkeypatch.setattr("ssl_asr.data.vad._BLOCK", 100 * FRAME)
    monkeypatch.setattr("ssl_asr.data.silero._FRAMES_AT_A_TIME", 30)
    found = speech_parts(read, duration=duration, longest_s=8.0)
    assert np.abs(np.array(found) - np.array(expected)).max() < 0.1


def made(probabilities, levels=None):
    """Frames with these probabilities that are no tones."""
    p = torch.tensor(probabilities)
    level = torch.tensor(levels) if levels is not None else torch.full_like(p, 0.1)
    return Activity(p, level, torch.zeros_like(p), torch.zeros_like(p))


def test_speech_starts_above_one_half_and_ends_after_three_frames_below_035():
    active = made([0.1, 0.4, 0.6, 0.9, 0.4, 0.3, 0.3, 0.6, 0.3, 0.3, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1])
    # The second stretch has a single frame.
    assert active.speech() == [(2, 8)]


def test_padding_stops_at_the_middle_of_a_pause_and_at_the_ends():
    speech = [0.9] * 20
    active = made(speech + [0.0] * 10 + speech + [0.0] * 100 + speech)
    duration = len(active.probability_F) * FRAME_S
    found = parts_of(active, duration=duration, longest_s=1.3)
    expected = [(0, 25 * FRAME_S), (25 * FRAME_S, 50 * FRAME_S + PAD_S), (150 * FRAME_S - PAD_S, duration)]
    assert np.array(found) == pytest.approx(np.array(expected))


def test_speech_without_a_pause_is_cut_where_it_is_quietest_and_nothing_is_lost():
    levels = [0.1] * 1000
    levels[250], levels[251], levels[620], levels[621] = 0.01, 0.01, 0.02, 0.02
    active = made([0.9] * 1000, levels)
    duration = 1000 * FRAME_S
    found = parts_of(active, duration=duration, longest_s=400 * FRAME_S)
    assert found[0][0] == 0
    assert found[-1][1] == duration
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
    assert all(0 < end - start <= 400 * FRAME_S for start, end in found)
    assert 250 * FRAME_S <= found[0][1] <= 252 * FRAME_S
    assert 620 * FRAME_S <= found[1][1] <= 621 * FRAME_S


def test_long_pauses_separate_parts():
    assert packed([(0.0, 2.0), (3.0, 9.0), (12.5, 13.0)], longest_s=30.0) == [(0.0, 9.0), (12.5, 13.0)]


def test_importing_the_detector_leaves_the_threads_alone():
    """The code of the package silero-vad sets torch to one thread. Its weights are read without it."""
    import sys

    speech_of(np.zeros(1000))
    assert "silero_vad" not in sys.modules


# Limits, worked out by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "spans"),
    [
        ([0.5, 0.5, 0.0, 0.0, 0.0], [(0, 2)]),
        ([0.5, 0.49, 0.0, 0.0, 0.0], []),
        ([0.6, 0.6, 0.36, 0.0, 0.0, 0.0], [(0, 3)]),
        ([0.6, 0.6, 0.34, 0.0, 0.0, 0.0], [(0, 2)]),
        ([0.6, 0.6, 0.0, 0.0, 0.6, 0.0], [(0, 5)]),
        ([0.6, 0.6, 0.0, 0.0, 0.0, 0.6, 0.6], [(0, 2), (5, 7)]),
        ([0.4, 0.6, 0.4, 0.6], [(1, 4)]),
        ([], []),
    ],
)
def test_stretches_of_speech_by_frame(probabilities, spans):
    assert made(probabilities).speech() == spans


@pytest.mark.parametrize(
    ("steady", "pure", "is_speech"),
    [(0.985, 0.985, True), (0.995, 0.5, False), (0.5, 0.995, False), (0.0, 0.0, True)],
)
def test_tones_are_no_speech(steady, pure, is_speech):
    p = torch.full((5,), 0.9)
    active = Activity(p, torch.full_like(p, 0.1), torch.full_like(p, steady), torch.full_like(p, pure))
    assert active.speech() == ([(0, 5)] if is_speech else [])


def test_the_first_frame_of_speech_does_not_make_it_a_tone():
    """It follows something else. Without it, the median of 0.5, 0.5 and 1 is 0.5."""
    p = torch.full((4,), 0.9)
    assert Activity(p, p, torch.tensor([1.0, 0.5, 0.5, 1.0]), torch.zeros(4)).speech() == [(0, 4)]
    assert Activity(p, p, torch.tensor([0.5, 1.0, 1.0, 0.5]), torch.zeros(4)).speech() == []


def test_padding_is_four_tenths_of_a_second():
    """Frames have 512 samples at 16 kHz, 0.032 s. Speech in frames 100 to 119 is 3.2 to 3.84 s."""
    active = made([0.0] * 100 + [0.9] * 20 + [0.0] * 100)
    assert parts_of(active, duration=220 * 0.032, longest_s=30.0) == [(pytest.approx(2.8), pytest.approx(4.24))]
    near = made([0.0] * 5 + [0.9] * 20 + [0.0] * 5)
    assert parts_of(near, duration=30 * 0.032, longest_s=30.0) == [(0.0, pytest.approx(0.96))]


@pytest.mark.parametrize(
    ("spans", "longest_s", "expected"),
    [
        ([(0.0, 2.0), (5.0, 6.0)], 30.0, [(0.0, 6.0)]),
        ([(0.0, 2.0), (5.01, 6.0)], 30.0, [(0.0, 2.0), (5.01, 6.0)]),
        ([(1.0, 2.0), (3.0, 6.0)], 5.0, [(1.0, 6.0)]),
        ([(1.0, 2.0), (3.0, 6.0)], 4.9, [(1.0, 2.0), (3.0, 6.0)]),
        ([(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)], 4.0, [(0.0, 3.0), (4.0, 5.0)]),
        ([], 4.0, []),
    ],
)
def test_spans_are_packed_up_to_the_longest_and_over_pauses_of_three_seconds(spans, longest_s, expected):
    assert packed(spans, longest_s=longest_s) == expected


def test_the_quietest_frame_has_the_lowest_level_and_probability_around_it():
    levels = [1.0, 0.2, 1.0, 1.0, 0.3, 0.3, 0.3, 1.0, 1.0]
    assert made([0.9] * 9, levels).quietest(0, 9) == 5
    assert made([0.9, 0.9, 0.0, 0.0, 0.0, 0.9, 0.9, 0.9, 0.9]).quietest(0, 9) == 3
    assert made([0.9] * 9, levels).quietest(6, 9) == 6
    assert made([0.9] * 9, levels).quietest(4, 4) == 4
