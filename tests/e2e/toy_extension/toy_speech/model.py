"""A backbone and a head."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ssl_asr.models.encoder import EncoderOutput, LayerGroup, SpeechEncoder
from ssl_asr.models.heads import CtcHead

HOP = 320


class ToyEncoder(SpeechEncoder):
    """One frame for each 320 samples: a linear layer and residual layers on the samples of the frame."""

    def __init__(self, *, dim: int, layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.front = nn.Linear(HOP, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def min_samples(self) -> int:
        return HOP

    def mask_with(self, augment: Any) -> None:
        raise NotImplementedError

    def drop_layers(self, probability: float) -> None:
        raise NotImplementedError

    def cut(self, layers: int) -> None:
        self.cut_to = layers

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        return lengths_B.div(HOP, rounding_mode="floor")

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        frame_lengths_B = self.frame_lengths(lengths_B)
        frames = int(frame_lengths_B.max())
        h_BFD = self.front(waveform_BT[:, : frames * HOP].reshape(len(waveform_BT), frames, HOP))
        seen = [h_BFD]
        for layer in self.layers[: self.top_layer]:
            seen.append(seen[-1] + torch.tanh(layer(seen[-1])))
        return EncoderOutput(seen[-1], frame_lengths_B, frame_lengths_B, tuple(seen) if layers else None)

    def layer_groups(self) -> Sequence[LayerGroup]:
        front = LayerGroup("feature_encoder", (self.front,))
        return [front, *(LayerGroup(f"layers.{i}", (layer,)) for i, layer in enumerate(self.layers))]

    def description(self) -> dict[str, Any]:
        return {"encoder": "toy_speech.model.ToyEncoder", "config": {"dim": self.dim, "layers": self.n_layers}}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(**description["config"])

    def compile_layers(self, backend: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ToyBackbone:
    """A folder with config.json and weights.pt."""

    model_types: ClassVar[tuple[str, ...]] = ("toy_speech",)
    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})

    source: str
    revision: str | None
    recommended_freeze: str
    adapter_language: ClassVar[None] = None

    @classmethod
    def pretrained(cls, source: str, language: str | None) -> Self:
        return cls(source=source, revision=None, recommended_freeze="none")

    def load_encoder(self, folder: Path) -> ToyEncoder:
        config = json.loads((folder / "config.json").read_text())
        encoder = ToyEncoder(dim=config["dim"], layers=config["layers"])
        encoder.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        return encoder


class _Scaled(CtcHead):
    def __init__(self, *, dim: int, vocab_size: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(dim, vocab_size), scale

    def forward(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        return self.linear(h_BFD) * self.scale


@dataclass(frozen=True, kw_only=True)
class ToyHead:
    """A linear layer with a scale."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    copies_checkpoint: ClassVar[bool] = False

    scale: float

    def build(self, *, dim: int, vocab_size: int) -> CtcHead:
        return _Scaled(dim=dim, vocab_size=vocab_size, scale=self.scale)
