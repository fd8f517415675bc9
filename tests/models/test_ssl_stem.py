"""Convolutions over samples as matrix products, and the group norm from moments of the waveform."""

import copy

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ssl_asr.models.ssl_stem import conv_stem, convolve, in_own_type, normalized_convolution, windows

GEOMETRIES = [(3, 2), (2, 2), (10, 5), (3, 1), (5, 2), (1, 3), (4, 3)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), GEOMETRIES)
def test_convolution_equals_torch_at_every_remainder(kernel, stride, bias):
    conv = nn.Conv1d(4, 6, kernel, stride, bias=bias).double()
    for frames in range(kernel, kernel + 2 * stride + 1):
        x_BFC = torch.randn(2, frames, 4, dtype=torch.float64, requires_grad=True)
        results = []
        for out_BNO in (convolve(x_BFC, conv), conv(x_BFC.transpose(1, 2)).transpose(1, 2)):
            factors = torch.arange(1.0, out_BNO.numel() + 1, dtype=torch.float64).view_as(out_BNO)
            results.append((out_BNO, *torch.autograd.grad((out_BNO * factors).sum(), [x_BFC, *conv.parameters()])))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)


def _net(norm):
    """The published geometry with few channels, in float64."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        num_hidden_layers=1,
        feat_extract_norm=norm,
        conv_bias=norm == "layer",
        conv_dim=(8,) * 7,
        hidden_size=16,
        num_attention_heads=2,
    )
    return Wav2Vec2Model(config).double()


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("samples", [400, 401, 719, 720, 4799, 4800, 4801])
def test_stem_and_its_gradients_equal_transformers(norm, samples):
    extractor, waveform_BT = _net(norm).feature_extractor, torch.randn(2, samples, dtype=torch.float64)
    theirs_BFC = extractor(waveform_BT).transpose(1, 2)
    ours_BFC, frames_B = conv_stem(extractor.conv_layers, waveform_BT, torch.tensor([samples] * 2))
    assert frames_B.tolist() == [theirs_BFC.shape[1]] * 2
    torch.testing.assert_close(ours_BFC, theirs_BFC)
    factors = torch.randn_like(ours_BFC)
    weights = list(extractor.parameters())
    ours, theirs = (torch.autograd.grad((out * factors).sum(), weights) for out in (ours_BFC, theirs_BFC))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_padding_has_no_part_in_the_statistics():
    extractor = _net("group").feature_extractor
    lengths = [4000, 2345]
    waveform_BT = torch.randn(2, 4000, dtype=torch.float64)
    noisy_BT = waveform_BT.clone()
    waveform_BT[1, lengths[1] :] = 0
    results = [conv_stem(extractor.conv_layers, one, torch.tensor(lengths))[0] for one in (waveform_BT, noisy_BT)]
    alone, [frames] = conv_stem(extractor.conv_layers, waveform_BT[1:, : lengths[1]], torch.tensor(lengths[1:]))
    for result in results:
        torch.testing.assert_close(result[1, :frames], alone[0])


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (100.0, 1.0), (0.0, 1e-4), (3.0, 1e-2)])
def test_statistics_in_float32_waveforms_are_as_good_as_those_of_torch(offset, scale):
    """The variance comes from a difference of large numbers if the waveform has an offset."""
    torch.manual_seed(1)
    conv, norm = nn.Conv1d(1, 16, 10, 5, bias=False), nn.GroupNorm(16, 16)
    waveform_BT = torch.randn(1, 16000) * scale + offset
    frames = (16000 - 10) // 5 + 1
    exact = copy.deepcopy(norm).double()(copy.deepcopy(conv).double()(waveform_BT[:, None].double())).transpose(1, 2)
    theirs = norm(conv(waveform_BT[:, None])).transpose(1, 2)
    ours = normalized_convolution(windows(waveform_BT, 10, 5), torch.tensor([frames]), conv, norm, torch.float32)
    error, reference = ((one - exact).abs().max().item() for one in (ours, theirs))
    assert error < max(3 * reference, 1e-5)


def test_autocast_computes_in_16_bits_and_keeps_statistics_exact():
    extractor = _net("group").float().feature_extractor
    waveform_BT, lengths_B = torch.randn(2, 8000) + 5.0, torch.tensor([8000, 6000])
    exact, _ = conv_stem(extractor.conv_layers, waveform_BT, lengths_B)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = conv_stem(extractor.conv_layers, waveform_BT, lengths_B)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_layer_norm_keeps_the_type_of_its_input():
    norm = nn.LayerNorm(8)
    x = torch.randn(3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = in_own_type(norm, x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), norm(x.float()), atol=0.02, rtol=0.02)
