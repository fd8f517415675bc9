"""A frozen encoder's states, made once and read in every later epoch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_asr.data.state_store import StateStore, state_digest
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.types import Batch, Skip

StateDtype = Literal["float32", "float16"]
_DTYPES: dict[StateDtype, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class NoStateCache:
    """Every epoch encodes anew."""


@dataclass(frozen=True, kw_only=True)
class DiskStateCache:
    """The ``features`` option of a frozen encoder: the first epoch encodes, later ones read.

    Attributes:
        folder: where the states are kept; another run of the same encoder on the same audio reads them too, and
            so it may be one that ``extract`` wrote.
        dtype: float32 trains as without; float16 takes half the room.
    """

    folder: str
    dtype: StateDtype


def states_origin(
    encoder: Any, *, layers: Sequence[int], dtype: StateDtype, silence: bool, downmix: str
) -> dict[str, Any]:
    """What states depend on besides the audio, as plain data for `StateStore`."""
    description = encoder.description() | {"train_tail_s": None}
    # Where the weights came from and who wrote the config says nothing about the states.
    aside = ("transformers_version", "dtype", "torch_dtype")
    settings = {k: v for k, v in description["config"].items() if not k.startswith("_") and k not in aside}
    described = json.dumps(description | {"config": settings}, sort_keys=True, default=str)
    return {
        "weights": state_digest(encoder.state_dict().items()),
        "encoder": hashlib.sha256(described.encode()).hexdigest(),
        "layers": list(layers),
        "dtype": dtype,
        "silence": silence,
        "downmix": downmix,
    }


def top_layer(encoder: Any) -> int:
    """The number of the encoder's last layer; 0 is what the first one reads."""
    cut_to: int | None = encoder.cut_to
    return encoder.n_layers if cut_to is None else cut_to


class StateCache:
    """Between a frozen encoder and what reads its states.

    Args:
        encoder: frozen whole, so that its states depend on the audio alone.
        folder: of the store.
        layers: which states are kept: 0 is the input of the first transformer layer, ``n`` the output of the
            ``n``-th.
        dtype: of the store.
        silence: whether to keep the frames after the speech that Whisper's encoder sees, as its decoder needs.
        downmix: what became of several channels.
        rank: of this process.

    Raises:
        CheckpointError: the folder holds states of something else.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        *,
        folder: Path,
        layers: Sequence[int],
        dtype: StateDtype,
        silence: bool,
        downmix: str,
        rank: int = 0,
    ) -> None:
        self.encoder, self.layers, self.silence = encoder, list(layers), silence
        self._dtype = _DTYPES[dtype]
        self._reads_all = self.layers != [top_layer(encoder)]
        origin = states_origin(encoder, layers=layers, dtype=dtype, silence=silence, downmix=downmix)
        self.store = StateStore(folder, origin=origin, rank=rank)

    def encode(self, batch: Batch) -> EncoderOutput:
        """States of a batch: those that are there are read, the others made and kept.

        Also what was just made is read, so that the first epoch sees what the later ones see.
        """
        self.make(batch)
        rows = [self.store[utterance_id] for utterance_id in batch.ids]
        device = batch.waveform_BT.device
        states = [states_LFD.transpose(0, 1) for states_LFD, _ in rows]
        padded_BFLD = pad_sequence(states, batch_first=True).to(device, non_blocking=True).float()
        kept = padded_BFLD.unbind(2)
        return EncoderOutput(
            h_BFD=kept[-1],
            frame_lengths_B=torch.tensor([frames for _, frames in rows]),
            context_lengths_B=torch.tensor([len(row) for row in states]),
            layers=kept if self._reads_all else None,
        )

    def make(self, batch: Batch) -> None:
        """Encode and keep those of a batch that are not there."""
        new = [row for row, utterance_id in enumerate(batch.ids) if utterance_id not in self.store]
        if not new:
            return
        lengths_B = batch.lengths_B[new]
        waveform_BT = batch.waveform_BT[new, : int(lengths_B.max())]
        with torch.no_grad():
            out = self.encoder(waveform_BT, lengths_B, layers=self._reads_all)
        if self._reads_all:
            assert out.layers is not None
            kept: tuple[Tensor, ...] = tuple(out.layers[layer] for layer in self.layers)
        else:
            kept = (out.h_BFD,)
        states_BLFD = torch.stack(kept, dim=1).to(self._dtype)
        kept_lengths_B = out.context_lengths_B if self.silence else out.frame_lengths_B
        for place, row in enumerate(new):
            states_LFD = states_BLFD[place, :, : int(kept_lengths_B[place])]
            self.store.put(batch.utterances[row], states_LFD, int(out.frame_lengths_B[place]))


class Extraction(L.LightningModule):
    """Puts the states of every batch into a cache's store.

    Args:
        cache: with an encoder in eval mode.
    """

    def __init__(self, cache: StateCache) -> None:
        super().__init__()
        self.cache = cache
        # Known to Lightning, which moves it to the device.
        self.encoder: Any = cache.encoder
        self.skipped: list[Skip] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Encode and keep."""
        self.skipped += batch.skipped
        if len(batch):
            self.cache.make(batch)

    def on_test_end(self) -> None:
        """Write what still waits."""
        self.cache.store.flush()
