"""The input stages of the wav2vec 2.0 family: waveform normalization, and the convolutions over samples.

The statistics of waveform normalization and of the group norm of base models are taken over the samples and frames of
each utterance. transformers takes them over the padded row, so the states of a base model depend on the other
utterances in the batch. Here they do not.

A convolution is a matrix product of the frames that it covers, because frames lie one after the other in memory:

    x (B, F, C)     kernel 3, stride 2:   out[n] = x[2n : 2n + 2] W[0 : 2] + x[2n + 2] W[2]
                                                   (B, N, 2C) view         (B, N, C) view

So features stay in the last dimension from the waveform to the transformer, layer norm needs no transposition, and
nothing is copied.

The group norm of base models has one channel per group and follows a convolution without bias, so its statistics
follow from the mean ``m`` and the covariance ``S`` of the windows of the waveform, without the output of the
convolution:

    mean_c = w_c m        variance_c = w_c S w_c
    norm_c(w_c x) = (a_c w_c) x + b_c,    a_c = weight_c / sqrt(variance_c + eps),  b_c = bias_c - a_c mean_c
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.models.encoder import padding_mask
from ssl_asr.models.transformer import compute_type, run_layer
from ssl_asr.types import on_device


def normalize_waveform(waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Scales each utterance to zero mean and unit variance over its own samples. Padding stays zero.

    Args:
        waveform_BT: float32, shape (batch, samples), zero-padded.
        lengths_B: int64 on the CPU, shape (batch,), number of samples.
    """
    mask_BT = padding_mask(lengths_B, waveform_BT.shape[1], waveform_BT.device)
    if mask_BT is None:
        mean_B = waveform_BT.mean(1, keepdim=True)
        variance_B = waveform_BT.var(1, keepdim=True, correction=0)
        return (waveform_BT - mean_B) / (variance_B + 1e-7).sqrt()
    count_B = on_device(lengths_B, waveform_BT.device)[:, None]
    mean_B = (waveform_BT * mask_BT).sum(1, keepdim=True) / count_B
    centered_BT = (waveform_BT - mean_B) * mask_BT
    variance_B = centered_BT.square().sum(1, keepdim=True) / count_B
    return centered_BT / (variance_B + 1e-7).sqrt()


def conv_length(length: Any, kernel: int, stride: int) -> Any:
    """Number of outputs of a convolution without padding. 0 or less if the input is shorter than the kernel.

    Args:
        length: int or int64 Tensor, number of inputs.
        kernel, stride: int, of the convolution.
    """
    if isinstance(length, Tensor):
        return (length - kernel).div(stride, rounding_mode="floor") + 1
    return (length - kernel) // stride + 1


def convolve(x_BFC: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution over frames as matrix products.

    Args:
        x_BFC: Tensor of shape (batch, frames, channels).
        conv: Without padding, dilation or groups.

    Returns:
        Tensor of shape (batch, outputs, output channels), with gradients as those of ``conv``.
    """
    [kernel], [stride] = conv.kernel_size, conv.stride
    outputs = conv_length(x_BFC.shape[1], kernel, stride)
    weight_KCO = conv.weight.permute(2, 1, 0).to(x_BFC.dtype)
    out_BNO: Tensor | None = None
    for first, width in _blocks(kernel, stride):
        rows_BNK = _rows(x_BFC, first, width, stride, outputs)
        weight_BKO = weight_KCO[first : first + width].flatten(0, 1).expand(x_BFC.shape[0], -1, -1)
        if out_BNO is not None:
            # In place: the first product does not need its own result for backward.
            out_BNO = out_BNO.baddbmm_(rows_BNK, weight_BKO)
        elif conv.bias is None:
            out_BNO = torch.bmm(rows_BNK, weight_BKO)
        else:
            bias_BNO = conv.bias.to(x_BFC.dtype).expand(x_BFC.shape[0], outputs, -1)
            out_BNO = torch.baddbmm(bias_BNO, rows_BNK, weight_BKO)
    assert out_BNO is not None
    return out_BNO


def _blocks(kernel: int, stride: int) -> list[tuple[int, int]]:
    """Places and widths of the parts of a kernel that are rows of a view: whole strides, then single frames."""
    whole = kernel // stride
    single = range(whole * stride, kernel)
    return [*((i * stride, stride) for i in range(whole)), *((i, 1) for i in single)]


def _rows(x_BFC: Tensor, first: int, width: int, stride: int, outputs: int) -> Tensor:
    """Frames ``first`` to ``first + width`` of each window, shape (batch, outputs, width * channels), as a view."""
    if width == 1:
        return x_BFC[:, first : first + (outputs - 1) * stride + 1 : stride]
    return x_BFC[:, first : first + outputs * stride].view(x_BFC.shape[0], outputs, width * x_BFC.shape[2])


def windows(waveform_BT: Tensor, kernel: int, stride: int) -> Tensor:
    """The samples that each output of the first convolution covers, shape (batch, frames, kernel)."""
    x_BTC, frames = waveform_BT[..., None], conv_length(waveform_BT.shape[1], kernel, stride)
    return torch.cat([_rows(x_BTC, *block, stride, frames) for block in _blocks(kernel, stride)], dim=-1)


def normalized_convolution(
    x_BFK: Tensor, frame_lengths_B: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, dtype: torch.dtype
) -> Tensor:
    """Convolution over samples and group norm with statistics over the frames of each utterance.

    Args:
        x_BFK: float32, windows of the waveform, zero where an utterance has no frames.
        frame_lengths_B: int64 on the CPU, number of frames of each utterance.
        conv: One input channel, no bias.
        norm: One channel per group.
        dtype: torch.dtype, type of the result. The statistics are in float64 (float32 on Apple's GPUs).

    Returns:
        Tensor of shape (batch, frames, channels).
    """
    assert conv.bias is None, "the statistics are those of a convolution without bias"
    assert norm.num_groups == norm.num_channels, "base models normalize each channel separately"
    mean_BK, covariance_BKK = _moments(x_BFK, frame_lengths_B)
    exact = mean_BK.dtype
    weight_CK = conv.weight[:, 0].to(exact)
    mean_BC = mean_BK @ weight_CK.T
    variance_BC = ((weight_CK @ covariance_BKK) * weight_CK).sum(-1)
    scale_BC = norm.weight.to(exact) * (variance_BC + norm.eps).rsqrt()
    shift_BC = norm.bias.to(exact) - scale_BC * mean_BC
    scaled_BKC = (weight_CK.T[None] * scale_BC[:, None]).to(dtype)
    return torch.baddbmm(shift_BC[:, None].to(dtype), x_BFK.to(dtype), scaled_BKC)


def _moments(x_BFK: Tensor, frame_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the windows of each utterance, shapes (batch, kernel) and (batch, kernel, kernel).

    ``S = sum of x x^T / n - m m^T``. In float64, this loses nothing that float32 has, and no centered copy is made.
    """
    count_B1 = on_device(frame_lengths_B, x_BFK.device)[:, None]
    exact_BFK = x_BFK.to(torch.float32 if x_BFK.device.type == "mps" else torch.float64)
    mean_BK = exact_BFK.sum(1) / count_B1
    second_BKK = exact_BFK.transpose(1, 2) @ exact_BFK / count_B1[..., None]
    return mean_BK, second_BKK - mean_BK[:, :, None] * mean_BK[:, None]


def in_own_type(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm that returns the type of its input. Autocast would return float32, twice the memory traffic."""
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = (None if p is None else p.to(x.dtype) for p in (norm.weight, norm.bias))
        return functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def conv_stem(
    layers: Sequence[Any], waveform_BT: Tensor, lengths_B: Tensor, *, recompute: bool = False
) -> tuple[Tensor, Tensor]:
    """All convolutions over samples, with their norms and activations.

    Args:
        layers: ``feature_extractor.conv_layers`` of transformers.
        waveform_BT: float32, shape (batch, samples), zero-padded.
        lengths_B: int64 on the CPU, number of samples of each utterance.
        recompute: bool, compute each layer again in backward (gradient checkpointing).

    Returns:
        Tensor of shape (batch, frames, channels), and the number of frames of each utterance.
    """
    first = layers[0].conv
    dtype = compute_type(waveform_BT, first.weight)
    [kernel], [stride] = first.kernel_size, first.stride
    x_BFC = windows(waveform_BT, kernel, stride)
    mask_BF = padding_mask(conv_length(lengths_B, kernel, stride), x_BFC.shape[1], x_BFC.device)
    if mask_BF is not None:
        x_BFC.masked_fill_(~mask_BF[..., None], 0.0)
    for index, layer in enumerate(layers):
        [kernel], [stride] = layer.conv.kernel_size, layer.conv.stride
        lengths_B = conv_length(lengths_B, kernel, stride)
        with torch.autocast(x_BFC.device.type, enabled=False):
            x_BFC = run_layer(_conv_layer, layer, x_BFC, lengths_B, index == 0, dtype, recompute=recompute)
    return x_BFC, lengths_B.clamp(min=0)


def _conv_layer(layer: Any, x_BFC: Tensor, lengths_B: Tensor, first: bool, dtype: torch.dtype) -> Tensor:
    """One convolution with its norm and activation. The first one takes windows of the waveform."""
    norm = getattr(layer, "layer_norm", None)
    if isinstance(norm, nn.GroupNorm):
        x_BFC = normalized_convolution(x_BFC, lengths_B, layer.conv, norm, dtype)
    else:
        x_BFC = _over_windows(layer.conv, x_BFC.to(dtype)) if first else convolve(x_BFC, layer.conv)
        x_BFC = x_BFC if norm is None else in_own_type(norm, x_BFC)
    activated: Tensor = layer.activation(x_BFC)
    return activated


def _over_windows(conv: nn.Conv1d, x_BFK: Tensor) -> Tensor:
    """A convolution with one input channel, over windows of the waveform."""
    bias = None if conv.bias is None else conv.bias.to(x_BFK.dtype)
    return functional.linear(x_BFK, conv.weight[:, 0].to(x_BFK.dtype), bias)
