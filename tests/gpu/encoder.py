"""Checks of encoders on a device, before they are timed."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from transformers import AutoModel, Wav2Vec2BertConfig

from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.models.position_bias import DistanceBias, GatedBias
from ssl_asr.models.ragged import Packed
from ssl_asr.models.relative_check import TOLERANCES as KERNEL_TOLERANCES
from ssl_asr.models.relative_check import by_kernel, by_torch, has_kernel, kept_by_kernel
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


def check_kernels(device: str) -> None:
    """Checks the kernels of WavLM's attention: results, and memory. On a CPU, torch takes their place.

    Raises:
        AssertionError: The kernels do not run, or a check fails.
    """
    if device != "cuda":
        check_kernel(device, [9, 1, 0, 5], dtype=torch.float32, heads=2, dim=8, attend=by_torch, dropouts=(0.0,))
        return
    lengths = [130, 1, 0, 700, 64, 1499, 333]
    for dtype, dim in ((torch.bfloat16, 64), (torch.float16, 80)):
        assert has_kernel(torch.zeros((), device=device).device, dtype, dim), "no kernel runs here: see the warning"
        check_kernel(device, lengths, dtype=dtype, heads=16, dim=dim, attend=by_kernel, dropouts=(0.0, 0.1))
    check_memory(device)


def check_kernel(
    device: str,
    lengths: Sequence[int],
    *,
    dtype: torch.dtype,
    heads: int,
    dim: int,
    attend: Callable[..., Tensor],
    dropouts: Sequence[float],
) -> None:
    """Compares attention with torch in float64, with a second computation and with the first utterance alone.

    The second computation and the utterance alone must be equal bit by bit. Dropout is compared with the mask of the
    kernels.

    Args:
        attend: `by_kernel`, or another function with its parameters.
        dropouts: Probabilities of dropout.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows, width = sum(lengths), max(lengths)
    sizes = [(rows, heads * dim)] * 4 + [(rows, heads), (heads, 2 * width - 1)]
    *states, gate, relative = (torch.randn(size, device=device, generator=generator) for size in sizes)
    inputs, factors = [*(x.to(dtype) for x in states[:3]), gate, relative], states[3].to(dtype)

    def results(compute: Callable[..., Tensor], given: Sequence[Tensor], own: Sequence[int], **options) -> list[Tensor]:
        given = [x.detach().requires_grad_() for x in given]
        out = compute(given, own, **options)
        return [out.detach(), *torch.autograd.grad(out, given, factors[: len(out)].to(out.dtype))]

    for dropout in dropouts:
        drawn = {"dropout": dropout} if attend is by_torch else {"dropout": dropout, "seed": 3}
        kept = kept_by_kernel(inputs, lengths, **drawn) if dropout > 0 else None
        found = results(attend, inputs, lengths, **drawn)
        exact = results(by_torch, [x.double() for x in inputs], lengths, dropout=dropout, kept=kept)
        for name, one, other in zip(("out", "q", "k", "v", "gate", "relative"), found, exact, strict=True):
            error = (one - other).abs().max() / other.abs().max()
            assert error < KERNEL_TOLERANCES[dtype], f"{name} of {dtype} differs from torch by {float(error):.1e}"
        again = results(attend, inputs, lengths, **drawn)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True)), "two runs differ"
        first = lengths[0]
        narrow = relative[:, width - first : width + first - 1]
        alone = results(attend, [*(x[:first] for x in inputs[:4]), narrow], [first], **drawn)
        # The gradient of the bias is a sum over all utterances.
        same = all(torch.equal(one[:first], other) for one, other in list(zip(found, alone, strict=True))[:5])
        assert same, "an utterance depends on its neighbors"


def check_memory(device: str) -> None:
    """Peak memory of forward and backward is below a third of the smallest table of pairs, which is in bf16."""
    lengths, heads, dim = [3000] * 8, 16, 64
    rows = sum(lengths)
    states = [torch.randn(rows, heads * dim, device=device, dtype=torch.bfloat16) for _ in range(3)]
    inputs = [*states, torch.randn(rows, heads, device=device), torch.randn(heads, 2 * 3000 - 1, device=device)]
    inputs = [x.requires_grad_() for x in inputs]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    by_kernel(inputs, lengths, dropout=0.1, seed=1).sum().backward()
    used, table = torch.cuda.max_memory_allocated() - before, 2 * heads * sum(frames**2 for frames in lengths)
    assert used < table / 3, f"attention took {used / 2**20:.0f} MB"
