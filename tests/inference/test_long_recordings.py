"""Long recordings: every frame is kept once, and the text is that of one pass."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from ssl_asr.data.manifest import read_manifest
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.long_recordings import transcribe_by_windows, transcribe_long, windows
from ssl_asr.inference.recording import Recording
from ssl_asr.metrics.edit import word_edits
from ssl_asr.training.module import TEXT_ONLY, TranscribeOptions
from ssl_asr.types import Hypothesis, Utterance, text_of
from tests.training.toy_runs import build, toy_overrides


@pytest.mark.parametrize("total", [1, 319, 320, 5000, 9600, 9601, 16000, 123457])
@pytest.mark.parametrize(("window", "stride"), [(9600, 1600), (9601, 1500), (3200, 0)])
def test_windows_keep_every_frame_once_with_context_on_both_sides(total, window, stride):
    frames = total // 320
    plan = windows(total, window=window, stride=stride, hop=320, frames=frames)
    kept = [frame for one in plan for frame in range(one.keep_from, one.keep_to)]
    assert kept == list(range(frames))
    assert plan[0].start == 0
    assert plan[-1].end == total
    for one in plan:
        assert one.start == one.first_frame * 320
        assert one.start % 320 == 0
        assert one.end - one.start <= window
        context = (stride - stride % 320) // 320
        assert one.keep_from - one.first_frame == (0 if one is plan[0] else context)
        if one is not plan[-1]:
            assert one.end // 320 - one.keep_to >= context
    assert len(windows(min(total, window), window=window, stride=stride, hop=320, frames=frames)) <= 2


class _Local(nn.Module):
    """An encoder with frames that depend on 640 samples only."""

    max_s = None

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 6, 640, stride=320, padding=160)

    def frame_lengths(self, lengths_B):
        return lengths_B // 320


@pytest.fixture
def local(monkeypatch, toy_checkpoints, toy_corpus, tmp_path):
    """A CTC module with log-probabilities from a local encoder."""
    module = build(tmp_path / "run", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)).module.eval()
    encoder = _Local()
    module.encoder = encoder
    module.states = nn.Identity()
    module.states.frame_lengths = lambda lengths_B: lengths_B
    out = nn.Conv1d(6, module.tokenizer.vocab_size, 1)

    def log_probs(batch, *_):
        h = out(encoder.conv(batch.waveform_BT[:, None]) * 30).transpose(1, 2)
        return (h * 3).log_softmax(-1), encoder.frame_lengths(batch.lengths_B)

    monkeypatch.setattr(module, "log_probs", log_probs)
    return module


def by_windows(module, utterance, *, chunk_s, batch_s, stride_s=1.0, progress=lambda _: None):
    long_form = LongForm(chunk_s=chunk_s, stride_s=stride_s, batch_s=batch_s)
    return transcribe_by_windows(module, Recording(utterance), long_form, TEXT_ONLY, progress)


@torch.inference_mode()
def test_joined_windows_equal_one_pass_for_a_local_encoder(local, tmp_path):
    noise = np.random.default_rng(0).standard_normal(16000 * 21).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    utterance = Utterance("long", str(tmp_path / "long.wav"), 21.0)
    whole = by_windows(local, utterance, chunk_s=30.0, stride_s=4.0, batch_s=60.0)
    seconds = []
    parts = by_windows(local, utterance, chunk_s=4.0, batch_s=9.0, progress=seconds.append)
    assert len(seconds) > 3
    assert seconds == sorted(seconds)
    assert seconds[-1] == 21.0
    assert len(whole.tokens) > 50
    assert parts.tokens == whole.tokens
    assert parts.score == pytest.approx(whole.score, abs=1e-5)
    # A part of a file starts at its offset.
    inner = by_windows(local, Utterance("inner", utterance.audio_filepath, 8.0, offset=5.0), chunk_s=4.0, batch_s=9.0)
    assert inner.tokens[3:-3] == whole.tokens[slice(*_find(whole.tokens, inner.tokens[3:-3]))]


@torch.inference_mode()
def test_words_of_joined_windows_increase_over_the_seams(local, tmp_path):
    noise = np.random.default_rng(1).standard_normal(16000 * 11 + 77).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    utterance = Utterance("long", str(tmp_path / "long.wav"), len(noise) / 16000)
    long_form = LongForm(chunk_s=4.0, stride_s=1.0, batch_s=9.0)
    options = TranscribeOptions(confidence="max_prob")
    found = transcribe_by_windows(local, Recording(utterance), long_form, options)
    plain = transcribe_by_windows(local, Recording(utterance), long_form, TEXT_ONLY)
    assert found.text == plain.text == text_of(found.words)
    assert len(found.words) > 5
    assert all(one.end <= other.start for one, other in itertools.pairwise(found.words))
    assert all(0 <= word.start < word.end <= utterance.duration for word in found.words)


def _find(whole, part):
    start = next(i for i in range(len(whole)) if whole[i : i + len(part)] == part)
    return start, start + len(part)


def _join(data_root, path, seconds):
    """Real utterances joined with half a second of silence up to a length, and their text."""
    samples, said = [], []
    for utterance in read_manifest(data_root / "en_librispeech_mini" / "test.jsonl"):
        audio, rate = soundfile.read(utterance.audio_filepath, dtype="float32")
        assert rate in (16000, 48000, 24000)
        samples += [audio[:: rate // 16000] if rate != 16000 else audio, np.zeros(8000, np.float32)]
        said.append(utterance.text)
        if sum(map(len, samples)) > 16000 * seconds:
            break
    whole = np.concatenate(samples)
    soundfile.write(path, whole, 16000)
    return Utterance(path.stem, str(path), len(whole) / 16000), " ".join(said)


@pytest.fixture(scope="module")
def joined(data_root, tmp_path_factory):
    """Two minutes of speech, and their text."""
    return _join(data_root, tmp_path_factory.mktemp("joined") / "joined.flac", 100)


@pytest.mark.slow
@pytest.mark.parametrize("vad", ["true", "false"])
def test_memory_does_not_grow_with_the_length_of_a_recording(whisper_tiny_en, data_root, tmp_path, vad):
    peaks = []
    for minutes in (5, 20):
        utterance, said = _join(data_root, tmp_path / f"{minutes}.flac", 60 * minutes)
        manifest = tmp_path / f"{minutes}.jsonl"
        line = {"audio_filepath": utterance.audio_filepath, "duration": utterance.duration, "text": said}
        manifest.write_text(json.dumps(line) + "\n")
        command = [sys.executable, "-m", "ssl_asr", "evaluate", f"model={whisper_tiny_en}", f"manifest={manifest}"]
        process = subprocess.Popen(
            [*command, f"vad={vad}", f"output_dir={tmp_path}/{minutes}"], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        results = json.loads((tmp_path / str(minutes) / "results.json").read_text())
        [scores] = [one["scores"] for one in results.values() if isinstance(one, dict) and "scores" in one]
        assert scores["whisper_english"]["wer"] < 0.1
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < 1.25 * peaks[0], peaks


def test_whisper_transcribes_every_segment_of_a_long_recording(whisper_tiny_en, joined):
    from ssl_asr.data.text import get_normalizer
    from ssl_asr.inference.model import InferenceOptions, load_model

    utterance, said = joined
    module = load_model(str(whisper_tiny_en), InferenceOptions(), lambda _: None)
    seconds = []
    long_form = LongForm(chunk_s=30.0, stride_s=4.0, batch_s=60.0, vad=False)
    found = transcribe_long(module, Recording(utterance), long_form, TEXT_ONLY, seconds.append)
    assert len(seconds) > 3
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(utterance.duration, abs=0.03)
    normalize = get_normalizer("whisper_english")
    edits = word_edits(normalize(said, None), normalize(found.text, None))
    assert edits.rate < 0.12, (edits, found.text)
    starts = [segment.start for segment in found.segments]
    assert starts == sorted(starts)
    assert all(one.start <= one.end <= utterance.duration for one in found.segments)
    assert found.segments[-1].end > utterance.duration - 3
    assert not module.decoder.timestamps, "the decoder option does not change"


def test_parts_found_by_voice_activity_cover_the_speech_and_fit_the_model(whisper_tiny_en, joined):
    import ssl_asr
    from ssl_asr.data.text import get_normalizer

    utterance, said = joined
    spans = Recording(utterance).speech(30.0)
    assert all(start < end <= utterance.duration + 0.1 and end - start <= 30.0 for start, end in spans)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    model = ssl_asr.load(whisper_tiny_en, device="cpu")
    (found,) = model.transcribe(utterance.audio_filepath, vad=True)
    normalize = get_normalizer("whisper_english")
    assert word_edits(normalize(said, None), normalize(found.text, None)).rate < 0.12
    starts = [segment.start for segment in found.segments]
    assert starts == sorted(starts)
    assert starts[-1] > utterance.duration - 31


def test_batch_size_counts_encoded_seconds_not_speech(whisper_tiny_en, joined, monkeypatch):
    """With 30-second windows, a part of one second costs as much as a part of thirty."""
    from ssl_asr.inference.model import InferenceOptions, load_model

    utterance, _ = joined
    module = load_model(str(whisper_tiny_en), InferenceOptions(), lambda _: None)
    monkeypatch.setattr(Recording, "speech", lambda *_: [(i * 2.0, i * 2.0 + 0.5) for i in range(20)])
    sizes = []

    def transcribe(batch, out=None, options=None):
        sizes.append(len(batch))
        return [Hypothesis(one.id, "", 0.0) for one in batch.utterances]

    monkeypatch.setattr(module, "transcribe", transcribe)
    long_form = LongForm(chunk_s=30.0, stride_s=4.0, batch_s=120.0, vad=True)
    seconds = []
    transcribe_long(module, Recording(utterance), long_form, TEXT_ONLY, seconds.append)
    assert sizes == [4] * 5
    silence_s = utterance.duration - 10
    assert seconds == pytest.approx([silence_s + 2 * batches for batches in range(1, 6)])
    module.model.encoder.window = "real"
    sizes.clear()
    transcribe_long(module, Recording(utterance), long_form, TEXT_ONLY)
    assert sizes == [20]


def test_temperature_fallback_does_not_depend_on_the_batch(whisper_tiny_en, data_root):
    from dataclasses import replace

    from ssl_asr.data.audio import read_waveform
    from ssl_asr.data.dataset import collate
    from ssl_asr.inference.model import InferenceOptions, load_model
    from ssl_asr.types import Example

    module = load_model(str(whisper_tiny_en), InferenceOptions(), lambda _: None)
    manifest = read_manifest(data_root / "en_an4" / "test.jsonl")
    examples = [Example(manifest[i], read_waveform(manifest[i]), []) for i in (0, 5)]
    silent = Utterance("silent", "", 2.0)
    batch = collate([*examples, Example(silent, torch.zeros(32000), [])])
    with torch.inference_mode():
        plain = module.transcribe(batch)
        # No text passes the test, so every text is sampled at the last temperature.
        module.set_decoder(replace(module.decoder, temperatures=[0.0, 0.7], min_log_prob=1.0))
        sampled = module.transcribe(batch)
        assert [one.text for one in sampled] != [one.text for one in plain]
        for i in range(2):
            assert module.transcribe(collate(examples[i : i + 1]))[0].text == sampled[i].text
        module.set_decoder(replace(module.decoder, temperatures=[0.0], min_log_prob=-0.2, no_speech=0.3))
        assert module.transcribe(batch)[2].text == ""
