"""Transformer layers whose weights sit in transformers' modules and whose forward passes are ours.

The layers are those of Whisper and BART: norm first, then attention or feed-forward, then the sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ssl_asr.models.encoder import padding_mask

_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
# MKL takes twice as long for so many rows times a matrix as for the matrix times their columns.
_THIN = range(13, 64)
# The same goes for fewer rows where the matrix is a vocabulary's.
_VOCABULARY = 10_000
_THIN_OF_VOCABULARY = range(4, 64)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`; on a CPU, where a search feeds a batch's next tokens, in the quicker order."""
    # A compiler orders its products itself, and its graph must not depend on how many rows there are.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _MKL:
        return functional.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    thin = _THIN if len(weight) < _VOCABULARY else _THIN_OF_VOCABULARY
    single = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if rows not in thin or not single:
        return functional.linear(x, weight, bias)
    product_NV = (weight @ x.reshape(rows, -1).T).T
    # Either way it is copied once, into rows.
    out_NV = (
        product_NV.contiguous() if bias is None else torch.add(product_NV, bias, out=x.new_empty(rows, len(weight)))
    )
    return out_NV.view(*x.shape[:-1], -1)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear layer, or what stands in for one, makes of ``x``."""
    # Not those that are more than that, such as peft's, or that somebody listens to.
    if type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks:
        return linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def _heads(x_BND: Tensor, heads: int) -> Tensor:
    batch, length, _ = x_BND.shape
    return x_BND.view(batch, length, heads, -1).transpose(1, 2)


def attend(attention: Any, x_BND: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of ``x`` over keys and values already split into heads, through the module's projections."""
    q = _heads(project(attention.q_proj, x_BND), attention.num_heads)
    dropout = attention.dropout if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return project(attention.out_proj, mixed.transpose(1, 2).flatten(2))


def _weights(attention: Any, x_BND: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """What every head looks at, ``weights_BHNF`` in float32."""
    q = _heads(project(attention.q_proj, x_BND), attention.num_heads)
    scores_BHNF = (q @ k.transpose(2, 3)).float() / q.shape[-1] ** 0.5
    if mask is not None:
        scores_BHNF = scores_BHNF.masked_fill(~mask, -torch.inf)
    weights_BHNF: Tensor = scores_BHNF.softmax(-1)
    return weights_BHNF


def keys_values(attention: Any, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of ``x``, split into heads."""
    heads = attention.num_heads
    return _heads(project(attention.k_proj, x_BND), heads), _heads(project(attention.v_proj, x_BND), heads)


def drop(layer: Any, x: Tensor, p: float | None = None) -> Tensor:
    """Dropout at the layer's own rate, or at ``p``."""
    return functional.dropout(x, p=layer.dropout if p is None else p, training=layer.training)


def feed_forward(layer: Any, x_BND: Tensor) -> Tensor:
    """The layer's second half."""
    h_BND = layer.activation_fn(project(layer.fc1, layer.final_layer_norm(x_BND)))
    return x_BND + drop(layer, project(layer.fc2, drop(layer, h_BND, layer.activation_dropout)))


def run_layer(layer: Callable[..., Tensor], *inputs: Any, again: bool) -> Tensor:
    """A layer's output; with ``again``, what it keeps for backward is its input only."""
    if not (again and torch.is_grad_enabled()):
        return layer(*inputs)
    recomputed: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
    return recomputed


@dataclass(slots=True)
class DecodingState:
    """The cache of one decoding: preallocated self-attention keys and values, fixed cross-attention ones.

    The beams of an utterance are rows of the self-attention side, one after another; on the other side they are
    queries of their utterance's one set of keys, which is never copied. With ``watch``, ``weights_NF`` is where the
    last layer's heads looked at the last step, on average, a row for each beam.
    """

    self_k: list[Tensor]
    self_v: list[Tensor]
    cross_k: list[Tensor]
    cross_v: list[Tensor]
    cross_mask: Tensor | None
    filled: int = 0
    beams: int = 1
    watch: bool = False
    weights_NF: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep only these utterances of the batch (int64 on the device), with all their beams."""
        for name in ("cross_k", "cross_v"):
            setattr(self, name, [tensor[rows] for tensor in getattr(self, name)])
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask[rows]
        own = beam_rows(rows, self.beams)
        self.self_k, self.self_v = ([tensor[own] for tensor in cache] for cache in (self.self_k, self.self_v))

    def spread(self, beams: int) -> None:
        """Make so many beams of each utterance, all alike."""
        assert self.beams == 1
        self.beams = beams
        for name in ("self_k", "self_v"):
            setattr(self, name, [tensor.repeat_interleave(beams, dim=0) for tensor in getattr(self, name)])

    def select(self, rows: Tensor) -> None:
        """Put each beam in the place of another of its utterance: ``rows`` of the whole batch (int64)."""
        for cache in (*self.self_k, *self.self_v):
            cache[:, :, : self.filled] = cache[:, :, : self.filled].index_select(0, rows)


def beam_rows(rows: Tensor, beams: int) -> Tensor:
    """The rows of all beams of these utterances."""
    return (rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten()


class TransformerDecoder(nn.Module):
    """An autoregressive decoder over encoder states, teacher-forced or a token at a time with a cache.

    Args:
        net: transformers' ``WhisperDecoder``, for its weights.
    """

    gradient_checkpointing = False

    def __init__(self, *, net: Any) -> None:
        super().__init__()
        self.net: Any = net
        self.max_tokens: int = self.net.config.max_target_positions
        self.vocab_size: int = self.net.config.vocab_size

    def forward(self, tokens_BU: Tensor, h_BFD: Tensor, context_lengths_B: Tensor) -> Tensor:
        """States after each token, teacher-forced: ``states_BUD``; `logits` turns rows of them into logits.

        What follows a row's last token cannot reach back, so tokens need no mask, only the loss does.
        """
        mask_BF = padding_mask(context_lengths_B, h_BFD.shape[1], h_BFD.device)
        cross_mask = None if mask_BF is None else mask_BF[:, None, None]
        x_BUD = self._embed(tokens_BU, 0)
        again = self.gradient_checkpointing and self.net.training
        for layer in self.net.layers:
            x_BUD = run_layer(self._layer, layer, x_BUD, h_BFD, cross_mask, again=again)
        states_BUD: Tensor = self.net.layer_norm(x_BUD)
        return states_BUD

    def _layer(self, layer: Any, x_BUD: Tensor, h_BFD: Tensor, cross_mask: Tensor | None) -> Tensor:
        y_BUD = layer.self_attn_layer_norm(x_BUD)
        k, v = keys_values(layer.self_attn, y_BUD)
        x_BUD = x_BUD + drop(layer, attend(layer.self_attn, y_BUD, k, v, None, causal=True))
        k, v = keys_values(layer.encoder_attn, h_BFD)
        return self._cross_and_feed(layer, x_BUD, k, v, cross_mask)

    def compile_layers(self, backend: str) -> None:
        """Compiles the layers in place with `torch.compile`, for inputs of any length."""
        compiled = torch.compile(self._layer, backend=backend, dynamic=True)
        setattr(self, "_layer", compiled)  # noqa: B010

    @torch.no_grad()
    def cross_weights(
        self, tokens_BU: Tensor, h_BFD: Tensor, context_lengths_B: Tensor, heads: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """What some heads look at when each token has been fed, ``weights_BHUF``, and the states, ``states_BUD``.

        Args:
            tokens_BU, h_BFD, context_lengths_B: see `forward`.
            heads: layer and head of each.
        """
        mask_BF = padding_mask(context_lengths_B, h_BFD.shape[1], h_BFD.device)
        cross_mask = None if mask_BF is None else mask_BF[:, None, None]
        x_BUD = self._embed(tokens_BU, 0)
        found: dict[tuple[int, int], Tensor] = {}
        for i, layer in enumerate(self.net.layers):
            y_BUD = layer.self_attn_layer_norm(x_BUD)
            k, v = keys_values(layer.self_attn, y_BUD)
            x_BUD = x_BUD + attend(layer.self_attn, y_BUD, k, v, None, causal=True)
            k, v = keys_values(layer.encoder_attn, h_BFD)
            y_BUD = layer.encoder_attn_layer_norm(x_BUD)
            own = [head for at, head in heads if at == i]
            if own:
                weights_BHUF = _weights(layer.encoder_attn, y_BUD, k, cross_mask)[:, own]
                found |= {(i, head): weights_BHUF[:, place] for place, head in enumerate(own)}
            x_BUD = self._cross_and_feed(layer, x_BUD, k, v, cross_mask)
        return torch.stack([found[one] for one in heads], dim=1), self.net.layer_norm(x_BUD)

    @staticmethod
    def _looks(layer: Any, x_BUD: Tensor, state: DecodingState, i: int) -> Tensor:
        """Where layer ``i``'s heads look on average: from each beam, or, without beams, from the last token."""
        y_BUD = layer.encoder_attn_layer_norm(x_BUD)
        mean_BUF = _weights(layer.encoder_attn, y_BUD, state.cross_k[i], state.cross_mask).mean(1)
        return mean_BUF[:, -1] if state.beams == 1 else mean_BUF.flatten(0, 1)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of any selection of states, shape (…, V)."""
        return linear(states, self.net.embed_tokens.weight)

    def _embed(self, tokens_BU: Tensor, first: int) -> Tensor:
        positions_UD = self.net.embed_positions.weight[first : first + tokens_BU.shape[1]]
        return drop(self.net, self.net.embed_tokens(tokens_BU) + positions_UD)

    @staticmethod
    def _cross_and_feed(layer: Any, x_BUD: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        y_BUD = layer.encoder_attn_layer_norm(x_BUD)
        x_BUD = x_BUD + drop(layer, attend(layer.encoder_attn, y_BUD, k, v, mask, causal=False))
        return feed_forward(layer, x_BUD)

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> DecodingState:
        """An empty cache over these encoder states, with room for ``max_tokens`` tokens an utterance."""
        mask_BF = padding_mask(context_lengths_B, h_BFD.shape[1], h_BFD.device)
        cross = [keys_values(layer.encoder_attn, h_BFD) for layer in self.net.layers]
        batch, heads, _, dim = cross[0][0].shape
        room = (batch, heads, max_tokens, dim)
        return DecodingState(
            self_k=[k.new_zeros(room) for k, _ in cross],
            self_v=[v.new_zeros(room) for _, v in cross],
            cross_k=[k.contiguous() for k, _ in cross],
            cross_v=[v.contiguous() for _, v in cross],
            cross_mask=None if mask_BF is None else mask_BF[:, None, None],
        )

    def step(self, tokens_BU: Tensor, state: DecodingState) -> Tensor:
        """Feed the next tokens, of every beam, and return the logits after the last of them, ``logits_BV``.

        Several tokens at once are only for the empty cache (the prompt), before there are beams.
        """
        start, end = state.filled, state.filled + tokens_BU.shape[1]
        assert start == 0 or tokens_BU.shape[1] == 1
        x_BUD = self._embed(tokens_BU, start)
        for i, layer in enumerate(self.net.layers):
            y_BUD = layer.self_attn_layer_norm(x_BUD)
            k, v = keys_values(layer.self_attn, y_BUD)
            state.self_k[i][:, :, start:end], state.self_v[i][:, :, start:end] = k, v
            k, v = state.self_k[i][:, :, :end], state.self_v[i][:, :, :end]
            x_BUD = x_BUD + attend(layer.self_attn, y_BUD, k, v, None, causal=start == 0)
            if state.beams > 1:
                x_BUD = x_BUD.view(-1, state.beams, x_BUD.shape[-1])
            if state.watch and i == len(self.net.layers) - 1:
                state.weights_NF = self._looks(layer, x_BUD, state, i)
            x_BUD = self._cross_and_feed(layer, x_BUD, state.cross_k[i], state.cross_v[i], state.cross_mask)
            x_BUD = x_BUD.reshape(len(tokens_BU), -1, x_BUD.shape[-1])
        state.filled = end
        return self.logits(self.net.layer_norm(x_BUD[:, -1]))
