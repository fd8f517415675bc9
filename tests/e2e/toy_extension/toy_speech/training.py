"""A freeze policy, an optimizer, a schedule, a callback and a corpus."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lightning import Callback

from ssl_asr.data.options import DataConfig
from ssl_asr.models.freezing import ConstantPolicy
from ssl_asr.training.optimizers import parameter_groups
from ssl_asr.training.schedulers import ByUpdate


@dataclass(frozen=True, kw_only=True)
class FreezeFront(ConstantPolicy):
    """All but the lowest layer group trains."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        return frozenset([*encoder[1:], *rest])


@dataclass(frozen=True, kw_only=True)
class RAdam:
    """torch's RAdam."""

    lr: float
    weight_decay: float
    layer_decay: float

    def build(self, groups: Any) -> torch.optim.Optimizer:
        params = parameter_groups(groups, lr=self.lr, weight_decay=self.weight_decay, layer_decay=self.layer_decay)
        return torch.optim.RAdam(params, lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class Halving(ByUpdate):
    """Half the rate every so many updates."""

    every: int

    def factor(self, update: int, total: int) -> float:
        return 0.5 ** (update // self.every)


class CountBatches(Callback):
    """Writes the number of training batches to a file."""

    def __init__(self, path: str, start: int = 0) -> None:
        self.path, self.count = Path(path), start

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1
        self.path.write_text(str(self.count))


@dataclass(frozen=True, kw_only=True)
class ToneCorpus(DataConfig):
    """Tones that say which of two words they are; written when they are first needed."""

    folder: str

    def prepare(self) -> None:
        rng = np.random.default_rng(0)
        for split, path in {**self.train, "dev": self.dev, **self.test}.items():
            rows = []
            for number in range(8):
                word = ("low", "high")[number % 2]
                tone = np.sin(np.arange(8000) * (0.05, 0.5)[number % 2]) + 0.01 * rng.standard_normal(8000)
                audio = Path(self.folder).resolve() / f"{split}{number}.wav"
                audio.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(audio, 0.5 * tone.astype(np.float32), 16000)
                rows.append({"id": f"{split}{number}", "audio_filepath": str(audio), "duration": 0.5, "text": word})
            Path(str(path)).write_text("".join(json.dumps(row) + "\n" for row in rows))
