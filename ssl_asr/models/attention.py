"""Heads for joint CTC-attention: a shared trunk, a CTC layer on it, and a decoder that attends to it.

The two halves share one vocabulary. Its id 0, which no text contains, is CTC's blank in one half and both the
start and the end of a sentence in the other (SpeechBrain's arrangement).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.models.encoder import padding_mask
from ssl_asr.models.heads import DnnHead, FrameWise
from ssl_asr.models.transformer import TransformerDecoder, beam_rows


class LocationAttention(nn.Module):
    """Additive attention that knows where it looked last (Chorowski et al., 2015, "Attention-based models").

    Args:
        dim: features of what is attended to.
        query_dim: features of the query.
        width: of the space in which the two are compared.
        channels, kernel: of the convolution over the last weights.
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
        """What is seen, ``context_BD``, and where, ``weights_BF``; frames outside the mask have none."""
        location_BFD = self.location(self.where(weights_BF[:, None]).transpose(1, 2))
        compared_BFD = torch.tanh(keys_BFD + self.query(query_BD)[:, None] + location_BFD)
        energy_BF = self.energy(compared_BFD)[..., 0].float()
        if mask_BF is not None:
            energy_BF = energy_BF.masked_fill(~mask_BF, -torch.inf)
        weights_BF = energy_BF.softmax(-1).to(h_BFD.dtype)
        return torch.einsum("bf,bfd->bd", weights_BF, h_BFD), weights_BF


@dataclass(slots=True)
class GruState:
    """Where a recurrent decoder stands: its memory, what it saw last and where."""

    keys_BFD: Tensor
    h_BFD: Tensor
    mask_BF: Tensor | None
    memory_LBD: Tensor
    context_BD: Tensor
    weights_BF: Tensor

    beams: int = 1
    # It always knows where it looked.
    watch: bool = True

    @property
    def weights_NF(self) -> Tensor:
        """Where it looked last, a row for each beam."""
        return self.weights_BF

    def keep(self, rows: Tensor) -> None:
        """Keep only these utterances of the batch (int64 on the device), with all their beams."""
        self._take(beam_rows(rows, self.beams), whole=True)

    def spread(self, beams: int) -> None:
        """Make so many beams of each utterance, all alike."""
        assert self.beams == 1
        self.keep(torch.arange(len(self.h_BFD), device=self.h_BFD.device).repeat_interleave(beams))
        self.beams = beams

    def select(self, rows: Tensor) -> None:
        """Put each beam in the place of another of its utterance: ``rows`` of the whole batch (int64)."""
        self._take(rows, whole=False)

    def _take(self, rows: Tensor, *, whole: bool) -> None:
        """These rows of what has been said; with ``whole``, also of what is listened to."""
        self.memory_LBD = self.memory_LBD[:, rows]
        self.context_BD, self.weights_BF = self.context_BD[rows], self.weights_BF[rows]
        if whole:
            self.keys_BFD, self.h_BFD = self.keys_BFD[rows], self.h_BFD[rows]
            self.mask_BF = None if self.mask_BF is None else self.mask_BF[rows]


class GruDecoder(nn.Module):
    """A GRU over embedded tokens and what it attends to, with location-aware attention.

    Args:
        dim: features of the encoder states.
        vocab_size: entries, 0 being start and end.
        embedding: features of a token.
        width, layers, dropout: of the GRU.
        attention_width, channels, kernel: see `LocationAttention`.
    """

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
        """States after each token, teacher-forced: ``states_BUD``; `logits` turns rows of them into logits."""
        state = self.begin(h_BFD, context_lengths_B, tokens_BU.shape[1])
        embedded_BUD = self.dropout(self.embed(tokens_BU))
        return torch.stack([self._next(x_BD, state) for x_BD in embedded_BUD.unbind(1)], dim=1)

    def logits(self, states: Tensor) -> Tensor:
        """Logits of any selection of states, shape (…, V)."""
        logits: Tensor = self.out(self.dropout(states))
        return logits

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> GruState:
        """The state before the first token: no memory, and a look that is spread evenly."""
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
        """Feed the next token and return the logits after it, ``logits_BV``."""
        assert tokens_BU.shape[1] == 1
        return self.logits(self._next(self.embed(tokens_BU[:, 0]), state))

    def _next(self, embedded_BD: Tensor, state: GruState) -> Tensor:
        inputs_BD = torch.cat([embedded_BD, state.context_BD.to(embedded_BD.dtype)], dim=-1)
        read_BUD, state.memory_LBD = self.gru(inputs_BD[:, None], state.memory_LBD.to(inputs_BD.dtype))
        state.context_BD, state.weights_BF = self.attention(
            state.keys_BFD, state.h_BFD, state.mask_BF, read_BUD[:, 0], state.weights_BF
        )
        joined_BD: Tensor = self.join(torch.cat([state.context_BD, read_BUD[:, 0]], dim=-1))
        return joined_BD


class JointHead(nn.Module):
    """A trunk of dense blocks, CTC's layer and an attention decoder on it.

    Args:
        trunk: from ``h_BFD, frame_lengths_B`` to what both halves read.
        ctc: from the trunk to ``logits_BFV``.
        decoder: attends to the trunk.
    """

    def __init__(self, *, trunk: FrameWise, ctc: nn.Linear, decoder: GruDecoder | TransformerDecoder) -> None:
        super().__init__()
        self.trunk, self.ctc, self.decoder = trunk, ctc, decoder

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """CTC's ``logits_BFV``, for those who want no other half."""
        logits_BFV: Tensor = self.ctc(self.trunk(h_BFD, frame_lengths_B))
        return logits_BFV


@dataclass(frozen=True, kw_only=True)
class GruAttentionHead:
    """The tutorial's head: dense blocks, a CTC layer, and a GRU decoder with location-aware attention.

    Attributes:
        blocks, width, norm, activation, dropout: of the dense blocks (see `DnnHead`).
        embedding: features of a token.
        decoder_width, decoder_layers, decoder_dropout: of the GRU.
        attention_width: of the space in which memory and frames are compared.
        channels, kernel: of the convolution over where it looked last; ``kernel`` frames on either side.
    """

    blocks: int
    width: int
    norm: Literal["layer", "batch"]
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: float
    embedding: int
    decoder_width: int
    decoder_layers: int
    decoder_dropout: float
    attention_width: int
    channels: int
    kernel: int

    def build(self, *, dim: int, vocab_size: int) -> JointHead:
        """The module for states of so many features."""
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
    """Dense blocks, a CTC layer, and a transformer decoder of their width (norm first, learnt positions).

    Attributes:
        blocks, width, norm, activation, dropout: of the dense blocks (see `DnnHead`).
        decoder_layers, heads, feed_forward, decoder_dropout: of the decoder.
        max_tokens: the longest text it has positions for, start included.
    """

    blocks: int
    width: int
    norm: Literal["layer", "batch"]
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: float
    decoder_layers: int
    heads: int
    feed_forward: int
    decoder_dropout: float
    max_tokens: int

    def build(self, *, dim: int, vocab_size: int) -> JointHead:
        """The module for states of so many features."""
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
    """Mean cross-entropy a token of each utterance, ``loss_B``; places beyond its length count for nothing.

    Args:
        logits_BUV: of every place.
        targets_BU: what is to come at each place, the end included.
        token_lengths_B: places that count, int64 on the CPU.
        label_smoothing: share of the target's mass spread over the vocabulary.
    """
    loss_BU = functional.cross_entropy(
        logits_BUV.float().transpose(1, 2), targets_BU, reduction="none", label_smoothing=label_smoothing
    )
    mask_BU = padding_mask(token_lengths_B, loss_BU.shape[1], loss_BU.device)
    loss_BU = loss_BU if mask_BU is None else loss_BU * mask_BU
    return loss_BU.sum(1) / token_lengths_B.to(loss_BU.device, non_blocking=True)
