"""A frozen encoder's states, computed once and read from disk in later epochs and runs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_asr.data.state_store import StateStore, state_digest
from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.trainer import BF16_WEIGHTS, FSDP2
from ssl_asr.types import Batch, OutputPath, on_device

if TYPE_CHECKING:
    from ssl_asr.config.schemas import TrainConfig

StateDtype = Literal["float32", "float16"]
_DTYPES: dict[StateDtype, torch.dtype] = {"float32": torch.float32, "float16": torch.float16}
# Settings of transformers' configs that do not change states.
_NOT_IN_STATES = ("transformers_version", "dtype", "torch_dtype")


class StateCacheOption(Protocol):
    """A ``state_cache`` option: where the states of a frozen encoder are kept."""

    def build(self, encoder: SpeechEncoder, *, reads_layers: bool, silence: bool, downmix: str) -> "StateCache | None":
        """The cache for an encoder, or None to encode in every epoch."""


@dataclass(frozen=True, kw_only=True)
class NoStateCache:
    """Every epoch encodes again."""

    def build(self, encoder: SpeechEncoder, *, reads_layers: bool, silence: bool, downmix: str) -> None:
        """No cache."""


@dataclass(frozen=True, kw_only=True)
class DiskStateCache:
    """The first epoch encodes and writes to disk; later epochs read. For frozen encoders.

    Attributes:
        folder: Where the states are kept. Another run of the same encoder on the same audio reads them too, and
            ``extract`` can write them beforehand.
        dtype: float32 trains as without a cache; float16 takes half the space.
    """

    folder: OutputPath
    dtype: StateDtype

    def build(self, encoder: SpeechEncoder, *, reads_layers: bool, silence: bool, downmix: str) -> "StateCache":
        """The cache for an encoder.

        Args:
            encoder: The frozen encoder.
            reads_layers: Keep the states of every layer, not only of the last one.
            silence: Keep the frames after the speech that Whisper's encoder computes, which its decoder reads.
            downmix: How several channels were mixed.

        Raises:
            CheckpointError: The folder holds states of another encoder or of other audio.
        """
        top = encoder.top_layer
        return StateCache(
            encoder,
            folder=Path(self.folder),
            layers=list(range(top + 1)) if reads_layers else [top],
            dtype=self.dtype,
            silence=silence,
            downmix=downmix,
        )

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """An encoder or audio that changes during the run."""
        if not run.freeze_policy.freezes_encoder:
            what = "keeps the states of a frozen encoder, and this encoder trains"
            yield ConfigError("state_cache", what, "use freeze=true, or state_cache=none")
        for key, factors in (("speed_factors", run.data.speed_factors), ("tempo_factors", run.data.tempo_factors)):
            if factors:
                what = f"is {factors}, and state_cache needs the same audio in every epoch"
                yield ConfigError(f"data.{key}", what, f"use data.{key}=[], or state_cache=none")
        if run.data.concatenate_s is not None:
            what = f"is {run.data.concatenate_s:g}, and state_cache needs the same audio in every epoch"
            yield ConfigError("data.concatenate_s", what, "use data.concatenate_s=null, or state_cache=none")
        if run.audio_augment:
            what = f"has {', '.join(run.audio_augment)}, and state_cache needs the same audio in every epoch"
            yield ConfigError("audio_augment", what, "use audio_augment=none, or state_cache=none")
        if run.trainer.precision == BF16_WEIGHTS:
            what = "keeps states of an encoder in float32, and trainer.precision=bf16-true computes it in bfloat16"
            yield ConfigError("state_cache", what, "use trainer.precision=bf16-mixed, or state_cache=none")
        if run.trainer.strategy == FSDP2:
            what = "runs the encoder on some ranks only, and trainer.strategy=fsdp2 needs all ranks to run it"
            yield ConfigError("state_cache", what, "use trainer.strategy=ddp, or state_cache=none")


def states_origin(
    encoder: SpeechEncoder, *, layers: Sequence[int], dtype: StateDtype, silence: bool, downmix: str
) -> dict[str, Any]:
    """Everything that states depend on besides the audio, as plain data for `StateStore`."""
    description = encoder.description() | {"train_tail_s": None}
    config = {k: v for k, v in description["config"].items() if not k.startswith("_") and k not in _NOT_IN_STATES}
    described = json.dumps(description | {"config": config}, sort_keys=True, default=str)
    return {
        "weights": state_digest(encoder.state_dict().items()),
        "encoder": hashlib.sha256(described.encode()).hexdigest(),
        "layers": list(layers),
        "dtype": dtype,
        "silence": silence,
        "downmix": downmix,
    }


class StateCache:
    """Returns an encoder's output for a batch, computing only the states that the store does not have.

    Args:
        encoder: A frozen encoder, so that its states depend on the audio alone.
        folder: Folder of the store.
        layers: Which states are kept: 0 is the input of the first transformer layer, ``n`` the output of layer ``n``.
        dtype: Of the stored states.
        silence: Keep the frames after the speech that Whisper's encoder computes, which its decoder reads.
        downmix: How several channels were mixed.
        rank: Rank of this process.

    Raises:
        CheckpointError: The folder holds states of another encoder or of other audio.
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
        self._reads_all = self.layers != [encoder.top_layer]
        origin = states_origin(encoder, layers=layers, dtype=dtype, silence=silence, downmix=downmix)
        self.store = StateStore(folder, origin=origin, rank=rank)

    def encode(self, batch: Batch) -> EncoderOutput:
        """The states of a batch, read from the store.

        States that were just computed are read back too, so that the first epoch gets the same values as later ones.
        """
        self.fill(batch)
        rows = [self.store[utterance_id] for utterance_id in batch.ids]
        device = batch.waveform_BT.device
        states = [states_LFD.transpose(0, 1) for states_LFD, _ in rows]
        padded_BFLD = on_device(pad_sequence(states, batch_first=True), device).float()
        kept = padded_BFLD.unbind(2)
        return EncoderOutput(
            h_BFD=kept[-1],
            frame_lengths_B=torch.tensor([frames for _, frames in rows]),
            context_lengths_B=torch.tensor([len(row) for row in states]),
            layers=kept if self._reads_all else None,
        )

    def fill(self, batch: Batch) -> None:
        """Encode the utterances of a batch whose states are not in the store, and store them."""
        new = [row for row, utterance_id in enumerate(batch.ids) if utterance_id not in self.store]
        if not new:
            return
        lengths_B = batch.lengths_B[new]
        waveform_BT = batch.waveform_BT[new, : int(lengths_B.max())]
        # In float32 also under autocast: runs of any precision read the same states.
        with torch.no_grad(), torch.autocast(waveform_BT.device.type, enabled=False):
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
