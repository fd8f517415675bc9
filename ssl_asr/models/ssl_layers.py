"""Forward passes over the weights of transformers' wav2vec 2.0 layers, without padding and attention masks.

With normalization first (XLS-R, MMS, the large models) and with normalization last (the base models, data2vec):

    x = x + attention(norm(x))              x = norm(x + attention(x))
    x = x + feed_forward(final_norm(x))     x = final_norm(x + feed_forward(x))
    x = x + adapter(x)                      (adapter: MMS only)

WavLM adds a bias of the distance between frames to the scores of attention, scaled by a gate of the query:

    a, b = sigmoid of two sums of four outputs of a linear layer over the head's features
    gate = a (b c - 1) + 2                  c: learned, one for each head
"""

from typing import Any

import torch
from torch import Tensor

from ssl_asr.models.position_bias import GatedBias
from ssl_asr.models.ragged import Frames, self_attention
from ssl_asr.models.transformer import compute_type, project


def layer_norm_first(layer: Any, x: Tensor, frames: Frames, relative_HR: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Computes a layer with normalization first.

    Args:
        layer: Layer of transformers, for example ``Wav2Vec2EncoderLayerStableLayerNorm``.
        x: States in the layout of ``frames``.
        frames: Frames, the layout.
        relative_HR: Tensor of shape (heads, 2 * width - 1), WavLM's bias of each distance; None for other models and
            for the first layer, which has the table that it is computed from.

    Returns:
        The states, and ``relative_HR``.
    """
    mixed, relative_HR = _self_attention(layer.attention, layer.layer_norm(x), frames, relative_HR)
    x = x + layer.dropout(mixed)
    x = x + feed_forward(layer.feed_forward, layer.final_layer_norm(x))
    adapter = getattr(layer, "adapter_layer", None)
    return x if adapter is None else x + adapter(x), relative_HR


def layer_norm_last(layer: Any, x: Tensor, frames: Frames, relative_HR: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Computes a layer with normalization last. See `layer_norm_first`."""
    mixed, relative_HR = _self_attention(layer.attention, x, frames, relative_HR)
    x = layer.layer_norm(x + layer.dropout(mixed))
    return layer.final_layer_norm(x + feed_forward(layer.feed_forward, x)), relative_HR


def _self_attention(
    attention: Any, x: Tensor, frames: Frames, relative_HR: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if not hasattr(attention, "gru_rel_pos_linear"):
        return self_attention(attention, x, frames), None
    if relative_HR is None:
        relative_HR = _relative_bias(attention, frames.width)
    x = x.to(compute_type(x, attention.out_proj.weight))
    return self_attention(attention, x, frames, GatedBias(_gate(attention, x), relative_HR)), relative_HR


def _relative_bias(attention: Any, width: int) -> Tensor:
    """WavLM's bias of each distance between frames, shape (heads, 2 * width - 1)."""
    distances_R = torch.arange(2 * width - 1, device=attention.rel_attn_embed.weight.device) + 1 - width
    bias_RH: Tensor = attention.rel_attn_embed(attention._relative_positions_bucket(distances_R))
    # Kernels read it by distance. One copy for all layers.
    return bias_RH.T.contiguous()


def _gate(attention: Any, x: Tensor) -> Tensor:
    """WavLM's gate of each frame and head, shape (…, heads)."""
    heads = (*x.shape[:-1], attention.num_heads)
    projected = attention.gru_rel_pos_linear(x.view(*heads, -1))
    a, b = projected.view(*heads, 2, 4).sum(-1).sigmoid().unbind(-1)
    gate: Tensor = a * (b * attention.gru_rel_pos_const.flatten() - 1.0) + 2.0
    return gate


def feed_forward(module: Any, x: Tensor) -> Tensor:
    """Computes ``output(activation(intermediate(x)))``, with dropout."""
    h = module.intermediate_act_fn(project(module.intermediate_dense, x))
    h = project(module.output_dense, module.intermediate_dropout(h))
    dropped: Tensor = module.output_dropout(h)
    return dropped


def without_padding(x_BFD: Tensor, mask_BF: Tensor | None) -> Tensor:
    """Sets padding to zero."""
    return x_BFD if mask_BF is None else x_BFD.masked_fill(~mask_BF[..., None], 0.0)


def positions(embed: Any, x_BFD: Tensor, frames: Frames) -> Tensor:
    """The convolutional position embedding of padded states. Padding is zero before every convolution.

    Args:
        embed: ``pos_conv_embed`` of transformers. That of data2vec has five convolutions, that of mHuBERT a batch norm,
            whose statistics in training are those of all frames without padding.
        x_BFD: Tensor of shape (batch, frames, features), zero at padding.
        frames: Frames, the layout of the layers.
    """
    if getattr(embed, "batch_norm", None) is not None:
        rows = frames.enter(x_BFD)
        x_BFD = without_padding(frames.leave(embed.batch_norm(rows.flatten(0, -2)).view_as(rows)), frames.mask_BF)
    if not hasattr(embed, "layers"):
        x_BDF: Tensor = embed.activation(embed.padding(embed.conv(x_BFD.transpose(1, 2))))
        return x_BDF.transpose(1, 2)
    for layer in embed.layers:
        x_BFD = without_padding(layer(x_BFD.transpose(1, 2)).transpose(1, 2), frames.mask_BF)
    return x_BFD
