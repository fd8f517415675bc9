"""Long recordings are cut in pauses between words that are sure, and parts with another text are found."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.text_alignment import written_words
from ssl_asr.errors import ConfigError
from ssl_asr.inference import cutting
from ssl_asr.inference import model as inference_model
from ssl_asr.inference.batches import Transcripts
from ssl_asr.inference.cutting import cut
from ssl_asr.inference.recording import Recording
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Hypothesis, Skip, Utterance, Word
from tests.data.sources import clip, reasons, run, text


def spoken(said, *, word_s=0.4, pause_s=0.1, pauses=()):
    """Words of ``word_s`` with times. Before each is ``pause_s``, or the pause that ``pauses`` has for its index."""
    words, at = [], 0.0
    for i, one in enumerate(said.split()):
        at += dict(pauses).get(i, pause_s)
        words.append(Word(one, at, at + word_s, 1.0))
        at += word_s
    return words


def pieces(said, heard, *, longest_s=3.0, tail_s=0.0):
    duration = max((word.end for word in heard), default=10.0) + tail_s
    edges = [(0.0, 0.0), *((word.start, word.end) for word in heard), (duration, duration)]
    pauses = [(one[1], other[0]) for one, other in pairwise(edges) if other[0] - one[1] > 0.15]
    found = cut(written_words(said, spaced=True), heard, pauses, duration=duration, longest_s=longest_s)
    words = said.split()
    assert [word for piece in found for word in words[piece.first : piece.last]] == words
    assert all(one.end <= other.start + 1e-9 for one, other in pairwise(found))
    texts = [" ".join(words[piece.first : piece.last]) for piece in found]
    times = [(round(piece.start, 3), round(piece.end, 3)) for piece in found]
    return texts, times, [piece.fault(longest_s) for piece in found]


def test_cuts_are_at_the_ends_of_sentences_in_the_middle_of_the_pause():
    said = "One two three. Four, five six seven. Eight nine ten."
    heard = spoken(said.lower().replace(".", "").replace(",", ""), pauses={3: 0.3, 5: 2.0, 7: 0.6})
    texts, times, faults = pieces(said, heard, longest_s=4.5)
    assert texts == ["One two three.", "Four, five six seven.", "Eight nine ten."]
    # Words end at 1.5, and start at 1.8: the middle is 1.65. The long pause is inside the second utterance.
    assert times == [(0.05, 1.65), (1.65, 5.9), (5.9, 7.6)]
    assert faults == [None] * 3


def test_without_punctuation_cuts_are_in_the_longest_pauses():
    said = "a b c d e f g h"
    texts, times, _ = pieces(said, spoken(said, pauses={3: 0.5, 5: 2.0}))
    assert texts == ["a b c", "d e", "f g h"]
    # At most half a second of a pause stays on either side.
    assert times == [(0.05, 1.75), (1.75, 3.4), (4.4, 6.3)]


def test_no_cut_is_beside_a_word_that_is_heard_otherwise():
    said = "a b c d e f g h"
    texts, times, faults = pieces(said, spoken("a b c X e f g h", pauses={3: 1.0, 4: 1.0, 6: 0.3}), longest_s=3.5)
    assert texts == ["a", "b c d e f", "g h"]
    assert times[1] == (0.55, 4.95)
    why = "no pause in it is sure, because the text differs from what the model hears"
    assert faults == [None, ("too_long", f"4.4 s are more than longest_s=3.5: {why}"), None]


def test_cuts_are_in_pauses_of_the_waveform():
    """The transcript gives the pause after the third word to that word, and has a pause inside the fifth word."""
    heard = [Word(word, i * 0.5, i * 0.5 + 0.5, 1.0) for i, word in enumerate(["a", "b", "c", "d", "e", "f"])]
    heard[4:] = [Word("e", 2.3, 2.4, 1.0), Word("f", 2.7, 3.0, 1.0)]
    pauses = [(1.28, 1.48)]
    found = cut(written_words("a b c d e f", spaced=True), heard, pauses, duration=3.0, longest_s=2.0)
    assert [(one.first, one.last) for one in found] == [(0, 3), (3, 6)]
    assert (found[0].end, found[1].start) == pytest.approx((1.38, 1.38))


def test_pauses_are_measured_in_blocks(monkeypatch):
    monkeypatch.setattr(cutting, "_BLOCK_S", 4.0)
    rng = np.random.default_rng(0)
    samples = 1e-4 * rng.standard_normal(8 * 16_000)
    for start, end in ((0.5, 1.5), (2.0, 3.5), (4.5, 5.5), (6.5, 7.5)):
        samples[int(start * 16_000) : int(end * 16_000)] = 0.1 * rng.standard_normal(int((end - start) * 16_000))
    recording = Recording(Utterance("a", "", 8.0), torch.tensor(samples, dtype=torch.float32))
    found = cutting.pauses_of(recording)
    assert np.allclose(found, [(0.0, 0.5), (1.5, 2.0), (5.5, 6.5)], atol=0.011)


def test_abbreviations_end_no_sentence():
    said = "we met Mr. Brown there and left"
    heard = spoken("we met mr brown there and left", pauses={3: 0.3, 5: 0.3})
    assert pieces(said, heard)[0] == ["we met Mr. Brown there", "and left"]


def test_speech_that_is_not_in_the_text_is_left_out():
    """A preamble, an insertion and an end, each of several words."""
    said = "a b c d e f"
    heard = spoken("x y z a b c q r s t d e f x y", pauses={3: 1.0, 6: 1.0, 10: 1.0, 13: 1.0})
    texts, times, faults = pieces(said, heard, longest_s=2.5)
    assert texts == ["a b c", "d e f"]
    assert times == [(2.0, 4.4), (7.3, 9.7)]
    assert faults == [None, None]


def test_a_text_that_is_not_spoken_is_found():
    said = "a b c d l m n o p q e f g h"
    texts, _, faults = pieces(said, spoken("a b c d u e f g h", pauses={2: 0.8, 7: 0.8}), longest_s=2.0)
    assert texts == ["a b", "c d l m n o p q e f", "g h"]
    assert faults[0] is faults[2] is None
    assert faults[1] == ("text_mismatch", "6 errors in 10 words between the text and what the model hears")


@pytest.mark.parametrize("heard", ["", "x y z"])
def test_another_recording_is_one_piece_with_a_reason(heard):
    texts, _, [fault] = pieces("a b c", spoken(heard))
    assert texts == ["a b c"]
    assert fault[0] == "text_mismatch"
    assert cut([], spoken(heard), [], duration=1.0, longest_s=2.0) == []


def test_random_recordings_keep_all_words_and_the_limit():
    rng = np.random.default_rng(0)
    for _ in range(100):
        words = [f"w{i}" for i in rng.integers(0, 30, rng.integers(1, 60))]
        heard = [word for word in words if rng.random() > 0.1]
        heard = [("x" if rng.random() < 0.1 else word) for word in heard]
        said = spoken(" ".join(heard), pauses={i: float(rng.exponential(0.3)) for i in range(60)})
        _, times, faults = pieces(" ".join(words), said, longest_s=4.0, tail_s=1.0)
        for (start, end), fault in zip(times, faults, strict=True):
            assert 0 <= start < end
            assert end - start <= 4.001 or fault is not None


# The command ---------------------------------------------------------------------------------------------------------


class _Model:
    """A model that hears the right words in most recordings."""

    def confidence_measure(self, measure, *, required):
        assert required
        return measure


@pytest.fixture
def heard(monkeypatch):
    """What the model hears, by the text of the recording."""
    texts = {}

    def transcribe(module, manifests, *, options, **_):
        assert options.confidence == "max_prob"
        done = Transcripts({"all": []}, {"all": []})
        for utterance in manifests["all"]:
            words = texts.get(utterance.text)
            if words is None:
                done.skips["all"].append(Skip(utterance.id, "", "decode_error", "cannot be decoded", 1.0))
            else:
                made = Hypothesis(utterance.id, " ".join(word.text for word in words), 0.0, words=words)
                done.predictions["all"].append(Prediction.of(utterance, made))
        return done

    monkeypatch.setattr(inference_model, "load_model", lambda *_: _Model())
    monkeypatch.setattr(cutting, "transcribe_manifests", transcribe)
    return texts


def test_prepare_cuts_long_recordings(heard, tmp_path, capsys):
    said = {"talk": "One two three. Four five six.", "other": "not what is said here", "bad": "bad", "short": "short"}
    for i, (name, words) in enumerate(said.items()):
        clip(tmp_path / "in" / f"{name}.wav", 1.0 if name == "short" else 4.0, rate=16_000, seed=i)
        text(tmp_path / "in" / f"{name}.txt", words)
    heard[said["talk"]] = spoken("one two three four five six", pauses={3: 0.5})
    heard[said["other"]] = spoken("quite another text was read")
    found = run(tmp_path / "in", tmp_path / "out", model="any", longest_s=2.0)
    assert "note: 3 recordings longer than 2 s are cut into 2 utterances" in capsys.readouterr().err
    rows = {row["id"]: row for row in found["all"]}
    assert rows.keys() == {"talk@0.050-1.750", "talk@1.750-3.700", "short"}
    assert rows["talk@1.750-3.700"] == {
        "audio_filepath": "../in/talk.wav",
        "duration": 1.95,
        "text": "Four five six.",
        "offset": 1.75,
        "id": "talk@1.750-3.700",
    }
    assert reasons(found) == {"other@0.000-4.000": "text_mismatch", "bad": "decode_error"}
    assert len(read_waveform(list(read_manifest(tmp_path / "out" / "all.jsonl"))[-1])) == 31_200


def test_a_model_without_anything_to_cut_is_not_loaded(tmp_path, capsys):
    clip(tmp_path / "in" / "a.wav", 0.5)
    text(tmp_path / "in" / "a.txt", "words")
    assert len(run(tmp_path / "in", tmp_path / "out", model="no/such-model")["all"]) == 1
    assert "no recording without times is longer than 30 s: model=no/such-model is not used" in capsys.readouterr().err


def test_a_length_without_a_model_is_refused(tmp_path):
    from ssl_asr.config.tools import PrepareConfig

    [error] = PrepareConfig(input=["a"], output_dir=str(tmp_path), longest_s=20).conflicts()
    with pytest.raises(ConfigError, match="longest_s: changes nothing without a model"):
        raise error


@pytest.mark.slow
def test_real_speech_is_cut_where_utterances_were_joined(data_root, whisper_tiny_en, tmp_path):
    """A chapter of LibriSpeech, joined from its utterances: cuts at a join lie in the silence around it."""
    rows = [json.loads(line) for line in open(data_root / "en_librispeech_mini" / "dev.jsonl")]
    chapter = sorted(row["audio_filepath"] for row in rows if "/226-122538-" in row["audio_filepath"])[:6]
    texts = {row["audio_filepath"]: row["text"] for row in rows}
    waveforms = [
        read_waveform(Utterance(path, str(data_root / "en_librispeech_mini" / path), 0.0)).numpy() for path in chapter
    ]
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.flac", np.concatenate(waveforms), 16_000)
    text(tmp_path / "in" / "a.txt", " ".join(texts[path] for path in chapter))
    found = run(tmp_path / "in", tmp_path / "out", model="openai/whisper-tiny.en", longest_s=20)
    words = np.cumsum([len(row["text"].split()) for row in found["all"]])
    joins = dict(
        zip(
            np.cumsum([len(texts[path].split()) for path in chapter]).tolist(),
            np.cumsum([len(one) / 16_000 for one in waveforms]).tolist(),
            strict=True,
        )
    )
    ends = {word: row["offset"] + row["duration"] for word, row in zip(words.tolist(), found["all"], strict=True)}
    at_joins = [abs(ends[word] - joins[word]) for word in ends.keys() & joins.keys()]
    assert not found["skipped"]
    assert words[-1] == max(joins)
    assert len(at_joins) >= 2
    assert max(at_joins) < 0.6
