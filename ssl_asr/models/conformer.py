"""Forward pass over the weights of transformers' w2v-BERT layers, without padding and attention masks.

    x = x + feed_forward_1(norm(x)) / 2
    x = x + attention(norm(x))
    x = x + convolution(x)
    x = norm(x + feed_forward_2(norm(x)) / 2)

The convolution is causal. Its depthwise part computes padded rows, where each utterance starts after zeros.

The published checkpoints have relative keys (Shaw et al., 2018, arXiv:1803.02155): a learned vector of each distance,
limited to 64 frames before and 8 frames after the query. The config also knows rotary positions and the relative
positions of Transformer-XL (Dai et al., 2019, arXiv:1901.02860).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.models.position_bias import DistanceBias
from ssl_asr.models.ragged import Frames
from ssl_asr.models.ssl_layers import feed_forward
from ssl_asr.models.transformer import compute_type, is_plain, linear, project


def positions_of(encoder: Any, h_BFD: Tensor, frames: Frames) -> Tensor | None:
    """What all layers share of their positions.

    Args:
        encoder: ``Wav2Vec2BertEncoder`` of transformers.
        h_BFD: Tensor of shape (batch, frames, features), whose size and type count.
        frames: Frames, the layout of the layers.

    Returns:
        Cosines and sines of each frame in the layout of ``frames`` for rotary positions, embeddings of all distances
        for relative positions, and None for relative keys.
    """
    if encoder.embed_positions is None:
        return None
    table: Tensor = encoder.embed_positions(h_BFD)
    if encoder.config.position_embeddings_type != "rotary":
        return table
    angles_FD = table[:, :, 0, 0].transpose(0, 1).flatten(1)
    return frames.enter(angles_FD.expand(h_BFD.shape[0], -1, -1))


def conformer_layer(layer: Any, x: Tensor, frames: Frames, positions: Tensor | None) -> Tensor:
    """Computes a layer.

    Args:
        layer: ``Wav2Vec2BertEncoderLayer`` of transformers.
        x: Tensor, states in the layout of ``frames``.
        frames: Frames, the layout.
        positions: See `positions_of`.
    """
    x = torch.add(x, feed_forward(layer.ffn1, layer.ffn1_layer_norm(x)), alpha=0.5)
    mixed = _self_attention(layer.self_attn, layer.self_attn_layer_norm(x), frames, positions)
    x = x + layer.self_attn_dropout(mixed)
    x = x + _convolution(layer.conv_module, x, frames)
    x = torch.add(x, feed_forward(layer.ffn2, layer.ffn2_layer_norm(x)), alpha=0.5)
    states: Tensor = layer.final_layer_norm(x)
    return states


def _self_attention(attention: Any, x: Tensor, frames: Frames, positions: Tensor | None) -> Tensor:
    x = x.to(compute_type(x, attention.linear_out.weight))
    kind = attention.position_embeddings_type
    turned = _rotated(attention, x, positions) if kind == "rotary" else x
    q, k, v = project(attention.linear_q, turned), project(attention.linear_k, turned), project(attention.linear_v, x)
    bias = None
    if kind == "relative":
        q, bias = _relative_positions(attention, q, positions)
    elif kind == "relative_key":
        bias = _relative_keys(attention, q)
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = frames.attend(q, k, v, heads=attention.num_heads, dropout=dropout, bias=bias)
    return project(attention.linear_out, mixed)


def _heads(attention: Any, x: Tensor) -> Tensor:
    """Splits the features of all heads, shape (…, heads, features)."""
    return x.view(*x.shape[:-1], attention.num_heads, -1)


def _rotated(attention: Any, x: Tensor, angles: Tensor | None) -> Tensor:
    """States rotated by their positions."""
    assert angles is not None
    cos, sin = angles.to(x.dtype)[..., None, :].chunk(2, dim=-1)
    x = _heads(attention, x)
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).flatten(-2)


def _relative_keys(attention: Any, q: Tensor) -> DistanceBias:
    """The bias ``q e_n / sqrt(d)`` of each distance ``n`` with its learned vector ``e_n``."""
    left, right = attention.left_max_position_embeddings, attention.right_max_position_embeddings
    vectors_RD = attention.distance_embedding(torch.arange(left + right + 1, device=q.device)).to(q.dtype)
    scores = (_heads(attention, q) * attention.scaling) @ vectors_RD.T
    return DistanceBias(scores.flatten(-2), left, right)


def _relative_positions(attention: Any, q: Tensor, table_BRD: Tensor | None) -> tuple[Tensor, DistanceBias]:
    """Queries ``q + u``, and the bias ``(q + v) p_n / sqrt(d)`` of each distance ``n`` with its projected sinusoid."""
    assert table_BRD is not None
    vectors_RHD = _heads(attention, project(attention.linear_pos, table_BRD[0])).to(q.dtype)
    q = _heads(attention, q)
    scaled = (q + attention.pos_bias_v.to(q.dtype)) * attention.scaling
    scores = torch.einsum("...hd,rhd->...hr", scaled, vectors_RHD)
    farthest = vectors_RHD.shape[0] // 2
    return (q + attention.pos_bias_u.to(q.dtype)).flatten(-2), DistanceBias(scores.flatten(-2), farthest, farthest)


def _convolution(module: Any, x: Tensor, frames: Frames) -> Tensor:
    x_BFD = frames.leave(functional.glu(_pointwise(module.pointwise_conv1, module.layer_norm(x))))
    [kernel] = module.depthwise_conv.kernel_size
    x_BDF = module.depthwise_conv(functional.pad(x_BFD.transpose(1, 2), (kernel - 1, 0)))
    x = module.activation(module.depthwise_layer_norm(frames.enter(x_BDF.transpose(1, 2))))
    dropped: Tensor = module.dropout(_pointwise(module.pointwise_conv2, x))
    return dropped


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution over single frames, of features in the last dimension."""
    if is_plain(conv, nn.Conv1d):
        return linear(x, conv.weight.squeeze(-1), conv.bias)
    rows_NC: Tensor = conv(x.flatten(0, -2).T[None])[0].T
    return rows_NC.reshape(*x.shape[:-1], -1)
