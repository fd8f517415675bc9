"""SpecAugment: which frames and features are masked, how many, and when."""

import pytest
import torch

from ssl_asr.models.spec_augment import SpecAugment, masked_share, span_mask
from tests.toys import FAMILIES, toy_encoder

HALF = SpecAugment(time_prob=0.5, time_span=10, feature_prob=0.2, feature_span=4)


def _encoder(name, checkpoints):
    encoder = toy_encoder(name, checkpoints)
    # Without dropout, only masking changes the output.
    for module in encoder.modules():
        for key in ("dropout", "attention_dropout", "activation_dropout", "p"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, 0.0)
    return encoder


def _runs(row):
    """Returns the lengths of the runs of True."""
    text = "".join("x" if masked else " " for masked in row.tolist())
    return [len(run) for run in text.split()]


@pytest.mark.parametrize(("prob", "expected"), [(0.5, 0.39), (0.65, 0.48), (0.05, 0.049)])
def test_masked_share_equals_fairseq(prob, expected):
    lengths = torch.full((200,), 500)
    assert masked_share(span_mask(lengths, 500, prob=prob, span=10), lengths) == pytest.approx(expected, abs=0.012)


def test_spans_have_full_length_and_stay_inside_the_row():
    lengths = torch.tensor([40, 25, 300, 11])
    for _ in range(50):
        mask = span_mask(lengths, 300, prob=0.5, span=10)
        for row, length in zip(mask, lengths.tolist(), strict=True):
            assert not row[length:].any()
            assert all(run >= 10 for run in _runs(row[:length]))


def test_short_rows_are_not_masked_and_mean_number_of_spans_is_exact():
    lengths = torch.tensor([10, 9, 1, 0])
    assert not span_mask(lengths, 10, prob=1.0, span=10).any()
    # 0.1 x 25 / 10 = 0.25 spans per row, so a quarter of the rows has one.
    mask = span_mask(torch.full((4000,), 25), 25, prob=0.1, span=10)
    assert mask.any(1).float().mean() == pytest.approx(0.25, abs=0.03)
    assert set(mask.sum(1).tolist()) == {0, 10}


def test_masked_share_does_not_depend_on_other_rows():
    """In distribution: rows of length 100 are masked as much in a batch with rows of 1,000 as without."""
    alone, beside = torch.full((1000,), 100), torch.tensor([100, 1000]).repeat(1000)
    one = span_mask(alone, 100, prob=0.3, span=10).float().mean()
    other = span_mask(beside, 1000, prob=0.3, span=10)[::2, :100].float().mean()
    assert one == pytest.approx(float(other), abs=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_masking_happens_only_in_train_mode(name, toy_checkpoints):
    encoder = _encoder(name, toy_checkpoints)
    waveform, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    plain = encoder.train()(waveform, lengths).h_BFD
    encoder.mask_with(HALF)
    assert torch.equal(encoder.eval()(waveform, lengths).h_BFD, encoder(waveform, lengths).h_BFD)
    torch.testing.assert_close(encoder(waveform, lengths).h_BFD, plain)
    assert encoder.masked_share is None
    assert not torch.allclose(encoder.train()(waveform, lengths).h_BFD, plain)
    assert 0.1 < encoder.masked_share < 0.7


@pytest.mark.parametrize("name", ["wav2vec2_group", "wav2vec2_layer"])
def test_mask_vector_gets_a_gradient_in_every_step(name, toy_checkpoints):
    """Also if nothing is masked (clips shorter than a span). Otherwise DDP would wait for the gradient."""
    encoder = _encoder(name, toy_checkpoints).train()
    vector = encoder.net.masked_spec_embed
    assert not vector.requires_grad
    encoder.mask_with(HALF)
    assert any(p is vector for group in encoder.layer_groups() for p in group.parameters())
    encoder(torch.randn(2, 16000), torch.tensor([16000, 16000])).h_BFD.square().sum().backward()
    assert vector.grad.abs().max() > 0
    vector.grad = None
    short = next(n for n in range(3000, 0, -10) if encoder.frame_lengths(torch.tensor(n)) <= HALF.time_span)
    encoder(torch.randn(2, short), torch.tensor([short, short])).h_BFD.square().sum().backward()
    assert encoder.masked_share == 0.0
    assert vector.grad is not None


def test_whisper_masks_spans_of_frames_and_mel_bands_with_zero(toy_checkpoints):
    encoder = _encoder("whisper", toy_checkpoints).train()
    encoder.mask_with(HALF)
    mel = torch.ones(8, 80, 300)
    masked = encoder._hide(mel, torch.full((8,), 32000)) == 0
    times = masked.all(1)
    assert not times[:, 200:].any(), "time spans do not mask the silence after the speech"
    assert all(run >= 10 for row in times for run in _runs(row))
    bands = masked.all(2)
    assert bands.any()
    assert torch.equal(masked, times[:, None] | bands[..., None])
