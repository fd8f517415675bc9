"""The layers of w2v-BERT without padding, against transformers, over the same weights."""

import pytest
import torch
from transformers import AutoModel, Wav2Vec2BertConfig

from ssl_asr.models.w2v_bert import W2vBertEncoder
from tests.models.test_ssl_forward import kept_numbers
from tests.toys import FAMILIES, SMALL

LENGTHS = [9001, 4000, 16000, 720]
POSITIONS = {
    "published": {},
    "near keys": {"left_max_position_embeddings": 3, "right_max_position_embeddings": 2},
    "keys before the query": {"left_max_position_embeddings": 4, "right_max_position_embeddings": 0},
    "relative": {"position_embeddings_type": "relative", "max_source_positions": 16},
    "rotary": {"position_embeddings_type": "rotary"},
    "none": {"position_embeddings_type": None},
}


def _encoder(**settings):
    torch.manual_seed(3)
    net = AutoModel.from_config(Wav2Vec2BertConfig(**{**SMALL, **FAMILIES["w2v_bert"].settings, **settings}))
    with torch.no_grad():
        for p in net.parameters():
            # Random biases and scales of norms too.
            p.add_(torch.randn_like(p), alpha=0.2)
    return W2vBertEncoder(net=net)


def _batch(lengths, **kind):
    waveform_BT = torch.zeros(len(lengths), max(lengths), **kind)
    for row, length in enumerate(lengths):
        waveform_BT[row, :length] = torch.randn(length, **kind)
    return waveform_BT, torch.tensor(lengths)


def _theirs(encoder, waveform_BT, lengths_B):
    """States of all layers, by transformers with its masks."""
    features_BFM = encoder.as_weights(encoder.filter_banks(waveform_BT, lengths_B))
    frame_lengths_B, width = encoder.frame_lengths(lengths_B), features_BFM.shape[1]
    mask_BF = (torch.arange(width)[None] < frame_lengths_B[:, None]).long()
    out = encoder.net(features_BFM, attention_mask=None if bool(mask_BF.all()) else mask_BF, output_hidden_states=True)
    return out.hidden_states


@pytest.mark.parametrize("lengths", [LENGTHS, [9001, 9001]], ids=["unequal", "equal"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_states_of_all_layers_and_gradients_equal_transformers(positions, lengths):
    """In float64, so that a difference is no rounding."""
    encoder = _encoder(**POSITIONS[positions]).double().eval()
    batch = _batch(lengths, dtype=torch.float64)
    out, expected = encoder(*batch, layers=True), _theirs(encoder, *batch)
    weights = {key: p for key, p in encoder.named_parameters() if "masked_spec_embed" not in key}
    ours, theirs = 0.0, 0.0
    for layer, (one, other) in enumerate(zip(out.layers, expected, strict=True)):
        for row, frames in enumerate(out.frame_lengths_B.tolist()):
            torch.testing.assert_close(one[row, :frames], other[row, :frames], msg=lambda m, at=layer: f"{at}: {m}")
            assert not one[row, frames:].any(), "states at padding are zero"
            factors = torch.randn_like(one[row, :frames])
            ours, theirs = (
                total + (states[row, :frames] * factors).sum() for total, states in ((ours, one), (theirs, other))
            )
    gradients = [torch.autograd.grad(total, list(weights.values())) for total in (ours, theirs)]
    for key, one, other in zip(weights, *gradients, strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("positions", POSITIONS)
def test_states_do_not_depend_on_the_batch(positions):
    encoder = _encoder(**POSITIONS[positions]).eval()
    waveform_BT, lengths_B = _batch(LENGTHS)
    out = encoder(waveform_BT, lengths_B)
    for row, length in enumerate(LENGTHS):
        alone = encoder(waveform_BT[row : row + 1, :length], lengths_B[row : row + 1]).h_BFD[0]
        torch.testing.assert_close(out.h_BFD[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_layers_computed_again_have_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        encoder = _encoder(hidden_dropout=0.1, attention_dropout=0.1).train()
        encoder.gradient_checkpointing = recompute
        torch.manual_seed(4)
        batch = _batch(LENGTHS)
        encoder(*batch).h_BFD.square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_no_table_of_pairs_of_frames_is_kept():
    encoder, batch = _encoder(**POSITIONS["near keys"]).train(), _batch([96000])
    frames, weights = int(encoder.frame_lengths(batch[1]).max()), list(encoder.parameters())
    total, largest = kept_numbers(lambda: encoder(*batch), weights)
    theirs, table = kept_numbers(lambda: _theirs(encoder, *batch), weights)
    assert table >= frames * frames, "transformers keeps tables"
    assert largest < frames * frames, (largest, frames)
    assert total < 0.5 * theirs, (total, theirs)


def test_modules_in_place_of_pointwise_convolutions_are_called():
    """As those of adapters."""
    encoder, batch = _encoder().eval(), _batch(LENGTHS)
    expected = encoder(*batch).h_BFD
    calls = []
    for layer in encoder.net.encoder.layers:
        for conv in (layer.conv_module.pointwise_conv1, layer.conv_module.pointwise_conv2):
            conv.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(encoder(*batch).h_BFD, expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 4
