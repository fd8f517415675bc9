"""Encoding a batch while the one before it is decoded, on a GPU.

A decoding step is bound by memory and launches, and the encoder by arithmetic, so both at once take less time than one
after the other. Where the host makes texts of labels, as with CTC, the GPU goes on encoding::

    stream of the encoder    | encode 1 | encode 2 |          | encode 3 |
    main stream                         | decode 1 .......... | decode 2 .......... | decode 3 ...
    host                     put 1        put 2                 put 3                 rest
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Batch

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Ready(Generic[Key]):
    """A batch to decode now.

    Attributes:
        key: What the caller gave with the batch.
        batch: Utterances.
        out: The encoder's output. None if the batch is not encoded yet.
    """

    key: Key
    batch: Batch
    out: EncoderOutput | None


class EncoderAhead(Generic[Key]):
    """Encodes each batch one step before it is decoded.

    On other devices than a GPU, and under autocast, whose copies of weights belong to one stream, each batch is
    returned at once and not encoded.

    Args:
        module: The model, in eval mode.
    """

    device_types = frozenset({"cuda"})

    def __init__(self, module: ASRModule) -> None:
        self._module = module
        self._stream: torch.cuda.Stream | None = None
        self._held: tuple[Ready[Key], torch.cuda.Event] | None = None

    def put(self, key: Key, batch: Batch) -> Ready[Key] | None:
        """Starts to encode a batch. Returns the batch before it, or None for the first one."""
        kind = batch.waveform_BT.device.type
        if kind not in self.device_types or torch.is_autocast_enabled(kind):
            return Ready(key, batch, None)
        before = self._held
        out, event = self._encode(batch)
        self._held = Ready(key, batch, out), event
        return None if before is None else self._received(*before)

    def rest(self) -> Ready[Key] | None:
        """Returns the last batch, or None if there is none."""
        held, self._held = self._held, None
        return None if held is None else self._received(*held)

    def _encode(self, batch: Batch) -> tuple[EncoderOutput, torch.cuda.Event]:
        device = batch.waveform_BT.device
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The samples are copied by the main stream.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            out = self._module.encode(batch)
        batch.waveform_BT.record_stream(self._stream)
        return out, self._stream.record_event()

    @staticmethod
    def _received(ready: Ready[Key], event: torch.cuda.Event) -> Ready[Key]:
        """Lets the main stream wait for the encoder. Only this batch is waited for, not the one that follows."""
        assert ready.out is not None
        states: list[Tensor] = [ready.out.h_BFD, *(ready.out.layers or ())]
        main = torch.cuda.current_stream(states[0].device)
        main.wait_event(event)
        for one in states:
            # Their memory belongs to the other stream, which must not use it again before they are decoded.
            one.record_stream(main)
        return ready
