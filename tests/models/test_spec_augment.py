"""SpecAugment: what is hidden, where, and from whom."""

import pytest
import torch

from ssl_asr.models.spec_augment import SpecAugment, share, span_mask
from tests.toys import toy_encoder

HALF = SpecAugment(time_prob=0.5, time_span=10, feature_prob=0.2, feature_span=4)


def _encoder(name, checkpoints):
    encoder = toy_encoder(name, checkpoints)
    # Dropout off, so that what differs is what is hidden.
    for module in encoder.modules():
        for key in ("dropout", "activation_dropout", "p"):
            if isinstance(getattr(module, key, None), float):
                setattr(module, key, 0.0)
    return encoder


def _runs(row):
    """Lengths of the runs of True."""
    text = "".join("x" if hidden else " " for hidden in row.tolist())
    return [len(run) for run in text.split()]


@pytest.mark.parametrize(("prob", "hidden"), [(0.5, 0.39), (0.65, 0.48), (0.05, 0.049)])
def test_the_share_hidden_is_that_of_fairseqs_unit(prob, hidden):
    lengths = torch.full((200,), 500)
    assert share(span_mask(lengths, 500, prob=prob, span=10), lengths) == pytest.approx(hidden, abs=0.012)


def test_spans_are_whole_and_inside_their_row():
    lengths = torch.tensor([40, 25, 300, 11])
    for _ in range(50):
        mask = span_mask(lengths, 300, prob=0.5, span=10)
        for row, length in zip(mask, lengths.tolist(), strict=True):
            assert not row[length:].any()
            assert all(run >= 10 for run in _runs(row[:length]))


def test_short_rows_are_left_whole_and_the_number_of_spans_is_right_on_average():
    lengths = torch.tensor([10, 9, 1, 0])
    assert not span_mask(lengths, 10, prob=1.0, span=10).any()
    # 0.1 x 25 / 10 = 0.25 spans a row: a quarter of the rows has one.
    mask = span_mask(torch.full((4000,), 25), 25, prob=0.1, span=10)
    assert mask.any(1).float().mean() == pytest.approx(0.25, abs=0.03)
    assert set(mask.sum(1).tolist()) == {0, 10}


def test_a_row_is_hidden_alike_whatever_stands_beside_it():
    """In distribution: rows of 100 lose as much beside rows of 1,000 as alone."""
    alone, beside = torch.full((1000,), 100), torch.tensor([100, 1000]).repeat(1000)
    one = span_mask(alone, 100, prob=0.3, span=10).float().mean()
    other = span_mask(beside, 1000, prob=0.3, span=10)[::2, :100].float().mean()
    assert one == pytest.approx(float(other), abs=0.01)


@pytest.mark.parametrize("name", ["wav2vec2_group", "wav2vec2_layer", "hubert_group", "wavlm_group", "whisper"])
def test_only_training_hides(name, toy_checkpoints):
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
def test_the_mask_vector_trains_and_is_in_every_graph(name, toy_checkpoints):
    """Also with nothing hidden (clips shorter than a span), where DDP would else wait for its gradient."""
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


def test_whispers_hidden_frames_are_zero_over_spans_of_time_and_bands(toy_checkpoints):
    encoder = _encoder("whisper", toy_checkpoints).train()
    encoder.mask_with(HALF)
    mel = torch.ones(8, 80, 300)
    hidden = encoder._hide(mel, torch.full((8,), 32000)) == 0
    times = hidden.all(1)
    assert not times[:, 200:].any(), "the silence after the speech is not hidden by time"
    assert all(run >= 10 for row in times for run in _runs(row))
    bands = hidden.all(2)
    assert bands.any()
    assert torch.equal(hidden, times[:, None] | bands[..., None])
