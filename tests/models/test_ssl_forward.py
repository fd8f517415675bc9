"""The forward pass of the wav2vec 2.0 family against that of transformers, over the same weights.

Also, that the forward passes of all families with layouts wait for nothing.
"""

import copy
import math

import pytest
import torch
from transformers import AutoModel, HubertConfig, WavLMConfig

from ssl_asr.models.ssl import SSLEncoder
from tests.toys import FAMILIES, GROUP, SMALL, toy_encoder
from tests.waits import OnDevice

WAV2VEC2 = [name for name, toy in FAMILIES.items() if toy.normalize or "group" in name or name == "data2vec"]
SAMPLES = 9001


def _double(encoder):
    encoder = encoder.double().eval()
    for p in encoder.parameters():
        p.requires_grad_(True)
    return encoder


def _theirs(net, waveform_BT):
    # transformers enables gradients of the waveform in place.
    return net(waveform_BT.clone()).last_hidden_state


@pytest.mark.parametrize("name", WAV2VEC2)
def test_states_and_gradients_of_equal_lengths_equal_transformers(toy_checkpoints, name):
    """In float64, so that a difference is no rounding."""
    encoder = _double(toy_encoder(name, toy_checkpoints, normalize_waveform=False))
    waveform_BT = torch.randn(2, SAMPLES, dtype=torch.float64)
    theirs = _theirs(encoder.net, waveform_BT)
    ours = encoder(waveform_BT, torch.tensor([SAMPLES] * 2)).h_BFD
    torch.testing.assert_close(ours, theirs)
    factors = torch.randn_like(ours)
    weights = dict(encoder.net.named_parameters())
    gradients = [
        torch.autograd.grad((out * factors).sum(), list(weights.values()), allow_unused=True) for out in (ours, theirs)
    ]
    compared = 0
    for key, one, other in zip(weights, *gradients, strict=True):
        assert (one is None) == (other is None), key
        if one is not None:
            torch.testing.assert_close(one, other, msg=lambda m, key=key: f"{key}: {m}")
            compared += 1
    assert compared >= len(weights) - 1, "all but the mask vector"


@pytest.mark.parametrize("name", WAV2VEC2)
def test_gradients_of_a_padded_batch_are_the_sums_of_those_of_its_utterances(toy_checkpoints, name):
    encoder = _double(toy_encoder(name, toy_checkpoints))
    waveforms = [torch.randn(n, dtype=torch.float64) for n in (4000, SAMPLES, 2222)]
    lengths_B = torch.tensor([len(waveform) for waveform in waveforms])
    frames = encoder.frame_lengths(lengths_B).tolist()
    weights = [p for key, p in encoder.named_parameters() if "masked_spec_embed" not in key]

    def gradients(h_BFD, own_frames):
        total = sum(row[:n].square().sum() for row, n in zip(h_BFD, own_frames, strict=True))
        return torch.autograd.grad(total, weights)

    together = gradients(encoder(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths_B).h_BFD, frames)
    alone = [
        gradients(encoder(waveform[None], torch.tensor([len(waveform)])).h_BFD, [n])
        for waveform, n in zip(waveforms, frames, strict=True)
    ]
    for one, *others in zip(together, *alone, strict=True):
        torch.testing.assert_close(one, sum(others))


def _batch_norm_encoder():
    """As mHuBERT-147: a batch norm before the positional convolution."""
    torch.manual_seed(2)
    net = AutoModel.from_config(HubertConfig(**{**SMALL, **GROUP, "conv_pos_batch_norm": True})).double()
    norm = net.encoder.pos_conv_embed.batch_norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return SSLEncoder(net=net, normalize=False)


def test_padding_does_not_pass_through_the_batch_norm_of_positions():
    """The norm turns zeros into other values. The positional convolution would read them at the end of an utterance."""
    encoder = _batch_norm_encoder().eval()
    waveform_BT, lengths_B = torch.randn(2, SAMPLES, dtype=torch.float64), torch.tensor([SAMPLES, 4000])
    waveform_BT[1, 4000:] = 0
    alone = encoder(waveform_BT[1:, :4000], lengths_B[1:]).h_BFD[0]
    torch.testing.assert_close(encoder(waveform_BT, lengths_B).h_BFD[1, : len(alone)], alone)
    torch.testing.assert_close(alone, _theirs(encoder.net, waveform_BT[1:, :4000])[0])


def test_batch_norm_of_positions_trains_on_frames_without_padding():
    encoder = _batch_norm_encoder().train()
    waveform_BT, lengths_B = torch.randn(2, SAMPLES, dtype=torch.float64), torch.tensor([SAMPLES, 4000])
    means = []
    for longer in (0, 3000):
        twin = copy.deepcopy(encoder)
        twin(torch.nn.functional.pad(waveform_BT, (0, longer)), lengths_B)
        means.append(twin.net.encoder.pos_conv_embed.batch_norm.running_mean.clone())
    torch.testing.assert_close(*means)
    assert not torch.equal(means[0], encoder.net.encoder.pos_conv_embed.batch_norm.running_mean)


def kept_numbers(forward, weights):
    """Numbers that a forward pass keeps for backward, without the weights: the sum, and the largest tensor."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in weights}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size(), storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        forward()
    sizes = [size for size, _ in kept.values()]
    return sum(sizes), max(sizes)


def test_wavlm_keeps_no_table_of_pairs_of_frames():
    settings = {**SMALL, **GROUP, "num_attention_heads": 4, "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3)}
    net = AutoModel.from_config(WavLMConfig(**settings)).train()
    encoder, waveform_BT = SSLEncoder(net=net, normalize=False).train(), torch.randn(1, 16000)
    ours = encoder(waveform_BT, torch.tensor([16000])).h_BFD
    frames, weights = ours.shape[1], list(net.parameters())
    total, largest = kept_numbers(lambda: encoder(waveform_BT, torch.tensor([16000])), weights)
    theirs, table = kept_numbers(lambda: _theirs(net, waveform_BT), weights)
    assert table >= frames * frames * 4, "transformers keeps tables"
    assert largest < frames * frames, (largest, frames)
    assert total < 0.35 * theirs, (total, theirs)


@pytest.mark.parametrize("lengths", [[SAMPLES, SAMPLES], [SAMPLES, 5000]])
@pytest.mark.parametrize("name", [*WAV2VEC2, "w2v_bert", "whisper"])
def test_no_step_waits_for_the_device(toy_checkpoints, name, lengths):
    """Lengths are on the CPU. Nothing looks at a value that depends on the waveforms or the weights."""
    encoder = toy_encoder(name, toy_checkpoints).train()
    waveform_BT = torch.randn(2, SAMPLES)
    with OnDevice([waveform_BT, *encoder.parameters(), *encoder.buffers()]) as mode:
        encoder(waveform_BT, torch.tensor(lengths)).h_BFD.square().sum().backward()
    assert mode.seen > 100
    assert all(math.isfinite(float(p.grad.sum())) for p in encoder.parameters() if p.grad is not None)


def test_the_check_for_waits_finds_them():
    x = torch.ones(3)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0], lambda: (x > 0).nonzero()):
        with pytest.raises(AssertionError, match="waits for the device"), OnDevice([x]):
            wait()
