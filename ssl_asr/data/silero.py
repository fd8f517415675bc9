"""The network of Silero VAD, for many frames at a time.

The package silero-vad is read as data: only its weights are used. Its code runs one frame of 32 ms at a time, and
importing it sets the number of threads of torch to 1.

    samples of a frame, with 4 ms before them -> magnitudes of a short-time Fourier transform -> 4 convolutions
    -> LSTM over the frames -> probability of speech
"""

import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.errors import CheckpointError
from ssl_asr.types import SAMPLE_RATE, Samples, Seconds

FRAME: Samples = 512
"""Samples from one probability to the next."""
FRAME_S: Seconds = FRAME / SAMPLE_RATE
# Samples before a frame that the network also reads, and samples that are mirrored after it.
_CONTEXT, _MIRRORED = 64, 64
_FREQUENCIES = 129
# Frames in memory at a time, in all rows.
_FRAMES_AT_A_TIME = 8192
_LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# Name of each weight, and its name in the published file.
_NAMES = {
    "stft_conv.weight": "stft.forward_basis_buffer",
    **{f"conv{i + 1}.{part}": f"encoder.{i}.reparam_conv.{part}" for i in range(4) for part in ("weight", "bias")},
    **{f"lstm.{part}_l0": f"decoder.rnn.{part}" for part in _LSTM},
    "final_conv.weight": "decoder.decoder.2.weight",
    "final_conv.bias": "decoder.decoder.2.bias",
}


class SileroVad(nn.Module):
    """Silero VAD 6 for 16 kHz."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _FREQUENCIES, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(_FREQUENCIES, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(
        self, samples_BT: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Probability of speech of each frame, shape (batch, frames), and the state after the last frame.

        Args:
            samples_BT: float32, shape (batch, 64 + 512 * frames). The first 64 samples are those before the first
                frame, zeros at the start of a recording.
            state: State after the frame before the first one. Default: None (start of a recording).
        """
        rows_BFT = samples_BT.unfold(1, _CONTEXT + FRAME, FRAME)
        batch, frames = rows_BFT.shape[:2]
        x = functional.pad(rows_BFT.flatten(0, 1)[:, None], (0, _MIRRORED), mode="reflect")
        real, imaginary = self.stft_conv(x).split(_FREQUENCIES, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        h_BFD, state = self.lstm(x.view(batch, frames, -1), state)
        logits_B1F = self.final_conv(h_BFD.relu().transpose(1, 2))
        return logits_B1F[:, 0].sigmoid(), state


@lru_cache(maxsize=4)
def load_silero(device: torch.device) -> SileroVad:
    """The network with its published weights, on a device.

    Raises:
        CheckpointError: silero-vad is not installed, or does not have the weights.
    """
    spec = find_spec("silero_vad")
    path = Path(str(spec.origin)).parent / "data" / "silero_vad.jit" if spec is not None else None
    if path is None or not path.is_file():
        what = "voice activity detection needs the weights of silero-vad 6, which are not installed"
        raise CheckpointError("silero-vad", what, "pip install 'silero-vad>=6.2,<7', or use vad=false")
    with warnings.catch_warnings():
        # TorchScript is deprecated. It is only read as a container of weights.
        warnings.simplefilter("ignore")
        published = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    weights = {own: published[f"_model.{theirs}"] for own, theirs in _NAMES.items()}
    net = SileroVad()
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False).to(device)


@torch.no_grad()
def speech_probabilities(blocks: Iterator[Tensor]) -> Tensor:
    """Probability of speech of each frame of 32 ms, float32 on the CPU, shape (batch, frames).

    A row does not depend on the rows beside it, nor on the zeros after it.

    Args:
        blocks: Consecutive samples of the same rows, float, shape (batch, samples), 16 kHz. All blocks but the last
            have a multiple of 512 samples.
    """
    found: list[Tensor] = []
    context_BT: Tensor | None = None
    state: tuple[Tensor, Tensor] | None = None
    for block_BT in blocks:
        net = load_silero(block_BT.device)
        if context_BT is None:
            context_BT = block_BT.new_zeros(len(block_BT), _CONTEXT, dtype=torch.float32)
        step = max(1, _FRAMES_AT_A_TIME // len(block_BT)) * FRAME
        for samples_BT in torch.split(block_BT, step, dim=1):
            padded_BT = functional.pad(samples_BT.float(), (0, -samples_BT.shape[1] % FRAME))
            with torch.autocast(block_BT.device.type, enabled=False):
                probabilities_BF, state = net(torch.cat([context_BT, padded_BT], dim=1), state)
            context_BT = padded_BT[:, -_CONTEXT:]
            found.append(probabilities_BF.cpu())
    return torch.cat(found, dim=1) if found else torch.zeros(0, 0)
