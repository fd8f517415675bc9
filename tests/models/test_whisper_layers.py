"""The layers of Whisper's encoder without padding, against those of transformers, over the same weights."""

import pytest
import torch
from torch.nn import functional

from tests.models.test_ssl_forward import kept_numbers
from tests.models.whisper_reference import states_alone
from tests.toys import toy_encoder

LENGTHS = [8001, 16000, 160, 12345]


def _double(encoder):
    encoder = encoder.double().eval()
    for p in encoder.parameters():
        p.requires_grad_(True)
    return encoder


def _batch(lengths, **kind):
    waveform_BT = torch.zeros(len(lengths), max(lengths), **kind)
    for row, length in enumerate(lengths):
        waveform_BT[row, :length] = torch.randn(length, **kind)
    return waveform_BT, torch.tensor(lengths)


def _assert_equal_states_and_gradients(encoder, waveform_BT, lengths_B, **tolerance):
    out = encoder(waveform_BT, lengths_B, layers=True)
    weights = {key: p for key, p in encoder.named_parameters() if "embed_positions" not in key}
    ours, theirs = 0.0, 0.0
    for row, states in enumerate(states_alone(encoder, waveform_BT, lengths_B)):
        assert len(out.layers) == len(states)
        frames = int(out.context_lengths_B[row])
        for one, other in zip(out.layers, states, strict=True):
            torch.testing.assert_close(one[row, :frames], other, **tolerance)
            assert not one[row, frames:].any(), "states at padding are zero"
            factors = torch.randn_like(other)
            ours, theirs = ours + (one[row, :frames] * factors).sum(), theirs + (other * factors).sum()
    gradients = [torch.autograd.grad(total, list(weights.values())) for total in (ours, theirs)]
    for key, one, other in zip(weights, *gradients, strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, key=key: f"{key}: {m}", **tolerance)


@pytest.mark.parametrize("lengths", [LENGTHS, [9000, 9000]], ids=["unequal", "equal"])
@pytest.mark.parametrize("recompute", [False, True])
def test_states_of_all_layers_and_gradients_equal_transformers(toy_checkpoints, lengths, recompute):
    """In float64, so that a difference is no rounding."""
    encoder = _double(toy_encoder("whisper", toy_checkpoints, tail_s=0.3, gradient_checkpointing=recompute))
    # Dropout is 0. Layers are computed again in train mode only.
    encoder.train(recompute)
    _assert_equal_states_and_gradients(encoder, *_batch(lengths, dtype=torch.float64))


def test_states_and_gradients_of_real_weights_equal_transformers(whisper_tiny_en):
    from ssl_asr.models.whisper import WhisperBackbone

    options = {"window": "real", "tail_s": 0.5, "train_tail_s": None, "recommended_freeze": "none"}
    backbone = WhisperBackbone(source=str(whisper_tiny_en), revision=None, **options)
    encoder = _double(backbone.load_encoder(whisper_tiny_en))
    batch = _batch([8000, 30000, 16000], dtype=torch.float64)
    _assert_equal_states_and_gradients(encoder, *batch, rtol=1e-6, atol=1e-6)


def test_states_do_not_depend_on_the_batch(toy_checkpoints):
    encoder = _double(toy_encoder("whisper", toy_checkpoints))
    waveform_BT, lengths_B = _batch(LENGTHS, dtype=torch.float64)
    out = encoder(waveform_BT, lengths_B)
    for row, length in enumerate(LENGTHS):
        alone = encoder(waveform_BT[row : row + 1, :length], lengths_B[row : row + 1]).h_BFD[0]
        # The spectrogram is in float32.
        torch.testing.assert_close(out.h_BFD[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_padding_is_not_kept_for_backward(toy_checkpoints):
    """A third of the frames is no padding. Only the convolutions keep padding."""
    encoder = toy_encoder("whisper", toy_checkpoints, tail_s=0.0).train()
    kept = []
    for short in (16_000, 160_000):
        batch = _batch([160_000, *[short] * 3])
        kept.append(kept_numbers(lambda batch=batch: encoder(*batch), encoder.parameters())[0])
    assert kept[0] < 0.65 * kept[1], kept


def test_windows_of_30_s_have_no_mask_and_are_not_packed(toy_checkpoints, monkeypatch):
    encoder, masks = toy_encoder("whisper", toy_checkpoints, window="30s").eval(), []
    attention = functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, **options):
        masks.append((q.shape, attn_mask))
        return attention(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    encoder(*_batch(LENGTHS))
    assert masks == [((len(LENGTHS), 2, 1500, 8), None)] * 2
