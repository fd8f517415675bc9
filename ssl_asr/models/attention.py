"""Heads for joint CTC-attention: a shared trunk with a CTC layer and an attention decoder.

    encoder states -> trunk -+-> CTC layer          -> logits_BFV
                             +-> attention decoder  -> logits_BUV

CTC layer and decoder share one vocabulary. Id 0 is the blank of CTC, and both start and end of sentence of the decoder,
as in SpeechBrain.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.models.decoding_state import beam_rows
from ssl_asr.models.encoder import padding_mask
from ssl_asr.models.gru_recurrence import AttentionWeights, GruLayer, gru_with_attention
from ssl_asr.models.heads import CtcHead, DnnHead, FrameWise
from ssl_asr.models.transformer import TransformerDecoder
from ssl_asr.types import Dropout, NonNegativeInt, PositiveInt, on_device


class LocationAttention(nn.Module):
    """Location-aware additive attention (Chorowski et al., 2015, arXiv:1506.07503).

    With encoder states ``h``, query ``q`` and the weights ``a'`` of the previous step:

        f     = conv(a')                                       location features of frame j: f_j
        e_j   = w^T tanh(V h_j + b + W q + U f_j)              energies
        a     = softmax(e)                                     over the valid frames
        c     = sum over j of a_j h_j                          context

    Args:
        dim: int, features of the encoder states.
        query_dim: int, features of the query.
        width: int, features of the space in which energies are computed.
        channels: int, output channels of the convolution over the previous weights.
        kernel: int, frames of context of the convolution on either side.
    """

    def __init__(self, *, dim: int, query_dim: int, width: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.keys = nn.Linear(dim, width)
        self.query = nn.Linear(query_dim, width, bias=False)
        self.where = nn.Conv1d(1, channels, 2 * kernel + 1, padding=kernel, bias=False)
        self.location = nn.Linear(channels, width, bias=False)
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(
        self, keys_BFD: Tensor, h_BFD: Tensor, mask_BF: Tensor | None, query_BD: Tensor, weights_BF: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes the context and the attention weights of one step.

        Args:
            keys_BFD: Tensor of shape (batch, frames, width), ``self.keys(h_BFD)``.
            h_BFD: Tensor of shape (batch, frames, dim), encoder states.
            mask_BF: Bool tensor, False at padding; None without padding.
            query_BD: Tensor of shape (batch, query_dim).
            weights_BF: Tensor of shape (batch, frames), weights of the previous step.

        Returns:
            ``context_BD``, shape (batch, dim), and ``weights_BF``. Padding has weight zero.
        """
        location_BFD = self.location(self.where(weights_BF[:, None]).transpose(1, 2))
        hidden_BFD = torch.tanh(keys_BFD + self.query(query_BD)[:, None] + location_BFD)
        energy_BF = self.energy(hidden_BFD)[..., 0]
        energy_BF = energy_BF.to(torch.promote_types(energy_BF.dtype, torch.float32))
        if mask_BF is not None:
            energy_BF = energy_BF.masked_fill(~mask_BF, -torch.inf)
        weights_BF = energy_BF.softmax(-1).to(h_BFD.dtype)
        return torch.einsum("bf,bfd->bd", weights_BF, h_BFD), weights_BF

    def doubled(self, dtype: torch.dtype) -> AttentionWeights:
        """The weights for `gru_with_attention`, which has sigmoids in place of tanh."""
        where_CK, energy_A = self.where.weight[:, 0].to(dtype), 2 * self.energy.weight[0].to(dtype)
        return AttentionWeights(
            2 * self.query.weight.to(dtype), where_CK, 2 * self.location.weight.t().to(dtype), energy_A
        )


@dataclass(slots=True)
class GruState:
    """State of a `GruDecoder` between two tokens. Each beam is a row of every tensor.

    Attributes:
        keys_BFD: Tensor of shape (batch * beams, frames, width), keys of the attention.
        h_BFD: Tensor of shape (batch * beams, frames, features), encoder states.
        mask_BF: Bool tensor, False at padding; None without padding.
        memory_LBD: Tensor of shape (layers, batch * beams, width), state of the GRU.
        context_BD: Tensor of shape (batch * beams, features), context of the last step.
        weights_BF: Tensor of shape (batch * beams, frames), attention weights of the last step.
        beams: int, number of beams per utterance.
        watch: bool, whether ``weights_NF`` is stored. Always True, because the attention uses the weights itself.
    """

    keys_BFD: Tensor
    h_BFD: Tensor
    mask_BF: Tensor | None
    memory_LBD: Tensor
    context_BD: Tensor
    weights_BF: Tensor

    beams: int = 1
    watch: bool = True

    @property
    def weights_NF(self) -> Tensor:
        """Attention weights of the last step, shape (batch * beams, frames)."""
        return self.weights_BF

    def keep(self, rows: Tensor) -> None:
        """Keeps these utterances with all their beams and removes the others.

        Args:
            rows: int64 tensor on the device, indices of utterances.
        """
        self._take(beam_rows(rows, self.beams), with_encoder=True)

    def spread(self, beams: int) -> None:
        """Repeats the single beam of each utterance ``beams`` times."""
        assert self.beams == 1
        self.keep(torch.arange(len(self.h_BFD), device=self.h_BFD.device).repeat_interleave(beams))
        self.beams = beams

    def select(self, rows: Tensor) -> None:
        """Replaces each beam by another beam of the same utterance.

        Args:
            rows: int64 tensor of shape (batch * beams,), the row that each beam continues.
        """
        self._take(rows, with_encoder=False)

    def _take(self, rows: Tensor, *, with_encoder: bool) -> None:
        """Selects rows of the decoder's tensors. With ``with_encoder``, also rows of the encoder's states."""
        self.memory_LBD = self.memory_LBD[:, rows]
        self.context_BD, self.weights_BF = self.context_BD[rows], self.weights_BF[rows]
        if with_encoder:
            self.keys_BFD, self.h_BFD = self.keys_BFD[rows], self.h_BFD[rows]
            self.mask_BF = None if self.mask_BF is None else self.mask_BF[rows]


class GruDecoder(nn.Module):
    """A GRU decoder with location-aware attention (SpeechBrain's ``AttentionalRNNDecoder``).

    For each token ``y_i``, with the GRU state ``s_i`` and the context ``c_i`` of `LocationAttention`:

        s_i      = GRU([embed(y_i), c_{i-1}], s_{i-1})
        c_i      = attention(query s_i)
        state    = W [c_i, s_i]

    Args:
        dim: int, features of the encoder states.
        vocab_size: int, number of tokens. Id 0 is start and end of sentence.
        embedding: int, features of a token embedding.
        width: int, features of the GRU.
        layers: int, number of GRU layers.
        dropout: float in [0, 1), dropout probability of embeddings, GRU layers and output states.
        attention_width, channels, kernel: See `LocationAttention`.
    """

    # A GRU has no positions, so nothing limits the length of a text.
    max_tokens = 1_000_000

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int,
        embedding: int,
        width: int,
        layers: int,
        dropout: float,
        attention_width: int,
        channels: int,
        kernel: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, embedding)
        between = dropout if layers > 1 else 0.0
        self.gru = nn.GRU(embedding + dim, width, layers, batch_first=True, dropout=between)
        self.attention = LocationAttention(
            dim=dim, query_dim=width, width=attention_width, channels=channels, kernel=kernel
        )
        self.join = nn.Linear(dim + width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, vocab_size)

    def forward(self, tokens_BU: Tensor, h_BFD: Tensor, context_lengths_B: Tensor) -> Tensor:
        """Runs the decoder with teacher forcing; see `TransformerDecoder.forward`."""
        # The loop sums many small terms, so it runs in float32 even if the weights or autocast are bfloat16.
        dtype = torch.promote_types(self.out.weight.dtype, torch.float32)
        context_UBD, state_UBD = gru_with_attention(
            h_BFD.to(dtype),
            (2 * self.attention.keys(h_BFD)).to(dtype),
            padding_mask(context_lengths_B, h_BFD.shape[1], h_BFD.device),
            self.attention.doubled(dtype),
            self._layers(self.dropout(self.embed(tokens_BU.t())), dtype),
        )
        joined_UBD: Tensor = self.join(torch.cat([context_UBD, state_UBD], dim=-1).to(self.join.weight.dtype))
        return joined_UBD.transpose(0, 1)

    def _layers(self, embedded_UBD: Tensor, dtype: torch.dtype) -> list[GruLayer]:
        """The GRU's layers, with the part of the gates that depends on the embeddings alone."""
        tokens, batch, embedding = embedded_UBD.shape
        layers = []
        for at, weights in enumerate(self.gru.all_weights):
            inputs_GD, memory_GW, inputs_G, memory_G = (weight.to(dtype) for weight in weights)
            if at == 0:
                base_UBG = functional.linear(embedded_UBD.to(dtype), inputs_GD[:, :embedding], inputs_G).to(dtype)
                layers.append(GruLayer(base_UBG, inputs_GD[:, embedding:], memory_GW, memory_G, None))
                continue
            ones_UBW = inputs_GD.new_ones(tokens, batch, self.gru.hidden_size)
            dropout_UBW = functional.dropout(ones_UBW, self.gru.dropout) if self.training else None
            layers.append(GruLayer(inputs_G.expand(tokens, batch, -1), inputs_GD, memory_GW, memory_G, dropout_UBW))
        return layers

    def logits(self, states: Tensor) -> Tensor:
        """Computes logits from states of shape (…, width)."""
        logits: Tensor = self.out(self.dropout(states))
        return logits

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> GruState:
        """Returns the state before the first token: zero GRU state, and equal attention weights on all valid frames."""
        batch, frames, _ = h_BFD.shape
        mask_BF = padding_mask(context_lengths_B, frames, h_BFD.device)
        ones_BF = h_BFD.new_ones(batch, frames) if mask_BF is None else mask_BF.to(h_BFD.dtype)
        return GruState(
            keys_BFD=self.attention.keys(h_BFD),
            h_BFD=h_BFD,
            mask_BF=mask_BF,
            memory_LBD=h_BFD.new_zeros(self.gru.num_layers, batch, self.gru.hidden_size),
            context_BD=torch.zeros_like(h_BFD[:, 0]),
            weights_BF=ones_BF / ones_BF.sum(1, keepdim=True),
        )

    def step(self, tokens_BU: Tensor, state: GruState) -> Tensor:
        """Updates the state with one token per row, and computes the logits of the next token, ``logits_BV``."""
        assert tokens_BU.shape[1] == 1
        return self.logits(self._next(self.embed(tokens_BU[:, 0]), state))

    def _next(self, embedded_BD: Tensor, state: GruState) -> Tensor:
        inputs_BD = torch.cat([embedded_BD, state.context_BD.to(embedded_BD.dtype)], dim=-1)
        out_BUD, state.memory_LBD = self.gru(inputs_BD[:, None], state.memory_LBD.to(inputs_BD.dtype))
        state.context_BD, state.weights_BF = self.attention(
            state.keys_BFD, state.h_BFD, state.mask_BF, out_BUD[:, 0], state.weights_BF
        )
        joined_BD: Tensor = self.join(torch.cat([state.context_BD, out_BUD[:, 0]], dim=-1))
        return joined_BD


class JointHead(CtcHead):
    """A trunk of dense blocks with a CTC layer and an attention decoder.

    Args:
        trunk: FrameWise, computes the states that CTC layer and decoder share.
        ctc: nn.Linear, computes ``logits_BFV`` from the trunk's states.
        decoder: Attention decoder over the trunk's states.
    """

    def __init__(self, *, trunk: FrameWise, ctc: nn.Linear, decoder: GruDecoder | TransformerDecoder) -> None:
        super().__init__()
        self.trunk, self.ctc, self.decoder = trunk, ctc, decoder

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """Computes the CTC logits, ``logits_BFV``."""
        logits_BFV: Tensor = self.ctc(self.trunk(h_BFD, frame_lengths_B))
        return logits_BFV


@dataclass(frozen=True, kw_only=True)
class GruAttentionHead:
    """Dense blocks, a CTC layer, and a GRU decoder with location-aware attention, as in SpeechBrain's recipes.

    Attributes:
        blocks, width, norm, activation, dropout: Dense blocks, see `DnnHead`.
        embedding: int, features of a token embedding.
        decoder_width: int, features of the GRU.
        decoder_layers: int, number of GRU layers.
        decoder_dropout: float in [0, 1), dropout probability of the decoder.
        attention_width: int, features of the space in which attention energies are computed.
        channels: int, output channels of the convolution over the previous attention weights.
        kernel: int, frames of context of the convolution on either side.
    """

    blocks: NonNegativeInt
    width: PositiveInt
    norm: Literal["layer", "batch", "none"]
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: Dropout
    embedding: PositiveInt
    decoder_width: PositiveInt
    decoder_layers: PositiveInt
    decoder_dropout: Dropout
    attention_width: PositiveInt
    channels: PositiveInt
    kernel: PositiveInt

    tasks: ClassVar[frozenset[str]] = frozenset({"joint"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim: int, vocab_size: int) -> JointHead:
        """Builds the module; see `Head.build`."""
        trunk, width = _dense(self).trunk(dim=dim)
        decoder = GruDecoder(
            dim=width,
            vocab_size=vocab_size,
            embedding=self.embedding,
            width=self.decoder_width,
            layers=self.decoder_layers,
            dropout=self.decoder_dropout,
            attention_width=self.attention_width,
            channels=self.channels,
            kernel=self.kernel,
        )
        return JointHead(trunk=trunk, ctc=nn.Linear(width, vocab_size), decoder=decoder)


@dataclass(frozen=True, kw_only=True)
class TransformerAttentionHead:
    """Dense blocks, a CTC layer, and a transformer decoder of the same width (normalization first, learned positions).

    Attributes:
        blocks, width, norm, activation, dropout: Dense blocks, see `DnnHead`.
        decoder_layers: int, number of decoder layers.
        heads: int, number of attention heads, a divisor of ``width``.
        feed_forward: int, features of the feed-forward layers.
        decoder_dropout: float in [0, 1), dropout probability of the decoder.
        max_tokens: int, number of positions, the start token included.
    """

    blocks: NonNegativeInt
    width: PositiveInt
    norm: Literal["layer", "batch", "none"]
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: Dropout
    decoder_layers: PositiveInt
    heads: PositiveInt
    feed_forward: PositiveInt
    decoder_dropout: Dropout
    max_tokens: PositiveInt

    tasks: ClassVar[frozenset[str]] = frozenset({"joint"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim: int, vocab_size: int) -> JointHead:
        """Builds the module; see `Head.build`."""
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperDecoder

        trunk, width = _dense(self).trunk(dim=dim)
        config = WhisperConfig(
            vocab_size=vocab_size,
            d_model=width,
            decoder_layers=self.decoder_layers,
            decoder_attention_heads=self.heads,
            decoder_ffn_dim=self.feed_forward,
            dropout=self.decoder_dropout,
            max_target_positions=self.max_tokens,
            pad_token_id=None,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
        )
        decoder = TransformerDecoder(net=WhisperDecoder(config).to(torch.float32))
        return JointHead(trunk=trunk, ctc=nn.Linear(width, vocab_size), decoder=decoder)


def _dense(options: GruAttentionHead | TransformerAttentionHead) -> DnnHead:
    return DnnHead(
        blocks=options.blocks,
        width=options.width,
        norm=options.norm,
        activation=options.activation,
        dropout=options.dropout,
    )


def attention_loss(
    logits_BUV: Tensor, targets_BU: Tensor, token_lengths_B: Tensor, *, label_smoothing: float
) -> Tensor:
    """Computes the mean cross-entropy per token of each utterance. Padding is masked.

    Args:
        logits_BUV: Tensor of shape (batch, tokens, vocabulary).
        targets_BU: int64 tensor of shape (batch, tokens), next token at each position, the end token included.
        token_lengths_B: int64 tensor on the CPU, number of valid positions.
        label_smoothing: float in [0, 1), probability mass of the target that is spread over the vocabulary.

    Returns:
        ``loss_B``, shape (batch,), float32.
    """
    loss_BU = functional.cross_entropy(
        logits_BUV.float().transpose(1, 2), targets_BU, reduction="none", label_smoothing=label_smoothing
    )
    mask_BU = padding_mask(token_lengths_B, loss_BU.shape[1], loss_BU.device)
    loss_BU = loss_BU if mask_BU is None else loss_BU * mask_BU
    return loss_BU.sum(1) / on_device(token_lengths_B, loss_BU.device)
