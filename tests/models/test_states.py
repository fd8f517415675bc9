"""Encoder states for the head: equal to transformers, and independent of other utterances."""

import pytest
import torch
from hydra.utils import get_class

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.models.freezing import check_partition
from ssl_asr.models.loading import rebuild
from ssl_asr.models.states import ChosenLayer, LastLayer, WeightedSum
from tests.toys import FAMILIES, toy_encoder


def _encoder(name, checkpoints, window="real"):
    return toy_encoder(name, checkpoints, **({"window": window} if name == "whisper" else {})).eval()


def _theirs(name, folder, waveform):
    """Returns the hidden states of one utterance, computed by transformers.

    The last state is the one after the final norm. In transformers 5, ``hidden_states[-1]`` of layer-norm models is
    the state before the norm.
    """
    toy = FAMILIES[name]
    values = toy.own_values(waveform)
    values = toy.values(waveform) if values is None else values
    out = toy.reference(folder)(values, output_hidden_states=True)
    return (*out.hidden_states[:-1], out.last_hidden_state)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_equals_transformers(toy_checkpoints, name):
    waveform = torch.randn(9000)
    expected = _theirs(name, toy_checkpoints[name], waveform)
    encoder = _encoder(name, toy_checkpoints, window="30s")
    out = encoder(waveform[None], torch.tensor([9000]), layers=True)
    assert len(out.layers) == len(expected) == encoder.n_layers + 1
    for ours, theirs in zip(out.layers, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(out.layers[-1], out.h_BFD)
    for kept in range(encoder.n_layers + 1):
        cut = _encoder(name, toy_checkpoints, window="30s")
        ChosenLayer(layer=kept, stride=1).build(cut)
        states = cut(waveform[None], torch.tensor([9000])).h_BFD
        torch.testing.assert_close(states, expected[kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["wav2vec2_group", "wav2vec2_layer", "wavlm_layer", "whisper"])
def test_cut_encoder_has_no_unused_weights_and_can_be_rebuilt(toy_checkpoints, name):
    encoder = _encoder(name, toy_checkpoints)
    ChosenLayer(layer=-1, stride=1).build(encoder)
    assert [g.name for g in encoder.layer_groups()][-1] == f"layers.{encoder.n_layers - 2}"
    check_partition(encoder.layer_groups(), encoder.parameters())
    twin = rebuild(encoder.description(), get_class).eval()
    ChosenLayer(layer=-1, stride=1).build(twin)
    twin.load_state_dict(encoder.state_dict())
    waveform, lengths = torch.randn(1, 9000), torch.tensor([9000])
    assert torch.equal(twin(waveform, lengths).h_BFD, encoder(waveform, lengths).h_BFD)


def test_missing_layer_raises_config_error(toy_checkpoints):
    for layer in (3, -4):
        with pytest.raises(ConfigError, match="the encoder has 2 layers"):
            ChosenLayer(layer=layer, stride=1).build(_encoder("wav2vec2_group", toy_checkpoints))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_weighted_sum_starts_as_mean_and_gets_gradients(toy_checkpoints, layer_norm):
    encoder = _encoder("hubert_layer", toy_checkpoints)
    states = WeightedSum(layer_norm=layer_norm, stride=1).build(encoder)
    out = encoder(torch.randn(1, 9000), torch.tensor([9000]), layers=True)
    layers = torch.stack(out.layers)
    if layer_norm:
        layers = (layers - layers.mean(-1, keepdim=True)) / (layers.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(states(out)[0], layers.mean(0), atol=1e-5, rtol=1e-4)
    states(out)[0].square().sum().backward()
    assert states.weights_L.grad.abs().min() > 0


@pytest.mark.parametrize("stride", [2, 3])
def test_stacked_frames_have_exact_lengths_and_ignore_other_utterances(stride):
    frames = [1, 2, 3, 4, 5, 6, 7]
    h = torch.randn(len(frames), 7, 4)
    encoder = torch.nn.Module()
    encoder.dim = 4
    states = LastLayer(stride=stride).build(encoder)
    assert states.dim == 4 * stride
    stacked, lengths = states(EncoderOutput(h, torch.tensor(frames), torch.tensor(frames)))
    assert lengths.tolist() == [-(-n // stride) for n in frames]
    for row, n in enumerate(frames):
        alone, _ = states(EncoderOutput(h[row : row + 1, :n], torch.tensor([n]), torch.tensor([n])))
        assert alone.shape[1] == int(lengths[row])
        assert torch.equal(stacked[row, : int(lengths[row])], alone[0])
        flat = alone.flatten()
        assert torch.equal(flat[: n * 4], h[row, :n].flatten())
        assert not flat[n * 4 :].any()


def test_only_the_last_layer_with_stride_1_is_unchanged():
    assert LastLayer(stride=1).as_is
    assert not LastLayer(stride=2).as_is
    assert not ChosenLayer(layer=-1, stride=1).as_is
    assert not WeightedSum(layer_norm=False, stride=1).as_is
