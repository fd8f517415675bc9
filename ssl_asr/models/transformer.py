"""Forward passes over the weights of transformers' Whisper layers.

The layers have the form of Whisper and BART, with normalization first:

    x = x + self_attention(norm(x))
    x = x + cross_attention(norm(x), encoder states)     decoder only
    x = x + fc2(activation(fc1(norm(x))))
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ssl_asr.models.decoding_state import WIDTH, DecodingState
from ssl_asr.models.encoder import padding_mask
from ssl_asr.models.layers import by_method, with_methods
from ssl_asr.models.step_graph import StepGraphs

M = TypeVar("M", bound=nn.Module)

_MKL: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
# For these numbers of rows, MKL computes (W x^T)^T in half the time of x W^T.
_THIN = range(13, 64)
# With the weight matrix of a large vocabulary, the same holds for fewer rows.
_VOCABULARY = 10_000
_THIN_OF_VOCABULARY = range(4, 64)


class DropoutModule(Protocol):
    """A module of transformers with a dropout probability."""

    dropout: float
    training: bool


class AttentionModule(DropoutModule, Protocol):
    """An attention module of transformers, for example ``WhisperAttention``."""

    num_heads: int
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    out_proj: nn.Module


class LayerModule(DropoutModule, Protocol):
    """The feed-forward part of a transformer layer, for example of ``WhisperEncoderLayer``."""

    activation_dropout: float
    activation_fn: Callable[[Tensor], Tensor]
    final_layer_norm: nn.Module
    fc1: nn.Module
    fc2: nn.Module


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Like `torch.nn.functional.linear`, with a faster order of the product for few rows on a CPU.

    A search decodes a batch one token at a time, so its products have few rows. Without gradients, in float32, on a CPU
    with MKL, the transposed product is computed. Results agree to rounding.

    Args:
        x: Tensor of shape (…, in).
        weight: Tensor of shape (out, in).
        bias: Tensor of shape (out,). Default: None.

    Returns:
        Contiguous tensor of shape (…, out).
    """
    # A compiler orders products itself, and its graph must not depend on the number of rows.
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _MKL:
        return functional.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    thin = _THIN if len(weight) < _VOCABULARY else _THIN_OF_VOCABULARY
    single = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if rows not in thin or not single:
        return functional.linear(x, weight, bias)
    product_NV = (weight @ x.reshape(rows, -1).T).T
    # Each way makes one copy, which also restores the row-major layout.
    out_NV = (
        product_NV.contiguous() if bias is None else torch.add(product_NV, bias, out=x.new_empty(rows, len(weight)))
    )
    return out_NV.view(*x.shape[:-1], -1)


def compute_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type in which matrix products of ``x`` and ``weight`` are computed: that of autocast, or of the weight."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def is_plain(layer: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether the weights of a layer are all that it computes with.

    Subclasses and replacements (peft's LoRA layers) and layers with hooks must be called as modules.
    """
    return type(layer) is kind and not layer._forward_hooks and not layer._forward_pre_hooks


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear layer, or the module that replaces it, to ``x``."""
    if is_plain(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """Reshapes (batch, length, heads * features) to (batch, heads, length, features)."""
    batch, length, _ = x_BND.shape
    return x_BND.view(batch, length, heads, -1).transpose(1, 2)


def attend(
    attention: AttentionModule, x_BND: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """Multi-head scaled dot-product attention (Vaswani et al., 2017, arXiv:1706.03762).

    For each head, with ``d`` features per head:

        q   = W_q x
        out = W_o concat over heads of softmax(q k^T / sqrt(d) + mask) v

    Args:
        attention: AttentionModule, gives the projections of queries and outputs.
        x_BND: Tensor of shape (batch, queries, features).
        k: Tensor of shape (batch, heads, keys, d), see `keys_values`.
        v: Tensor of shape (batch, heads, keys, d).
        mask: Bool tensor that broadcasts to (batch, heads, queries, keys), False where a key is masked, or None.
        causal: bool, mask the keys after each query's position.

    Returns:
        Tensor of shape (batch, queries, features).
    """
    q = split_heads(project(attention.q_proj, x_BND), attention.num_heads)
    dropout = attention.dropout if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return project(attention.out_proj, mixed.transpose(1, 2).flatten(2))


def _attention_weights(attention: AttentionModule, x_BND: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Computes softmax(q k^T / sqrt(d)) of every head, ``weights_BHNF`` in float32."""
    q = split_heads(project(attention.q_proj, x_BND), attention.num_heads)
    scores_BHNF = (q @ k.transpose(2, 3)).float() / q.shape[-1] ** 0.5
    if mask is not None:
        scores_BHNF = scores_BHNF.masked_fill(~mask, -torch.inf)
    weights_BHNF: Tensor = scores_BHNF.softmax(-1)
    return weights_BHNF


def keys_values(attention: AttentionModule, x_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Computes keys and values, each of shape (batch, heads, length, features per head)."""
    heads = attention.num_heads
    return split_heads(project(attention.k_proj, x_BND), heads), split_heads(project(attention.v_proj, x_BND), heads)


def drop(layer: DropoutModule, x: Tensor, p: float | None = None) -> Tensor:
    """Applies dropout with probability ``p`` in train mode. Default: ``layer.dropout``."""
    return functional.dropout(x, p=layer.dropout if p is None else p, training=layer.training)


def feed_forward(layer: LayerModule, x_BND: Tensor) -> Tensor:
    """Computes ``x + fc2(activation(fc1(norm(x))))``, with dropout."""
    h_BND = layer.activation_fn(project(layer.fc1, layer.final_layer_norm(x_BND)))
    return x_BND + drop(layer, project(layer.fc2, drop(layer, h_BND, layer.activation_dropout)))


def run_layer(layer: Callable[..., Any], *inputs: object, recompute: bool) -> Any:
    """Calls ``layer(*inputs)``.

    With ``recompute``, only the inputs are stored for backward, and the layer runs a second time there (gradient
    checkpointing).
    """
    if not (recompute and torch.is_grad_enabled()):
        return layer(*inputs)
    return checkpoint(layer, *inputs, use_reentrant=False)


def _cross_mask(h_BFD: Tensor, context_lengths_B: Tensor) -> Tensor | None:
    """Returns the padding mask of encoder states, shape (batch, 1, 1, frames); None without padding."""
    mask_BF = padding_mask(context_lengths_B, h_BFD.shape[1], h_BFD.device)
    return None if mask_BF is None else mask_BF[:, None, None]


class TransformerDecoder(nn.Module):
    """Autoregressive decoder over encoder states, teacher-forced or one token at a time with a cache.

    Args:
        net: transformers' ``WhisperDecoder``, holds the weights.

    Attributes:
        max_tokens: int, largest number of tokens, limited by the position embeddings.
        vocab_size: int, number of tokens in the vocabulary.
        gradient_checkpointing: bool, compute each layer again in backward, which saves memory and costs time.
    """

    gradient_checkpointing = False

    def __init__(self, *, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net
        config: Any = net.config
        self.max_tokens: int = config.max_target_positions
        self.vocab_size: int = config.vocab_size
        self._graphs = StepGraphs(self.fixed_step, net)

    def forward(self, tokens_BU: Tensor, h_BFD: Tensor, context_lengths_B: Tensor) -> Tensor:
        """Runs the decoder with teacher forcing.

        Tokens need no padding mask: attention is causal, so padding does not change the states before it. Only the loss
        masks it.

        Args:
            tokens_BU: int64 tensor of shape (batch, tokens), inputs.
            h_BFD: Tensor of shape (batch, frames, features), encoder states.
            context_lengths_B: int64 tensor on the CPU, number of frames to attend to.

        Returns:
            ``states_BUD``, the state after each token. `logits` turns any selection of states into logits.
        """
        if torch.is_grad_enabled():
            self._graphs.release()
        cross_mask = _cross_mask(h_BFD, context_lengths_B)
        x_BUD = self._embed(tokens_BU, 0)
        recompute = self.gradient_checkpointing and self.net.training
        for layer in self.net.layers:
            x_BUD = run_layer(self._layer, layer, x_BUD, h_BFD, cross_mask, recompute=recompute)
        states_BUD: Tensor = self.net.layer_norm(x_BUD)
        return states_BUD

    def _layer(self, layer: Any, x_BUD: Tensor, h_BFD: Tensor, cross_mask: Tensor | None) -> Tensor:
        y_BUD = layer.self_attn_layer_norm(x_BUD)
        k, v = keys_values(layer.self_attn, y_BUD)
        x_BUD = x_BUD + drop(layer, attend(layer.self_attn, y_BUD, k, v, None, causal=True))
        k, v = keys_values(layer.encoder_attn, h_BFD)
        return self._cross_and_feed(layer, x_BUD, k, v, cross_mask)

    def separate_layers(self) -> Iterator[tuple[nn.Module, str | None]]:
        """See `ssl_asr.models.layers.Layered`."""
        yield from with_methods(self.net.layers, self._layer)
        setattr(self, "_layer", by_method)  # noqa: B010

    def compile_layers(self, backend: str) -> None:
        """Compiles the layers in place with `torch.compile`, for inputs of any length."""
        compiled = torch.compile(self._layer, backend=backend, dynamic=True)
        setattr(self, "_layer", compiled)  # noqa: B010

    @torch.no_grad()
    def cross_weights(
        self, tokens_BU: Tensor, h_BFD: Tensor, context_lengths_B: Tensor, heads: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Computes the cross-attention weights of some heads with teacher forcing, in eval mode.

        Args:
            tokens_BU, h_BFD, context_lengths_B: See `forward`.
            heads: (layer, head) of each attention head.

        Returns:
            ``weights_BHUF``, shape (batch, heads, tokens, frames), and ``states_BUD``, as `forward` returns them.
        """
        cross_mask = _cross_mask(h_BFD, context_lengths_B)
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
                weights_BHUF = _attention_weights(layer.encoder_attn, y_BUD, k, cross_mask)[:, own]
                found |= {(i, head): weights_BHUF[:, place] for place, head in enumerate(own)}
            x_BUD = self._cross_and_feed(layer, x_BUD, k, v, cross_mask)
        return torch.stack([found[one] for one in heads], dim=1), self.net.layer_norm(x_BUD)

    @staticmethod
    def _mean_weights(layer: Any, x_BUD: Tensor, state: DecodingState, i: int) -> Tensor:
        """Averages the cross-attention weights of layer ``i`` over heads, for each beam or the last token."""
        y_BUD = layer.encoder_attn_layer_norm(x_BUD)
        mean_BUF = _attention_weights(layer.encoder_attn, y_BUD, state.cross_k[i], state.cross_mask).mean(1)
        return mean_BUF[:, -1] if state.beams == 1 else mean_BUF.flatten(0, 1)

    def logits(self, states: Tensor) -> Tensor:
        """Computes logits from states of shape (…, features)."""
        return linear(states, self.output_VD)

    @property
    def output_VD(self) -> Tensor:
        """The output layer, shape (vocabulary, features): it is the token embedding."""
        weight_VD: Tensor = self.net.embed_tokens.weight
        return weight_VD

    def _embed(self, tokens_BU: Tensor, first: int) -> Tensor:
        """Embeds tokens. The first token has the position ``first``."""
        positions_UD = self.net.embed_positions.weight[first : first + tokens_BU.shape[1]]
        return drop(self.net, self.net.embed_tokens(tokens_BU) + positions_UD)

    @staticmethod
    def _cross_and_feed(layer: Any, x_BUD: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        y_BUD = layer.encoder_attn_layer_norm(x_BUD)
        x_BUD = x_BUD + drop(layer, attend(layer.encoder_attn, y_BUD, k, v, mask, causal=False))
        return feed_forward(layer, x_BUD)

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> DecodingState:
        """Returns an empty cache with room for ``max_tokens`` tokens per utterance.

        Args:
            h_BFD: Tensor of shape (batch, frames, features), encoder states.
            context_lengths_B: int64 tensor on the CPU, number of frames to attend to.
            max_tokens: int, largest number of tokens, prompt included.
        """
        cross = [keys_values(layer.encoder_attn, h_BFD) for layer in self.net.layers]
        batch, heads, _, dim = cross[0][0].shape
        # Whole widths on a GPU, where a mask of any other width would be copied.
        columns = max_tokens if h_BFD.device.type == "cpu" else -(-max_tokens // WIDTH) * WIDTH
        room = (batch, heads, columns, dim)
        return DecodingState(
            self_k=[k.new_zeros(room) for k, _ in cross],
            self_v=[v.new_zeros(room) for _, v in cross],
            cross_k=[k.contiguous() for k, _ in cross],
            cross_v=[v.contiguous() for _, v in cross],
            cross_mask=_cross_mask(h_BFD, context_lengths_B),
        )

    def step(self, tokens_BU: Tensor, state: DecodingState) -> Tensor:
        """Appends tokens to the cache and computes the logits of the next token.

        Args:
            tokens_BU: int64 tensor of shape (batch * beams, tokens). More than one token (a prompt) is allowed only if
                the cache is empty and there is one beam.
            state: DecodingState, updated in place.

        Returns:
            ``logits_BV``, shape (batch * beams, vocabulary).
        """
        if self._graphs.takes(state, tokens_BU):
            return self._graphs.step(state, tokens_BU)
        state.grow()
        start, end = state.filled, state.filled + tokens_BU.shape[1]
        assert start == 0 or tokens_BU.shape[1] == 1
        x_BUD = self._embed(tokens_BU, start)
        for i, layer in enumerate(self.net.layers):
            y_BUD = layer.self_attn_layer_norm(x_BUD)
            k, v = keys_values(layer.self_attn, y_BUD)
            state.self_k[i][:, :, start:end], state.self_v[i][:, :, start:end] = k, v
            k, v = state.self_k[i][:, :, :end], state.self_v[i][:, :, :end]
            x_BUD = x_BUD + attend(layer.self_attn, y_BUD, k, v, None, causal=start == 0)
            x_BUD = self._cross_step(layer, x_BUD, state, i)
        state.filled = end
        return self.logits(self.net.layer_norm(x_BUD[:, -1]))

    def fixed_step(self, state: DecodingState) -> Tensor:
        """Computes a step of fixed shapes, see `ssl_asr.models.decoding_state`. Nothing in it waits for the device.

        Args:
            state: DecodingState with ``fixed``. Its cache and its position are updated, ``filled`` is not.

        Returns:
            ``logits_NV``, shape (batch * beams, vocabulary).
        """
        fixed = state.fixed
        assert fixed is not None
        state.reorder()
        x_N1D = self.net.embed_tokens(fixed.tokens_N1)
        x_N1D = x_N1D + self.net.embed_positions.weight.index_select(0, fixed.position_1)
        mask = (fixed.columns_W <= fixed.position_1)[None, None, None]
        for i, layer in enumerate(self.net.layers):
            y_N1D = layer.self_attn_layer_norm(x_N1D)
            k, v = keys_values(layer.self_attn, y_N1D)
            state.self_k[i].index_copy_(2, fixed.position_1, k)
            state.self_v[i].index_copy_(2, fixed.position_1, v)
            k, v = state.self_k[i][:, :, : fixed.width], state.self_v[i][:, :, : fixed.width]
            x_N1D = x_N1D + attend(layer.self_attn, y_N1D, k, v, mask, causal=False)
            x_N1D = self._cross_step(layer, x_N1D, state, i)
        fixed.position_1.add_(1)
        return self.logits(self.net.layer_norm(x_N1D[:, -1]))

    def _cross_step(self, layer: Any, x_BUD: Tensor, state: DecodingState, i: int) -> Tensor:
        """Cross-attention and feed-forward of layer ``i``, for the tokens of a step."""
        shape = x_BUD.shape
        # The beams of an utterance become queries of one row of the cross-attention cache.
        if state.beams > 1:
            x_BUD = x_BUD.view(-1, state.beams, shape[-1])
        if state.watch and i == len(self.net.layers) - 1:
            state.weights_NF = self._mean_weights(layer, x_BUD, state, i)
        x_BUD = self._cross_and_feed(layer, x_BUD, state.cross_k[i], state.cross_v[i], state.cross_mask)
        return x_BUD.reshape(shape)
