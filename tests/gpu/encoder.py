"""Checks of an SSL encoder on a device, before it is timed."""

import torch

from ssl_asr.models.position_bias import GatedBias
from ssl_asr.models.ragged import Packed
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.ssl_stem import normalize_waveform
from ssl_asr.types import Batch

# Largest difference of states, as a share of the largest state: float32 with TF32 products, and bf16.
_TOLERANCES = {"float32": 5e-3, "bf16": 6e-2}


@torch.no_grad()
def check_states(encoder: SSLEncoder, batch: Batch) -> None:
    """Compares the shortest and the longest utterance of a batch with transformers, each alone and without a mask."""
    was_training = encoder.training
    encoder.eval()
    for precision, tolerance in _TOLERANCES.items():
        with torch.autocast(batch.waveform_BT.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = encoder(batch.waveform_BT, batch.lengths_B)
        for row in (int(batch.lengths_B.argmin()), int(batch.lengths_B.argmax())):
            waveform_BT = batch.waveform_BT[row : row + 1, : int(batch.lengths_B[row])].clone()
            if encoder.normalize:
                waveform_BT = normalize_waveform(waveform_BT, batch.lengths_B[row : row + 1])
            expected_FD = encoder.net(waveform_BT).last_hidden_state[0]
            error = (out.h_BFD[row, : len(expected_FD)].float() - expected_FD).abs().max() / expected_FD.abs().max()
            assert error < tolerance, f"states differ by {float(error):.1e} in {precision}"
    encoder.train(was_training)


def check_attention(device: str, dtype: torch.dtype) -> None:
    """Compares the ways of attention of packed rows, outputs and gradients, in a random batch."""
    generator = torch.Generator(device).manual_seed(0)
    lengths_B, heads, dim = torch.tensor([130, 37, 200, 64]), 4, 256
    layout = Packed.of(lengths_B, int(lengths_B.max()), torch.device(device))

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, dtype=dtype, generator=generator).requires_grad_()

    total = int(lengths_B.sum())
    states = [random(total, dim) for _ in range(3)]
    gate, relative_HR = random(total, heads), random(heads, 2 * layout.width - 1)
    for bias, inputs in ((None, states), (GatedBias(gate, relative_HR), [*states, gate, relative_HR])):
        ways = [layout.attend, layout.attend_in_turn, layout.attend_padded]
        found = []
        for way in ways:
            out = way(*states, heads=heads, dropout=0.0, bias=bias)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
        for other in found[1:]:
            for one, reference in zip(found[0], other, strict=True):
                error = (one - reference).abs().max() / reference.abs().max()
                assert error < 0.05, f"attention of packed rows differs by {float(error):.1e}"
