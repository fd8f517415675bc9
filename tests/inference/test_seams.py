"""Seams of long recordings: text, words and windows are cut at one place."""

import itertools
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.inference.long_recordings import transcribe_by_timestamps
from ssl_asr.inference.recording import Recording
from ssl_asr.training.module import TEXT_ONLY, TranscribeOptions
from ssl_asr.types import Hypothesis, Segment, Utterance, Word, text_of
from tests.inference.formats.reading import read_textgrid

TIMES = TranscribeOptions(confidence="max_prob")


def phrase(text, *times):
    """A segment whose words have the given starts and ends, in pairs."""
    pairs = list(zip(times[::2], times[1::2], strict=True))
    words = [Word(one, *pair, 0.9) for one, pair in zip(text.split(), pairs, strict=True)]
    return Segment(text, times[0], times[-1], 0.9, tuple(words))


@dataclass
class Scripted:
    """A `TimestampModule` that answers each window from a script: segments, number of complete ones, last timestamp."""

    script: list
    measure: str | None = "max_prob"
    speech_encoder: object = field(default_factory=lambda: SimpleNamespace(max_s=30.0))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    starts: list = field(default_factory=list)
    durations: list = field(default_factory=list)

    def confidence_measure(self, measure, *, required):
        return measure and self.measure

    def transcribe(self, batch, out=None, options=TEXT_ONLY):
        assert options.timestamps
        [utterance] = batch.utterances
        self.starts.append(round(utterance.offset, 6))
        self.durations.append(round(utterance.duration, 6))
        segments, *_ = self.script[len(self.starts) - 1]
        if options.confidence is None:
            segments = [Segment(one.text, one.start, one.end, one.confidence) for one in segments]
        return [Hypothesis(utterance.id, " ".join(one.text for one in segments), -0.1, segments=segments)]

    def segments_of(self, hypothesis, duration):
        _, complete, last_time = self.script[len(self.starts) - 1]
        return hypothesis.segments[:complete], min(last_time, duration)


def run(script, seconds, options=TIMES, **changes):
    module = Scripted(script, **changes)
    recording = Recording(Utterance("u", "", seconds), torch.zeros(round(seconds * 16000)))
    found = transcribe_by_timestamps(module, recording, options)
    check(found, seconds, words=options.confidence is not None)
    return found, module.starts


def check(found, seconds, words=True):
    """What holds for every transcript."""
    assert found.text == " ".join(one.text for one in found.segments)
    assert all(one.start < one.end for one in found.segments)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found.segments))
    assert [word for one in found.segments for word in one.words] == found.words
    if not words:
        assert not found.words
        return
    assert [word.text for word in found.words] == found.text.split()
    assert text_of(found.words) == found.text
    assert all(text_of(one.words) == one.text for one in found.segments)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found.words))
    assert all(0 <= word.start < word.end <= seconds + 1e-9 for word in found.words)


def test_next_window_starts_between_the_last_kept_and_the_first_unfinished_word():
    """The last timestamp, 26.0 s, lies before the end of the phrase."""
    script = [
        ([phrase("can do for you,", 24, 25, 25, 25.6, 25.9, 26.2, 26.2, 26.8), phrase("ask", 27.6, 28)], 1, 26.0),
        ([phrase("ask what", 0.4, 1, 1, 2)], 1, 30.0),
    ]
    found, starts = run(script, 40.0)
    assert starts == [0.0, 27.2]
    assert found.text == "can do for you, ask what"
    assert found.words[-2].start == pytest.approx(27.6)
    plain, plain_starts = run(script, 40.0, TEXT_ONLY)
    assert (plain.text, plain_starts) == (found.text, starts)
    assert [(one.start, one.end) for one in plain.segments] == [(one.start, one.end) for one in found.segments]


@pytest.mark.parametrize(("last_time", "expected"), [(26.0, 27.0), (27.5, 27.5), (24.0, 26.0), (29.9, 29.9)])
def test_without_unfinished_words_the_seam_is_the_later_of_word_and_timestamp(last_time, expected):
    script = [([phrase("one", 26, 27)], 1, last_time), ([phrase("two", 1, 2)], 1, 30.0)]
    assert run(script, 40.0)[1] == [0.0, expected]


def test_a_model_without_word_times_is_cut_at_the_last_timestamp():
    script = [([phrase("one", 26, 27), phrase("two", 28, 29)], 1, 26.5), ([phrase("two", 1, 2)], 1, 30.0)]
    found, starts = run(script, 40.0, TEXT_ONLY, measure=None)
    assert starts == [0.0, 26.5]
    assert found.text == "one two"


def test_repeated_words_at_a_seam_are_each_kept_once():
    script = [
        ([phrase("no no", 26, 26.5, 26.5, 28.2), phrase("no", 28, 29)], 1, 28.0),
        ([phrase("no no", 0.0, 0.0, 0.0, 0.5)], 1, 30.0),
    ]
    found, _ = run(script, 40.0)
    assert found.text == "no no no no"


def test_a_word_that_ends_after_the_seam_ends_with_the_next_word():
    script = [([phrase("have", 20, 29.9), phrase("a", 23, 24)], 1, 25.0), ([phrase("a degree", 0, 1, 1, 2)], 1, 30.0)]
    found, starts = run(script, 40.0)
    assert starts[1] == pytest.approx(26.45)
    assert found.words[0].end == found.words[1].start == pytest.approx(26.45)


def test_an_empty_window_loses_nothing_around_it():
    script = [([phrase("one", 1, 2)], 1, 30.0), ([], 0, 30.0), ([phrase("two", 1, 2)], 1, 30.0)]
    found, starts = run(script, 65.0)
    assert found.text == "one two"
    assert starts == [0.0, 30.0, 60.0]


def test_unfinished_text_is_kept_if_no_window_follows():
    script = [([phrase("one", 1, 10), phrase("two", 10, 10.01)], 1, 10.0)]
    assert run(script, 10.01)[0].text == "one two"
    assert run(script, 10.01, TEXT_ONLY)[0].text == "one two"


def test_times_after_the_end_of_the_recording_are_moved_into_it():
    script = [([phrase("one two three", 1, 2, 9, 29, 29, 29), phrase("four", 29.98, 30)], 2, 30.0)]
    found, _ = run(script, 10.0)
    assert found.text == "one two three four"
    assert found.words[-1].end == 10.0


def test_a_rest_shorter_than_a_frame_is_not_decoded():
    script = [([phrase("one", 1, 2)], 1, 30.0)]
    assert run(script, 30.015)[1] == [0.0]
    more = [*script, ([phrase("two", 0, 0.02)], 1, 30.0)]
    assert run(more, 30.03)[1] == [0.0, 30.0]


@pytest.fixture(scope="module")
def tiny(whisper_tiny_en):
    import ssl_asr

    return ssl_asr.load(whisper_tiny_en, device="cpu", times="max_prob")


@pytest.mark.slow
def test_text_words_and_every_format_agree_over_the_seams(whisper_tiny_en, data_root, tmp_path, run_command):
    """150 seconds of speech with pauses of a quarter of a second."""
    samples = []
    for utterance in read_manifest(data_root / "en_librispeech_mini" / "test.jsonl"):
        samples += [read_waveform(utterance).numpy(), np.zeros(4000, np.float32)]
        if sum(map(len, samples)) > 16000 * 150:
            break
    whole = np.concatenate(samples)
    soundfile.write(tmp_path / "long.wav", whole, 16000)
    command = [f"model={whisper_tiny_en}", f"input=[{tmp_path}/long.wav]", f"output={tmp_path}/o"]
    run_command("transcribe", *command, "format=[jsonl,ctm,textgrid]", "times=max_prob", "vad=false")
    row = json.loads((tmp_path / "o" / "transcripts.jsonl").read_text())
    words = row["text"].split()
    assert len(words) > 300
    assert [word["text"] for word in row["words"]] == words
    assert all(one["end"] <= other["start"] for one, other in itertools.pairwise(row["words"]))
    assert row["words"][-1]["end"] <= len(whole) / 16000
    lines = (tmp_path / "o" / "transcripts.ctm").read_text().splitlines()
    assert [line.split()[4] for line in lines if not line.startswith(";;")] == words
    tiers = read_textgrid((tmp_path / "o" / "long.TextGrid").read_text())
    assert [text for *_, text in tiers["words"]] == words


@pytest.mark.slow
def test_a_speech_repeated_four_times_has_its_words_four_times(tiny, data_root):
    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    speech = next(one for one in manifest if one.id == "1898-145715-0006")
    samples_T = read_waveform(speech)
    [once] = tiny.transcribe(samples_T)
    [four] = tiny.transcribe(samples_T.repeat(4))

    def spoken(text):
        return [word.strip(".,;:!?\"'").lower() for word in text.split()]

    assert spoken(four.text) == spoken(once.text) * 4
    assert [word.text for word in four.words] == four.text.split()
