"""Subtitles of real speech."""

import json

import numpy as np
import pytest
import soundfile

import ssl_asr
from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.data.audio import read_waveform
from ssl_asr.inference.formats.cues import cues_of
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.training.module import TranscribeOptions
from ssl_asr.types import SAMPLE_RATE, Utterance
from tests.inference.formats.reading import check_cues, read_srt, read_vtt


@pytest.mark.slow
def test_subtitles_of_two_and_a_half_minutes_are_within_the_limits(data_root, whisper_tiny_en, tmp_path):
    """Utterances of LibriSpeech with pauses of 0.25 s, transcribed by Whisper tiny.en with word times."""
    folder = data_root / "en_librispeech_mini"
    rows = [json.loads(line) for line in open(folder / "test.jsonl")]
    parts = []
    while sum(map(len, parts)) < 150 * SAMPLE_RATE:
        row = rows[len(parts)]
        utterance = Utterance(row["id"], str(folder / row["audio_filepath"]), row["duration"])
        parts.append(np.pad(read_waveform(utterance).numpy(), (0, SAMPLE_RATE // 4)))
    samples = np.concatenate(parts)[: 150 * SAMPLE_RATE]
    path = tmp_path / "long.wav"
    soundfile.write(path, samples, SAMPLE_RATE)
    model = ssl_asr.load(str(whisper_tiny_en))
    model.options = TranscribeOptions(confidence="max_prob")
    style = SubtitleStyle()
    for vad in (False, True):
        (hypothesis,) = model.transcribe([str(path)], vad=vad)
        made = Prediction.of(Utterance(hypothesis.id, str(path), 150.0), hypothesis)
        wanted = made.hyp.split()
        assert len(wanted) > 250
        for kind, read in {"srt": read_srt, "vtt": read_vtt}.items():
            cues = read(render([made], kind))
            check_cues(cues, style)
            assert " ".join(line for *_, lines in cues for line in lines).split() == wanted
        speeds = [(1000 * len(cue.text) / (cue.end - cue.start), cue) for cue in cues_of([made])]
        assert all((speed > 17) == cue.is_too_fast for speed, cue in speeds)
        # An hour of these readers has 28 of 887 cues that are too fast.
        assert np.mean([cue.is_too_fast for _, cue in speeds]) < 0.1
