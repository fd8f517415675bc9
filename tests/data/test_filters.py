"""Filtering of utterances, skipped audio, and padding of batches."""

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.filters import Limits, check_skips, fault_of, print_selections, select
from ssl_asr.data.manifest import pack_rows
from ssl_asr.data.targets import ctc_frames_needed
from ssl_asr.errors import AudioError, ManifestError
from ssl_asr.types import Utterance
from tests.tables import cells, heads, wide_console


@pytest.fixture
def manifest(tmp_path):
    for name, seconds in (("a", 1.0), ("long", 40.0), ("tiny", 0.01)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(int(seconds * 16000), np.float32), 16000)
    (tmp_path / "broken.wav").write_text("<html>")
    rows = [
        {"id": "good", "audio_filepath": "a.wav", "duration": 1.0, "text": "ab ba"},
        {"id": "long", "audio_filepath": "long.wav", "duration": 40.0, "text": "a"},
        {"id": "tiny", "audio_filepath": "tiny.wav", "duration": 0.01, "text": "a"},
        {"id": "wordy", "audio_filepath": "a.wav", "duration": 1.0, "text": "ab" * 20},
        {"id": "doubled", "audio_filepath": "a.wav", "duration": 1.0, "text": "a" * 6},
        {"id": "silent", "audio_filepath": "a.wav", "duration": 1.0, "text": " "},
        {"id": "broken", "audio_filepath": "broken.wav", "duration": 1.0, "text": "a"},
        {"id": "gone", "audio_filepath": "gone.wav", "duration": 1.0, "text": "a"},
        {"id": "short", "audio_filepath": "a.wav", "duration": 5.0, "text": "a"},
    ]
    return pack_rows(rows, tmp_path)


LIMITS = Limits(min_s=0.1, max_s=30.0, max_s_why="Whisper's window", max_tokens=30, ctc_frames=lambda n: n // 1600)
TOKENIZER = CharTokenizer(characters=" ab", normalizer="none")


def test_each_reason_is_detected_and_named(manifest):
    selection = select("train", manifest, LIMITS, tokenizer=TOKENIZER, check_audio=True, progress=False)
    assert [u.id for u in selection.kept] == ["good"]
    assert {skip.id: skip.reason for skip in selection.skips} == {
        "long": "too_long",
        "tiny": "too_short",
        "wordy": "too_many_tokens",
        "doubled": "ctc_target_too_long",
        "silent": "empty_text",
        "broken": "not_audio",
        "gone": "missing_file",
        "short": "duration_mismatch",
    }
    details = {skip.id: skip.detail for skip in selection.skips}
    assert details["doubled"] == "6 labels need 11 frames, the audio has 10"
    assert details["long"] == "40.00 s > 30 s (Whisper's window)"
    console = Console(record=True, width=160)
    print_selections([selection], console)
    table = console.export_text()
    assert "kept of 9" in table
    for skip in selection.skips:
        assert f"dropped, {skip.reason}: {skip.id}" in table
    with pytest.raises(ManifestError, match="8 of 9 utterances dropped"):
        check_skips(selection, 0.5)
    check_skips(selection, 1.0)


def test_evaluation_keeps_references_of_any_length(manifest):
    limits = Limits(max_s=30.0, max_tokens=3, ctc_frames=lambda n: 1)
    selection = select("test", manifest, limits, tokenizer=None, check_audio=False, progress=False)
    assert {skip.id for skip in selection.skips} == {"long"}


def test_error_lists_reasons_if_nothing_is_left(manifest):
    with pytest.raises(ManifestError, match=r"0 of 9 utterances are usable: too_long 9"):
        select("t", manifest, Limits(max_s=0.001), tokenizer=None, check_audio=False, progress=False)


@pytest.mark.parametrize(("labels", "frames"), [([], 0), ([1], 1), ([1, 1], 3), ([1, 2, 1], 3), ([1, 1, 1], 5)])
def test_frames_needed_is_the_minimum_with_finite_ctc_loss(labels, frames):
    assert ctc_frames_needed(labels) == frames
    for count in range(max(1, frames - 1), frames + 2):
        loss = torch.nn.functional.ctc_loss(
            torch.zeros(count, 1, 4).log_softmax(-1),
            torch.tensor([labels], dtype=torch.int64),
            torch.tensor([count]),
            torch.tensor([len(labels)]),
            reduction="none",
        )
        assert bool(torch.isfinite(loss)) == (count >= frames)


def test_bad_audio_is_skipped_with_reason_or_raised(manifest):
    items = [SpeechDataset(manifest, tokenizer=TOKENIZER, skip_bad_audio=True)[i] for i in (0, 7)]
    batch = collate(items)
    assert batch.ids == ["good"]
    assert [(skip.id, skip.reason) for skip in batch.skipped] == [("gone", "missing_file")]
    assert len(collate(items[1:])) == 0
    with pytest.raises(AudioError, match="gone"):
        SpeechDataset(manifest, tokenizer=TOKENIZER)[7]


def test_collate_pads_with_zeros_and_keeps_integer_lengths(tmp_path):
    rows = []
    for name, count in (("a", 800), ("b", 1600)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(count, 0.5, np.float32), 16000)
        rows.append({"audio_filepath": f"{name}.wav", "duration": count / 16000, "text": name})
    dataset = SpeechDataset(pack_rows(rows, tmp_path), tokenizer=TOKENIZER)
    batch = collate([dataset[0], dataset[1]])
    assert batch.waveform_BT.shape == (2, 1600)
    assert batch.lengths_B.tolist() == [800, 1600]
    assert batch.lengths_B.dtype == torch.int64
    assert float(batch.waveform_BT[0, 800:].abs().max()) == 0.0
    assert batch.to("cpu").lengths_B.device.type == "cpu"


def test_the_table_of_a_split_has_hours_of_kept_and_dropped_utterances(tmp_path):
    """2 utterances of 1,800 s are kept. 4 of 2,700 s are too long, and one of 36 s has no text."""
    durations = {"a": 1800, "b": 1800, "c": 2700, "d": 2700, "e": 2700, "f": 2700, "g": 36}
    rows = [
        {"id": name, "audio_filepath": "a.wav", "duration": seconds, "text": "" if name == "g" else "a"}
        for name, seconds in durations.items()
    ]
    limits = Limits(max_s=2000.0, max_s_why="the limit")
    selection = select("dev", pack_rows(rows, tmp_path), limits, tokenizer=TOKENIZER, check_audio=False, progress=False)
    console = wide_console()
    print_selections([selection], console)
    assert heads(console) == [["split", "utterances", "hours", "status"]]
    assert cells(console) == [
        ["dev", "2", "1.00", "kept of 7"],
        ["", "4", "3.00", "dropped, too_long: c, d, e …"],
        ["", "1", "0.01", "dropped, empty_text: g"],
    ]


@pytest.mark.parametrize(("seconds", "reason"), [(0.099, "too_short"), (0.1, None), (30.0, None), (30.001, "too_long")])
def test_limits_of_duration_are_allowed(seconds, reason):
    fault = fault_of(Utterance("a", "a.wav", seconds, text="a"), Limits(min_s=0.1, max_s=30.0), None)
    assert (None if fault is None else fault.reason) == reason


@pytest.mark.parametrize(("prompt_tokens", "reason"), [(27, None), (28, "too_many_tokens")])
def test_tokens_of_the_prompt_count(prompt_tokens, reason):
    limits = Limits(max_tokens=30, prompt_tokens=prompt_tokens)
    fault = fault_of(Utterance("a", "a.wav", 1.0, text="aba"), limits, TOKENIZER)
    assert (None if fault is None else fault.reason) == reason
    assert fault is None or fault.detail == "31 tokens, prompt included > 30"


@pytest.mark.parametrize(("samples", "reason"), [(16_000 * 4, None), (16_000 * 4 - 1, "ctc_target_too_long")])
def test_frames_are_those_of_the_samples(samples, reason):
    """Four labels, of which two are equal and need a blank between them: 5 frames of 12,800 samples."""
    limits = Limits(ctc_frames=lambda count: count // 12_800)
    fault = fault_of(Utterance("a", "a.wav", samples / 16_000, text="abba"), limits, TOKENIZER)
    assert (None if fault is None else fault.reason) == reason


@pytest.mark.parametrize(("most", "refused"), [(0.75, False), (0.74, True)])
def test_a_share_of_skips_is_allowed(tmp_path, most, refused):
    rows = [{"id": f"u{i}", "audio_filepath": "a.wav", "duration": 9.0 * i + 1, "text": "a"} for i in range(4)]
    limits = Limits(max_s=5.0)
    selection = select("dev", pack_rows(rows, tmp_path), limits, tokenizer=None, check_audio=False, progress=False)
    if refused:
        with pytest.raises(ManifestError, match="3 of 4 utterances dropped"):
            check_skips(selection, most)
    else:
        check_skips(selection, most)


def test_resampled_and_mixed_files_are_counted(tmp_path):
    for name, rate, channels in (("plain", 16_000, 1), ("phone", 8_000, 1), ("disc", 44_100, 2), ("call", 16_000, 2)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros((rate, channels), np.float32), rate)
    rows = [
        {"id": f"{name}{channel}", "audio_filepath": f"{name}.wav", "duration": 1.0, "text": "a", "channel": channel}
        for name, channel in (
            ("plain", None),
            ("phone", None),
            ("phone", 0),
            ("disc", None),
            ("call", None),
            ("call", 1),
        )
    ]
    selection = select("train", pack_rows(rows, tmp_path), Limits(), tokenizer=None, check_audio=True, progress=False)
    assert selection.changes == {
        "resampled from 8,000 Hz": 2,
        "resampled from 44,100 Hz": 1,
        "2 channels become one": 2,
    }
    console = wide_console()
    print_selections([selection], console)
    assert ["", "2", "", "resampled from 8,000 Hz"] in cells(console)


def test_other_rates_and_channels_are_refused_before_training(tmp_path):
    for name, rate, channels in (("plain", 16_000, 1), ("phone", 8_000, 1), ("disc", 44_100, 1), ("call", 16_000, 2)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros((rate, channels), np.float32), rate)
    rows = [
        {"id": name, "audio_filepath": f"{name}.wav", "duration": 1.0, "text": "a", "channel": channel}
        for name, channel in (("plain", None), ("phone", None), ("disc", None), ("call", None), ("call2", 2))
    ]
    rows[-1]["audio_filepath"] = "call.wav"
    manifest = pack_rows(rows, tmp_path)

    def refused(**options):
        found = select("train", manifest, Limits(), tokenizer=None, check_audio=True, progress=False, **options)
        return {skip.id: (skip.reason, skip.detail) for skip in found.skips}

    assert {name: reason for name, (reason, _) in refused().items()} == {"call2": "no_such_channel"}
    both = refused(downmix="refuse", any_rate=False)
    assert {name: reason for name, (reason, _) in both.items()} == {
        "phone": "other_rate",
        "disc": "other_rate",
        "call": "many_channels",
        "call2": "no_such_channel",
    }
    where, detail = both["phone"][1].split(": ", maxsplit=1)
    assert where == f"phone ({manifest[1].where})"
    remedy = "Resample the file, or set data.resample=true."
    assert detail == f"{tmp_path / 'phone.wav'} has 8,000 Hz, expected 16,000 Hz. {remedy}"
    # Without a check at the start, they are refused when they are read.
    dataset = SpeechDataset(manifest, tokenizer=None, downmix="refuse", any_rate=False, skip_bad_audio=True)
    read = [dataset[index] for index in range(len(manifest))]
    assert [getattr(item, "reason", "read") for item in read] == ["read", *(reason for reason, _ in both.values())]


def test_a_shard_that_cannot_be_read_is_named_once(tmp_path):
    names = [f"lost.tar::{name}.wav" for name in "abcdefg"]
    rows = [{"id": name[10], "audio_filepath": name, "duration": 1.0, "text": "a"} for name in names]
    rows += [{"id": name, "audio_filepath": f"{name}.wav", "duration": 1.0, "text": "a"} for name in "xy"]
    soundfile.write(tmp_path / "good.wav", np.zeros(16000, np.float32), 16000)
    rows.append({"id": "good", "audio_filepath": "good.wav", "duration": 1.0, "text": "a"})
    selection = select("test", pack_rows(rows, tmp_path), Limits(), tokenizer=None, check_audio=True, progress=False)
    with pytest.raises(ManifestError) as caught:
        check_skips(selection, 0.1)
    text = str(caught.value)
    assert "9 of 10 utterances dropped (missing_file 9): a: missing_file: a (" in text
    assert "no such shard. Check audio_filepath. (and 6 more utterances of this shard); x: missing_file" in text
    assert text.count("lost.tar") == 1
    assert text.count("no such file") == 2
