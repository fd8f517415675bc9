"""Options of a backbone that reach its layers: dropouts, and memory for time."""

import pytest
import torch

from tests.toys import FAMILIES, toy_encoder

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")


def _kept_for_backward(encoder, waveform, lengths):
    """Gradients, and the bytes that the forward pass keeps."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        out = encoder(waveform, lengths)
    out.h_BFD.square().sum().backward()
    return [p.grad for p in encoder.parameters() if p.grad is not None], sum(kept)


@pytest.mark.parametrize("name", ["wav2vec2_group", "wavlm_layer", "whisper"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(toy_checkpoints, name):
    waveform, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    results = []
    for more in ({}, {"gradient_checkpointing": True}):
        none = {} if name == "whisper" else dict.fromkeys(DROPOUTS, 0.0)
        encoder = toy_encoder(name, toy_checkpoints, **none, **more).train()
        for p in encoder.parameters():
            p.requires_grad_(True)
        results.append(_kept_for_backward(encoder, waveform, lengths))
    (plain, much), (recomputed, little) = results
    assert little < 0.9 * much
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hubert_layer", "whisper"])
def test_dropouts_of_the_config_reach_the_model(toy_checkpoints, name):
    """With every dropout at 0, two forward passes in train mode are equal; with the checkpoint's own they are not."""
    waveform = torch.randn(1, 9000)
    for rate, equal in ((0.0, True), (0.3, False)):
        names = ("dropout", "attention_dropout", "activation_dropout") if name == "whisper" else DROPOUTS
        encoder = toy_encoder(name, toy_checkpoints, **dict.fromkeys(names, rate))
        one, other = (encoder.train()(waveform, torch.tensor([9000])).h_BFD for _ in range(2))
        assert torch.equal(one, other) is equal


@pytest.mark.parametrize("name", FAMILIES)
def test_dropped_layers_leave_states_as_they_were_and_have_gradients_of_zero(toy_checkpoints, name):
    """Some passes drop a layer, some none; with or without, every weight has a gradient, as other ranks expect."""
    zero = ["dropout", "attention_dropout", "activation_dropout"] if name == "whisper" else DROPOUTS
    given = [option for option in zero if name != "w2v_bert" or option != "activation_dropout"]
    encoder = toy_encoder(name, toy_checkpoints, layerdrop=0.5, **dict.fromkeys(given, 0.0)).train()
    groups = [group for group in encoder.layer_groups() if group.name.startswith("layers.")]
    waveform, lengths = torch.randn(2, 9000), torch.tensor([9000, 5000])
    dropped = set()
    for _ in range(30):
        encoder.zero_grad()
        out = encoder(waveform, lengths, layers=True)
        out.h_BFD.square().sum().backward()
        for index, group in enumerate(groups):
            parameters = [p for p in group.parameters() if p.requires_grad]
            assert all(p.grad is not None for p in parameters)
            without = all(float(p.grad.abs().max()) == 0.0 for p in parameters)
            # Between the last layer and its states may lie a norm.
            same = torch.equal(out.layers[index + 1], out.layers[index])
            assert without or not same
            if index + 1 < len(groups):
                assert same == without
            if without:
                dropped.add(index)
    kept = {0} if name.startswith("wavlm") else set()
    assert dropped == set(range(len(groups))) - kept
    encoder.eval()
    assert torch.equal(encoder(waveform, lengths).h_BFD, encoder(waveform, lengths).h_BFD)


def test_without_asking_no_layer_is_dropped_whatever_the_checkpoint_says(toy_checkpoints):
    encoder = toy_encoder("wav2vec2_group", toy_checkpoints, **dict.fromkeys(DROPOUTS, 0.0)).train()
    states = [encoder(torch.ones(1, 4000), torch.tensor([4000])).h_BFD for _ in range(20)]
    assert all(torch.equal(states[0], other) for other in states)
