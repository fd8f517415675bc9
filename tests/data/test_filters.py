"""Filtering of utterances, skipped audio, and padding of batches."""

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.dataset import SpeechDataset, collate
from ssl_asr.data.filters import Limits, check_skips, ctc_frames_needed, print_selections, select
from ssl_asr.data.manifest import pack_rows
from ssl_asr.errors import AudioError, ManifestError


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
