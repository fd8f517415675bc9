"""Teacher forcing through a GRU with location-aware attention, with a backward pass of its own.

Shape letters of this module, besides those of `ssl_asr.types`: A attention width, C channels of the location features,
G gates (3 * width), K taps of the convolution, W width of the GRU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class GruLayer:
    """One layer of the GRU. Its three gates are stacked: reset, update, new.

    Attributes:
        base_UBG: Tensor of shape (tokens, batch, 3 * width). Part of the gates that is known before the loop: the bias
            of the inputs, and in the first layer the product of the embeddings.
        inputs_GD: Tensor of shape (3 * width, features), weights of the context (first layer) or of the layer below.
        memory_GW: Tensor of shape (3 * width, width), weights of the layer's last state.
        bias_G: Tensor of shape (3 * width,), bias of the product with ``memory_GW``.
        dropout_UBD: Tensor of shape (tokens, batch, features), factors of the inputs; None for no dropout.
    """

    base_UBG: Tensor
    inputs_GD: Tensor
    memory_GW: Tensor
    bias_G: Tensor
    dropout_UBD: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """Location-aware attention with sigmoids in place of tanh.

    With ``tanh(x) = 2 sigmoid(2 x) - 1``, the energies of `LocationAttention` are those of sigmoids with all weights
    doubled, minus a constant, which the softmax ignores. A sigmoid takes a third of the time of a tanh on a CPU.

    Attributes:
        query_AW: Tensor of shape (attention width, width), weights of the query.
        where_CK: Tensor of shape (channels, 2 * kernel + 1), convolution over the previous attention weights.
        location_CA: Tensor of shape (channels, attention width), weights of the location features.
        energy_A: Tensor of shape (attention width,), weights of the sigmoids in the energy.
    """

    query_AW: Tensor
    where_CK: Tensor
    location_CA: Tensor
    energy_A: Tensor


def gru_with_attention(
    h_BFD: Tensor, keys_BFA: Tensor, mask_BF: Tensor | None, attention: AttentionWeights, layers: Sequence[GruLayer]
) -> tuple[Tensor, Tensor]:
    """Computes contexts and states of a GRU with location-aware attention for given tokens.

    For each token ``i``, with ``s_i`` the state of the last layer and ``a_0`` equal weights on all valid frames:

        s_i = GRU(base_i + inputs c_{i-1}, s_{i-1})                      each layer on the one below
        a_i = softmax(energy . sigmoid(keys + query s_i + location conv(a_{i-1})) + bias)
        c_i = sum over frames j of a_ij h_j

    Only products that depend on the previous token are in the loop. The backward pass computes the gradient of most
    weight matrices as one product after its loop, where autograd computes and adds one product per token. The forward
    pass stores ``a_i``, ``c_i`` and the gates. The backward pass computes the sigmoids again, because storing them
    takes (frames, attention width) values per token.

    Args:
        h_BFD: Tensor of shape (batch, frames, features), encoder states. All tensors are float32 or all float64.
        keys_BFA: Tensor of shape (batch, frames, attention width), keys of the frames.
        mask_BF: Bool tensor of shape (batch, frames), False at padding; None without padding.
        attention: Weights of the attention, doubled as `AttentionWeights` describes. So are the keys.
        layers: Layers of the GRU, first to last.

    Returns:
        ``context_UBD`` and ``state_UBW``.

    Raises:
        RuntimeError: A second derivative is computed.
    """
    flat = [getattr(layer, field.name) for layer in layers for field in fields(layer)]
    weights = [getattr(attention, field.name) for field in fields(attention)]
    bias_BF = h_BFD.new_zeros(h_BFD.shape[:2])
    if mask_BF is not None:
        bias_BF.masked_fill_(~mask_BF, -torch.inf)
    with torch.autocast(h_BFD.device.type, enabled=False):
        both: tuple[Tensor, Tensor] = _Recurrence.apply(h_BFD, keys_BFA, bias_BF, *weights, *flat)  # type: ignore[no-untyped-call]
    return both


class _Recurrence(torch.autograd.Function):
    """The loops over tokens, forward and backward."""

    @staticmethod
    def forward(ctx: Any, h_BFD: Tensor, keys_BFA: Tensor, bias_BF: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        attention, layers = _unflatten(weights)
        scorer, location = _Scorer(keys_BFA, bias_BF, attention), _Location(attention.where_CK, bias_BF)
        tokens, batch, _ = layers[0].base_UBG.shape
        # Entry 0 of each of these is what there is before the first token.
        weights_UBF = h_BFD.new_empty(tokens + 1, *bias_BF.shape)
        weights_UBF[0] = bias_BF.softmax(-1)
        context_UBD = h_BFD.new_zeros(tokens + 1, batch, h_BFD.shape[2])
        cells = [_Cell(layer) for layer in layers]
        for step in range(tokens):
            below_BD = context_UBD[step]
            for cell in cells:
                below_BD = cell.forward(step, below_BD)
            scorer.sigmoids(below_BD @ attention.query_AW.t(), location.features(weights_UBF[step]))
            torch.softmax(scorer.energies(), -1, out=weights_UBF[step + 1])
            torch.bmm(weights_UBF[step + 1][:, None], h_BFD, out=context_UBD[step + 1][:, None])
        kept = [tensor for cell in cells for tensor in (cell.state_UBW, cell.gates_UBG)]
        ctx.save_for_backward(h_BFD, keys_BFA, bias_BF, weights_UBF, context_UBD, *weights, *kept)
        ctx.layers = len(layers)
        return context_UBD[1:].clone(), cells[-1].state_UBW[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_context_UBD: Tensor, d_state_UBW: Tensor) -> tuple[Tensor | None, ...]:
        h_BFD, keys_BFA, bias_BF, weights_UBF, context_UBD, *rest = ctx.saved_tensors
        kept = rest[-2 * ctx.layers :]
        attention, layers = _unflatten(rest[: -2 * ctx.layers])
        cells = [_Cell(layer, *kept[2 * at : 2 * at + 2]) for at, layer in enumerate(layers)]
        with torch.autocast(h_BFD.device.type, enabled=False):
            scorer = _ScorerGradient(_Scorer(keys_BFA, bias_BF, attention), cells[-1].state_UBW[1:])
            d_context_UBD, d_below_BD = d_context_UBD.clone(), torch.zeros_like(d_context_UBD[0])
            d_weights_BF = torch.zeros_like(bias_BF)
            for step in reversed(range(len(d_context_UBD))):
                d_context_UBD[step] += d_below_BD
                d_weights_BF += torch.bmm(d_context_UBD[step][:, None], h_BFD.transpose(1, 2))[:, 0]
                d_query_BA, d_weights_BF = scorer.backward(step, d_weights_BF, weights_UBF[step + 1], weights_UBF[step])
                d_below_BD = torch.addmm(d_state_UBW[step], d_query_BA, attention.query_AW)
                for cell in reversed(cells):
                    d_below_BD = cell.backward(step, d_below_BD)
            d_h_BFD = torch.bmm(weights_UBF[1:].permute(1, 2, 0), d_context_UBD.transpose(0, 1))
            below = [context_UBD[:-1], *(cell.state_UBW[1:] for cell in cells[:-1])]
            d_layers = [grad for cell, x in zip(cells, below, strict=True) for grad in cell.gradients(x)]
            d_keys_BFA, *d_attention = scorer.gradients()
        return d_h_BFD, d_keys_BFA, None, *d_attention, *d_layers


def _unflatten(weights: Sequence[Any]) -> tuple[AttentionWeights, list[GruLayer]]:
    ends = range(len(fields(AttentionWeights)), len(weights), len(fields(GruLayer)))
    layers = [GruLayer(*weights[end : end + len(fields(GruLayer))]) for end in ends]
    return AttentionWeights(*weights[: ends.start]), layers


class _Location:
    """The convolution over attention weights and its gradients, as products of small matrices.

        features[c, t] = sum over m of where[c, m] padded[t + m]

    The windows of the padded weights are a matrix of shape (2 * kernel + 1, frames) whose rows read the same memory,
    each with an offset of one value. A convolution with one input channel is several times as slow on a CPU.
    """

    def __init__(self, where_CK: Tensor, bias_BF: Tensor) -> None:
        (batch, frames), (channels, width) = bias_BF.shape, where_CK.shape
        self.inside = slice(width // 2, width // 2 + frames)
        self.where_BCK = where_CK.expand(batch, channels, width)
        self.padded_BF = bias_BF.new_zeros(batch, frames + width - 1)
        self.windows_BKF = bias_BF.new_empty(batch, width, frames)

    def features(self, weights_BF: Tensor) -> Tensor:
        """``features_BCF`` of attention weights."""
        self.padded_BF[:, self.inside] = weights_BF
        self.windows_BKF.copy_(self.padded_BF.unfold(1, weights_BF.shape[1], 1))
        return torch.bmm(self.where_BCK, self.windows_BKF)


class _LocationGradient(_Location):
    """`_Location` with gradients, summed over steps in ``d_where_BCK``."""

    def __init__(self, where_CK: Tensor, bias_BF: Tensor) -> None:
        super().__init__(where_CK, bias_BF)
        batch, width, frames = self.windows_BKF.shape
        self.d_where_BCK = torch.zeros_like(self.where_BCK, memory_format=torch.contiguous_format)
        # Row m of the products starts at frame m - kernel. Read with rows one value shorter, all rows start at frame 0.
        row = self.padded_BF.shape[1]
        self.products_BKF = bias_BF.new_zeros(batch, width, row)
        self.shifted_BKF = self.products_BKF.as_strided(
            (batch, width, frames), (width * row, row - 1, 1), storage_offset=width - 1
        )

    def backward(self, d_features_BCF: Tensor) -> Tensor:
        """``d_weights_BF`` of the last call of `features`."""
        self.d_where_BCK.baddbmm_(d_features_BCF, self.windows_BKF.transpose(1, 2))
        torch.bmm(self.where_BCK.transpose(1, 2), d_features_BCF, out=self.products_BKF[:, :, self.inside])
        return self.shifted_BKF.sum(1)


class _Scorer:
    """Energies of one step, in one buffer of shape (batch, frames, attention width) for all steps."""

    def __init__(self, keys_BFA: Tensor, bias_BF: Tensor, weights: AttentionWeights) -> None:
        self.keys_BFA, self.bias_BF, self.weights = keys_BFA, bias_BF, weights
        self.sigmoid_BFA = torch.empty_like(keys_BFA)

    def sigmoids(self, query_BA: Tensor, features_BCF: Tensor) -> Tensor:
        """``sigmoid_BFA``, valid until the next call."""
        torch.add(self.keys_BFA, query_BA[:, None], out=self.sigmoid_BFA)
        rows_NC = features_BCF.transpose(1, 2).flatten(0, 1)
        self.sigmoid_BFA.flatten(0, 1).addmm_(rows_NC, self.weights.location_CA)
        return self.sigmoid_BFA.sigmoid_()

    def energies(self) -> Tensor:
        """``energy_BF`` of the last sigmoids. Padding has minus infinity."""
        rows_NA = self.sigmoid_BFA.flatten(0, 1)
        return torch.addmv(self.bias_BF.flatten(), rows_NA, self.weights.energy_A).view_as(self.bias_BF)


class _ScorerGradient:
    """Gradients of the attention, summed over steps. The factors ``energy_A`` of most sums follow at the end.

    Args:
        scorer: Computes the sigmoids again.
        state_UBW: Queries of the steps.
    """

    def __init__(self, scorer: _Scorer, state_UBW: Tensor) -> None:
        self.scorer, self.weights, self.state_UBW = scorer, scorer.weights, state_UBW
        self.location = _LocationGradient(self.weights.where_CK, scorer.bias_BF)
        self.query_UBA = state_UBW @ self.weights.query_AW.t()
        self.d_query_UBA = torch.empty_like(self.query_UBA)
        self.d_keys_BFA, self.d_hidden_BFA = torch.zeros_like(scorer.keys_BFA), torch.empty_like(scorer.keys_BFA)
        self.location_BCA = (self.weights.location_CA * self.weights.energy_A).expand(state_UBW.shape[1], -1, -1)
        self.d_location_BCA = torch.zeros_like(self.location_BCA, memory_format=torch.contiguous_format)
        self.d_energy_A = torch.zeros_like(self.weights.energy_A)

    def backward(self, step: int, d_weights_BF: Tensor, weights_BF: Tensor, before_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the query and of the attention weights before the step."""
        product_BF = d_weights_BF * weights_BF
        d_energy_BF = product_BF - weights_BF * product_BF.sum(-1, keepdim=True)
        features_BCF = self.location.features(before_BF)
        sigmoid_BFA, d_hidden_BFA = self.scorer.sigmoids(self.query_UBA[step], features_BCF), self.d_hidden_BFA
        self.d_energy_A.addmv_(sigmoid_BFA.flatten(0, 1).t(), d_energy_BF.flatten())
        spread_BFA = d_energy_BF[:, :, None].expand_as(sigmoid_BFA)
        torch.ops.aten.sigmoid_backward.grad_input(spread_BFA, sigmoid_BFA, grad_input=d_hidden_BFA)
        self.d_keys_BFA += d_hidden_BFA
        self.d_location_BCA.baddbmm_(features_BCF, d_hidden_BFA)
        torch.mul(d_hidden_BFA.sum(1), self.weights.energy_A, out=self.d_query_UBA[step])
        d_features_BCF = torch.bmm(self.location_BCA, d_hidden_BFA.transpose(1, 2))
        return self.d_query_UBA[step], self.location.backward(d_features_BCF)

    def gradients(self) -> tuple[Tensor, ...]:
        """Gradients of the keys and of the fields of `AttentionWeights`."""
        energy_A = self.weights.energy_A
        return (
            self.d_keys_BFA.mul_(energy_A),
            self.d_query_UBA.flatten(0, 1).t() @ self.state_UBW.flatten(0, 1),
            self.location.d_where_BCK.sum(0),
            self.d_location_BCA.sum(0) * energy_A,
            self.d_energy_A,
        )


class _Cell:
    """The steps of one GRU layer.

        r, z = sigmoid(base + x inputs + s memory + bias)     n = tanh(base + x inputs + r (s memory + bias))
        s    = n + z (s - n)

    Args:
        layer: The layer.
        state_UBW: States, the one before the first token included. None: the forward pass computes them.
        gates_UBG: For each token r, z, n, and the part of n that r multiplies. None: the forward pass computes them.
    """

    def __init__(self, layer: GruLayer, state_UBW: Tensor | None = None, gates_UBG: Tensor | None = None) -> None:
        (tokens, batch, gates), width = layer.base_UBG.shape, layer.memory_GW.shape[1]
        new = layer.base_UBG.new_empty
        self.layer, self.width = layer, width
        self.state_UBW = new(tokens + 1, batch, width) if state_UBW is None else state_UBW
        self.gates_UBG = new(tokens, batch, gates + width) if gates_UBG is None else gates_UBG
        if state_UBW is None:
            self.state_UBW[0] = 0.0
        else:
            self.d_inputs_UBG, self.d_memory_UBG = (torch.empty_like(layer.base_UBG) for _ in range(2))
            self.d_state_BW = torch.zeros_like(state_UBW[0])

    def forward(self, step: int, x_BD: Tensor) -> Tensor:
        """The next state, from the context or from the state of the layer below."""
        layer, width, state_BW = self.layer, self.width, self.state_UBW[step]
        if layer.dropout_UBD is not None:
            x_BD = x_BD * layer.dropout_UBD[step]
        inputs_BG = torch.addmm(layer.base_UBG[step], x_BD, layer.inputs_GD.t())
        memory_BG = torch.addmm(layer.bias_G, state_BW, layer.memory_GW.t())
        gates_BG = self.gates_UBG[step]
        torch.add(inputs_BG[:, : 2 * width], memory_BG[:, : 2 * width], out=gates_BG[:, : 2 * width]).sigmoid_()
        reset_BW, update_BW, new_BW, part_BW = gates_BG.chunk(4, 1)
        part_BW.copy_(memory_BG[:, 2 * width :])
        torch.addcmul(inputs_BG[:, 2 * width :], reset_BW, part_BW, out=new_BW).tanh_()
        return torch.lerp(new_BW, state_BW, update_BW, out=self.state_UBW[step + 1])

    def backward(self, step: int, d_out_BW: Tensor) -> Tensor:
        """Gradient of the inputs of the step, from that of its state and that of the next step."""
        reset_BW, update_BW, new_BW, part_BW = self.gates_UBG[step].chunk(4, 1)
        d_out_BW = d_out_BW + self.d_state_BW
        d_new_BW = (d_out_BW - d_out_BW * update_BW) * (1 - new_BW * new_BW)
        d_reset_BW = d_new_BW * part_BW * reset_BW * (1 - reset_BW)
        d_update_BW = d_out_BW * (self.state_UBW[step] - new_BW) * update_BW * (1 - update_BW)
        d_inputs_BG, d_memory_BG = self.d_inputs_UBG[step], self.d_memory_UBG[step]
        torch.cat([d_reset_BW, d_update_BW, d_new_BW], 1, out=d_inputs_BG)
        torch.cat([d_reset_BW, d_update_BW, d_new_BW * reset_BW], 1, out=d_memory_BG)
        self.d_state_BW = torch.addmm(d_out_BW * update_BW, d_memory_BG, self.layer.memory_GW)
        d_x_BD = d_inputs_BG @ self.layer.inputs_GD
        return d_x_BD if self.layer.dropout_UBD is None else d_x_BD * self.layer.dropout_UBD[step]

    def gradients(self, x_UBD: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the fields of `GruLayer`, from the inputs of all steps."""
        if self.layer.dropout_UBD is not None:
            x_UBD = x_UBD * self.layer.dropout_UBD
        d_inputs_NG, d_memory_NG = self.d_inputs_UBG.flatten(0, 1), self.d_memory_UBG.flatten(0, 1)
        return (
            self.d_inputs_UBG,
            d_inputs_NG.t() @ x_UBD.flatten(0, 1),
            d_memory_NG.t() @ self.state_UBW[:-1].flatten(0, 1),
            d_memory_NG.sum(0),
            None,
        )
