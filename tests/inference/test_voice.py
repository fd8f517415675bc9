"""Voice activity detection and language detection in transcription, with models that only report their input."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssl_asr.data.dataset import collate
from ssl_asr.errors import ConfigError
from ssl_asr.inference.languages import spread
from ssl_asr.inference.long_form import NO_VAD, LongForm, check_detection
from ssl_asr.inference.long_recordings import transcribe_long
from ssl_asr.inference.recording import Recording
from ssl_asr.inference.voice import transcribe_by_voice, transcribe_short
from ssl_asr.training.module import TEXT_ONLY
from ssl_asr.types import SAMPLE_RATE, Example, Hypothesis, Segment, Utterance, Word

FORM = LongForm(chunk_s=30.0, stride_s=4.0, batch_s=120.0)


@pytest.fixture
def terse(monkeypatch):
    """Accepts texts of any length, as those of the model below."""
    monkeypatch.setattr("ssl_asr.inference.voice._FEWEST_CHARACTERS_PER_S", 0.0)


class Model:
    """Writes one word for each utterance: its language, start and length. The language is in the first sample."""

    device = torch.device("cpu")
    speech_encoder = SimpleNamespace(
        encoded_s=lambda durations_N: np.full_like(durations_N, 30.0), budget_s=lambda given: given or 120.0, max_s=30.0
    )
    long_form = "timestamps"

    def __init__(self, *, detects=True):
        self.detects, self.batches, self.encoded = detects, [], 0

    def longest_pass_s(self, chunk_s):
        return 30.0

    def detects_language(self, utterance):
        return self.detects and utterance.lang is None

    def encode(self, batch):
        self.encoded += len(batch)
        return batch.waveform_BT[:, 0]

    def language_probabilities(self, out):
        return [{"de": value, "en": 1 - value} for value in out.tolist()]

    def transcribe(self, batch, out=None, options=TEXT_ONLY):
        self.batches.append([one.id for one in batch.utterances])
        if out is None:
            self.encoded += len(batch)
        return [
            Hypothesis(
                one.id,
                f"{one.lang}@{one.offset:.2f}",
                -1.0,
                words=[word],
                segments=[Segment(word.text, word.start, word.end, 1.0, (word,))],
            )
            for one in batch.utterances
            for word in [Word(f"{one.lang}@{one.offset:.2f}", 0.1, 0.2, 1.0)]
        ]

    def confidence_measure(self, measure, *, required):
        return measure

    def segments_of(self, hypothesis, duration):
        return hypothesis.segments, duration


def recording(monkeypatch, parts, values, *, total=None, lang=None, pieces=()):
    """A recording with these parts of speech. Each part's samples hold its probability of German.

    ``pieces`` is the speech within a part.
    """
    total = parts[-1][1] + 10 if total is None else total
    samples = torch.zeros(round(total * SAMPLE_RATE))
    for (start, end), value in zip(parts, values, strict=True):
        samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] = value
    monkeypatch.setattr(Recording, "speech", lambda *_, within=None: parts if within is None else list(pieces))
    return Recording(Utterance("r", "", total, lang=lang), samples)


PARTS = [(i * 40.0, i * 40.0 + 20.0) for i in range(12)]


@pytest.mark.usefixtures("terse")
def test_the_language_is_the_mean_over_five_parts_and_no_part_is_encoded_twice(monkeypatch):
    values = [0.1] * 12
    # Parts 1, 3, 6, 8 and 10 are probed.
    assert spread(range(12), 5) == [1, 3, 6, 8, 10]
    for row, value in zip((1, 3, 6, 8, 10), (0.9, 0.4, 0.8, 0.9, 0.4), strict=True):
        values[row] = value
    model = Model()
    found = transcribe_by_voice(model, recording(monkeypatch, PARTS, values), FORM, TEXT_ONLY)
    assert found.detected == "de"
    assert found.detected_probability == pytest.approx(0.68)
    assert found.text.split() == [f"de@{start:.2f}" for start, _ in PARTS]
    assert model.encoded == 12
    assert [word.start for word in found.words] == pytest.approx([start + 0.1 for start, _ in PARTS])


@pytest.mark.usefixtures("terse")
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_few_parts_are_all_probed(monkeypatch, count):
    model = Model()
    found = transcribe_by_voice(model, recording(monkeypatch, PARTS[:count], [0.75] * count), FORM, TEXT_ONLY)
    assert (found.detected, found.detected_probability) == ("de", pytest.approx(0.75))
    assert model.encoded == count


def test_each_stretch_has_its_language(monkeypatch):
    values = [0.9] * 3 + [0.2] * 9
    form = replace(FORM, detect_every_s=120.0)
    found = transcribe_by_voice(Model(), recording(monkeypatch, PARTS, values), form, TEXT_ONLY)
    assert [text[:2] for text in found.text.split()] == ["de"] * 3 + ["en"] * 9
    assert (found.detected, found.detected_probability) == ("en", pytest.approx(0.8))


def test_a_given_language_is_not_detected(monkeypatch):
    found = transcribe_by_voice(Model(), recording(monkeypatch, PARTS, [0.9] * 12, lang="fr"), FORM, TEXT_ONLY)
    assert found.detected is None
    assert found.text.startswith("fr@")


def test_without_voice_activity_the_language_still_comes_from_the_speech(monkeypatch):
    """The first window of this recording has no speech."""
    parts = [(65.0, 85.0), (95.0, 115.0)]
    form = replace(FORM, vad=False)
    found = transcribe_long(Model(), recording(monkeypatch, parts, [0.9, 0.8], total=120.0), form, TEXT_ONLY)
    assert found.detected == "de"
    assert found.detected_probability == pytest.approx(0.85)
    assert [text[:2] for text in found.text.split()] == ["de"] * 4
    monkeypatch.setattr(Recording, "speech", lambda *_: [])
    silent = Recording(Utterance("r", "", 70.0), torch.full((70 * SAMPLE_RATE,), 0.3))
    assert transcribe_long(Model(), silent, form, TEXT_ONLY).detected == "en"


def test_a_long_recording_without_speech_has_no_text_and_says_so():
    seconds = []
    silent = Recording(Utterance("r", "", 40.0), torch.zeros(40 * SAMPLE_RATE))
    model = Model()
    found = transcribe_long(model, silent, FORM, TEXT_ONLY, seconds.append)
    assert (found.text, found.no_speech, found.words, found.segments) == ("", True, [], [])
    assert model.batches == []
    assert seconds == [40.0]


@pytest.fixture
def half_silent(monkeypatch):
    """A batch whose second recording has no speech, and whose third has two stretches of it."""
    spans = [[(0.0, 2.0)], [], [(1.0, 3.0), (7.0, 9.5)]]
    monkeypatch.setattr("ssl_asr.inference.voice.batch_parts", lambda *_, **__: spans)
    utterances = [Utterance(name, "", float(s)) for name, s in (("a", 2), ("b", 5), ("c", 10))]
    waves = [torch.full((round(one.duration * SAMPLE_RATE),), 0.1) for one in utterances]
    return collate([Example(one, wave, []) for one, wave in zip(utterances, waves, strict=True)])


class EndsEarly(Model):
    """Writes three letters for each second of recordings up to 10 s, and one word for longer ones."""

    def __init__(self, word="cut"):
        super().__init__(detects=False)
        self.word = word

    def transcribe(self, batch, out=None, options=TEXT_ONLY):
        self.batches.append([one.duration for one in batch.utterances])
        texts = [self.word if one.duration > 10 else "abc " * int(one.duration) for one in batch.utterances]
        return [Hypothesis(one.id, text.strip(), -1.0) for one, text in zip(batch.utterances, texts, strict=True)]


def test_a_part_that_ends_after_a_few_words_is_decoded_in_pieces(monkeypatch):
    asked, pieces = [], [(30.0, 38.0), (39.0, 49.0)]
    whole = recording(monkeypatch, [(0.0, 9.0), (30.0, 50.0)], [0.1, 0.1], pieces=pieces)
    speech = Recording.speech

    def speech_within(self, longest_s, within=None):
        asked.append((longest_s, within))
        return speech(self, longest_s, within=within)

    monkeypatch.setattr(Recording, "speech", speech_within)
    found = transcribe_by_voice(EndsEarly(), whole, FORM, TEXT_ONLY)
    assert found.text == " ".join(["abc"] * (9 + 8 + 10))
    assert [(one.start, one.end) for one in found.segments] == [(0.0, 9.0), *pieces]
    assert asked[1:] == [(10.0, (30.0, 50.0))]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_score_of_a_recording_is_the_mean_and_a_part_without_segments_is_one(monkeypatch, parts):
    spans = [(10.0 * i, 10.0 * i + 5.0) for i in range(parts)]
    model, whole = EndsEarly(), recording(monkeypatch, spans, [0.1] * parts)
    found = transcribe_by_voice(model, whole, FORM, TEXT_ONLY)
    assert found.score == -1.0
    assert [(one.start, one.end, one.confidence) for one in found.segments] == [(*span, 1.0) for span in spans]


def test_a_short_text_stays_if_its_pieces_have_no_more(monkeypatch):
    whole = recording(monkeypatch, [(0.0, 24.0)], [0.1], pieces=[(0.0, 11.0), (12.0, 23.0)])
    found = transcribe_by_voice(EndsEarly(), whole, FORM, TEXT_ONLY)
    assert found.text == "cut"


def test_speech_within_a_part_has_times_of_the_recording(data_root):
    from ssl_asr.data.audio import read_waveform
    from ssl_asr.data.manifest import read_manifest

    speech = read_waveform(read_manifest(data_root / "en_an4" / "test.jsonl")[0])
    silence = torch.zeros(5 * SAMPLE_RATE)
    samples = torch.cat([speech, silence, speech, silence])
    whole = Recording(Utterance("r", "", len(samples) / SAMPLE_RATE), samples)
    first, second = whole.speech(30.0)
    after = len(speech) / SAMPLE_RATE
    assert whole.speech(30.0, within=(0.0, after + 2)) == [pytest.approx(first, abs=0.1)]
    assert whole.speech(30.0, within=(after + 2, whole.utterance.duration)) == [pytest.approx(second, abs=0.1)]


def test_ctc_is_not_decoded_again(monkeypatch):
    model = EndsEarly()
    model.long_form = "windows"
    transcribe_by_voice(model, recording(monkeypatch, [(0.0, 24.0)], [0.1]), FORM, TEXT_ONLY)
    assert model.batches == [[24.0]]


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        (FORM, ["None@0.00", "", "None@0.00"]),
        (replace(FORM, check_short=False), ["None@0.00"] * 3),
        (replace(FORM, vad=True), ["None@0.00", "", "None@1.00 None@7.00"]),
        (replace(FORM, vad=False), ["None@0.00"] * 3),
        (NO_VAD, ["None@0.00"] * 3),
    ],
)
def test_short_recordings(half_silent, form, texts):
    found = transcribe_short(Model(), half_silent, form, TEXT_ONLY)
    assert [one.id for one in found] == ["a", "b", "c"]
    assert [one.text for one in found] == texts
    assert [one.no_speech for one in found] == [not text for text in texts]
    starts = [word.start for one in found for word in one.words]
    assert starts == pytest.approx([float(t.split("@")[1]) + 0.1 for text in texts for t in text.split()])
    assert all(one.start <= other.start for h in found for one, other in itertools.pairwise(h.segments))


@pytest.mark.parametrize(
    ("form", "detects", "message"),
    [
        (replace(FORM, vad=False, detect_every_s=60.0), True, "vad=false"),
        (replace(FORM, detect_every_s=60.0), False, "multilingual"),
    ],
)
def test_detecting_again_is_refused_where_it_does_nothing(form, detects, message):
    with pytest.raises(ConfigError, match=message):
        check_detection(Model(detects=detects), form)


def test_detecting_again_is_accepted_for_a_multilingual_model():
    check_detection(Model(), replace(FORM, detect_every_s=60.0))
    check_detection(Model(detects=False), FORM)


@pytest.mark.parametrize("vad", [None, True])
def test_whisper_writes_nothing_for_silence_noise_and_tones(whisper_tiny_en, vad):
    import ssl_asr

    model = ssl_asr.load(whisper_tiny_en, device="cpu")
    rng = np.random.default_rng(0)
    sounds = [np.full(1, 0.5, np.float32)]
    for seconds in (5, 40):
        t = np.arange(SAMPLE_RATE * seconds) / SAMPLE_RATE
        clicks = (np.arange(len(t)) % SAMPLE_RATE == 0) * 0.9
        noise = 0.1 * rng.standard_normal(len(t))
        sounds += [one.astype(np.float32) for one in (0 * t, noise, 0.3 * np.sin(2 * np.pi * 440 * t), clicks)]
    found = model.transcribe(sounds, vad=vad)
    assert [one.text for one in found] == [""] * 9
    assert all(one.no_speech for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["zeros", "noise", "tone"])
@pytest.mark.parametrize("vad", [None, False])
def test_the_language_of_speech_after_another_sound(data_root, before, vad):
    import ssl_asr
    from ssl_asr.data.audio import read_waveform
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.errors import CheckpointError

    try:
        model = ssl_asr.load("openai/whisper-base", device="cpu")
    except CheckpointError as error:
        pytest.skip(str(error))
    manifest = read_manifest(data_root / "de_kerstin" / "test.jsonl")
    speech = np.concatenate([read_waveform(manifest[i]).numpy() for i in range(8)])[: 25 * SAMPLE_RATE]
    t = np.arange(35 * SAMPLE_RATE) / SAMPLE_RATE
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(t))
    first = {"zeros": 0 * t, "noise": noise, "tone": 0.3 * np.sin(2 * np.pi * 440 * t)}[before]
    (found,) = model.transcribe(np.concatenate([first, speech]).astype(np.float32), vad=vad)
    assert found.detected == "de"
    assert found.detected_probability > 0.8
    if vad is None:
        (alone,) = model.transcribe(speech)
        assert alone.detected == "de"
        assert len(found.text) > 0.8 * len(alone.text)


@pytest.mark.usefixtures("terse")
def test_segments_are_reported_in_order_of_time_as_they_are_done(monkeypatch):
    """Batches have consecutive parts, the first batch has one, and the result is that without reports."""
    spans = [(0.0, 20.0), (24.0, 26.0), (30.0, 58.0), (62.0, 63.0), (70.0, 75.0), (80.0, 82.0)]
    monkeypatch.setattr(Recording, "speech", lambda *_: spans)
    recording = Recording(Utterance("a", "", 90.0, lang="de"), torch.zeros(90 * SAMPLE_RATE))
    model, reports = Model(), []
    form = replace(FORM, batch_s=60.0)
    found = transcribe_by_voice(
        model, recording, form, TEXT_ONLY, on_segments=lambda new: reports.append((len(model.batches), new))
    )
    assert model.batches == [["a#0"], ["a#1", "a#2"], ["a#3", "a#4"], ["a#5"]]
    assert [batches for batches, _ in reports] == [1, 2, 2, 3, 3, 4]
    assert [one.text for _, new in reports for one in new] == [one.text for one in found.segments]
    assert [one.start for _, new in reports for one in new] == [one.start for one in found.segments]
    assert found == transcribe_by_voice(Model(), recording, form, TEXT_ONLY)
