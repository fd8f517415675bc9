"""Checks of encoders on a device, before they are timed."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from transformers import AutoModel, Wav2Vec2BertConfig

from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.models.position_bias import DistanceBias, GatedBias
from ssl_asr.models.ragged import Packed
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.ssl_stem import normalize_waveform
from ssl_asr.models.w2v_bert import W2vBertEncoder
from ssl_asr.models.whisper import WhisperEncoder
from ssl_asr.types import Batch
from tests.models.whisper_reference import states_alone

E = TypeVar("E", bound=SpeechEncoder)

# Largest difference of states, as a share of the largest state: float32 with TF32 products, and bf16.
_TOLERANCES = {"float32": 5e-3, "bf16": 6e-2}


def wav2vec2_states(encoder: SSLEncoder, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """States of one utterance by transformers."""
    waveform_BT = normalize_waveform(waveform_BT, lengths_B) if encoder.normalize else waveform_BT
    states_FD: Tensor = encoder.net(waveform_BT).last_hidden_state[0]
    return states_FD


def w2v_bert_states(encoder: W2vBertEncoder, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """States of one utterance by transformers, from our filter banks."""
    states_FD: Tensor = encoder.net(encoder.filter_banks(waveform_BT, lengths_B)).last_hidden_state[0]
    return states_FD


def whisper_states(encoder: WhisperEncoder, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """States of one utterance by transformers' layers, from our spectrogram."""
    [states] = states_alone(encoder, waveform_BT, lengths_B)
    return states[-1]


@torch.no_grad()
def check_states(encoder: E, batch: Batch, theirs: Callable[[E, Tensor, Tensor], Tensor]) -> None:
    """Compares the shortest and the longest utterance of a batch with transformers, each alone and without a mask.

    Args:
        theirs: States of one utterance by transformers, from a waveform and its length.
    """
    was_training = encoder.training
    encoder.eval()
    for precision, tolerance in _TOLERANCES.items():
        with torch.autocast(batch.waveform_BT.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = encoder(batch.waveform_BT, batch.lengths_B)
        for row in (int(batch.lengths_B.argmin()), int(batch.lengths_B.argmax())):
            lengths_B = batch.lengths_B[row : row + 1]
            expected_FD = theirs(encoder, batch.waveform_BT[row : row + 1, : int(lengths_B)].clone(), lengths_B)
            error = (out.h_BFD[row, : len(expected_FD)].float() - expected_FD).abs().max() / expected_FD.abs().max()
            assert error < tolerance, f"states differ by {float(error):.1e} in {precision}"
    encoder.train(was_training)


def check_w2v_bert(batch: Batch) -> None:
    """Runs `check_states` with a small w2v-BERT of random weights."""
    config = Wav2Vec2BertConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    with torch.device(batch.waveform_BT.device):
        encoder = W2vBertEncoder(net=AutoModel.from_config(config)).to(batch.waveform_BT.device)
    check_states(encoder, batch, w2v_bert_states)


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
    scores = random(total, heads * (64 + 1 + 8))
    for bias, inputs in (
        (None, states),
        (GatedBias(gate, relative_HR), [*states, gate, relative_HR]),
        (DistanceBias(scores, 64, 8), [*states, scores]),
    ):
        ways = [layout.attend, layout.attend_in_turn, layout.attend_padded]
        found = []
        for way in ways:
            out = way(*states, heads=heads, dropout=0.0, bias=bias)
            found.append((out, *torch.autograd.grad(out.float().square().sum(), inputs)))
        for other in found[1:]:
            for one, reference in zip(found[0], other, strict=True):
                error = (one - reference).abs().max() / reference.abs().max()
                assert error < 0.05, f"attention of packed rows differs by {float(error):.1e}"
