"""What turns encoder states into CTC logits."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """Dropout and one linear layer.

    Attributes:
        dropout: probability, before the layer.
    """

    dropout: float

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """A module from ``h_BFD`` to ``logits_BFV``."""
        return nn.Sequential(nn.Dropout(self.dropout), nn.Linear(dim, vocab_size))


class _Block(nn.Module):
    """Linear, norm over features, activation, dropout. A frame never sees another, padding least of all."""

    def __init__(self, *, dim: int, width: int, activation: nn.Module, dropout: float) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(dim, width), nn.LayerNorm(width)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, h_BFD: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.activation(self.norm(self.linear(h_BFD))))
        return out


@dataclass(frozen=True, kw_only=True)
class DnnHead:
    """Blocks of linear layer, layer norm, activation and dropout, then a linear layer.

    Attributes:
        blocks: how many.
        width: features of each.
        activation: leaky_relu, relu or gelu.
        dropout: probability, after each block.
    """

    blocks: int
    width: int
    activation: Literal["leaky_relu", "relu", "gelu"]
    dropout: float

    def build(self, *, dim: int, vocab_size: int) -> nn.Module:
        """A module from ``h_BFD`` to ``logits_BFV``."""
        makers = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "gelu": nn.GELU}
        blocks = [
            _Block(
                dim=dim if i == 0 else self.width,
                width=self.width,
                activation=makers[self.activation](),
                dropout=self.dropout,
            )
            for i in range(self.blocks)
        ]
        return nn.Sequential(*blocks, nn.Linear(self.width if blocks else dim, vocab_size))


@dataclass(frozen=True, kw_only=True)
class NoHead:
    """No head: Whisper's decoder ends in its own."""
