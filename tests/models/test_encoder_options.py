"""Backbone options that change the layers: dropout, LayerDrop and gradient checkpointing."""

import pytest
import torch

from tests.toys import FAMILIES, toy_encoder


def _kept_for_backward(encoder, waveform, lengths):
    """Gradients, and the number of bytes that the forward pass keeps."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        out = encoder(waveform, lengths)
    out.h_BFD.square().sum().backward()
    return [p.grad for p in encoder.parameters() if p.grad is not None], sum(kept)


def _without_dropout(name):
    return dict.fromkeys(FAMILIES[name].dropouts, 0.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(toy_checkpoints, name):
    waveform, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    results = []
    for more in ({}, {"gradient_checkpointing": True}):
        encoder = toy_encoder(name, toy_checkpoints, **_without_dropout(name), **more).train()
        _disable_other_dropout(encoder, 0.0)
        for p in encoder.parameters():
            p.requires_grad_(True)
        results.append(_kept_for_backward(encoder, waveform, lengths))
    (plain, much), (recomputed, little) = results
    assert little < 0.9 * much
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_options_reach_the_model(toy_checkpoints, name):
    """With a rate of 0 two forward passes in train mode are equal. With another rate they are not."""
    waveform = torch.randn(1, 9000)
    for rate, equal in ((0.0, True), (0.3, False)):
        encoder = toy_encoder(name, toy_checkpoints, **dict.fromkeys(FAMILIES[name].dropouts, rate)).train()
        _disable_other_dropout(encoder, rate)
        one, other = (encoder(waveform, torch.tensor([9000])).h_BFD for _ in range(2))
        assert torch.equal(one, other) is equal


def _disable_other_dropout(encoder, rate):
    """Sets dropout that no option controls, such as the one in w2v-BERT's convolutions, to zero."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout) and module.p != rate:
            module.p = 0.0


@pytest.mark.parametrize("name", FAMILIES)
def test_skipped_layers_return_their_input_and_get_zero_gradients(toy_checkpoints, name):
    """Every parameter has a gradient, with and without skipped layers, because ranks must agree."""
    encoder = toy_encoder(name, toy_checkpoints, layerdrop=0.5, **_without_dropout(name)).train()
    groups = [group for group in encoder.layer_groups() if group.name.startswith("layers.")]
    waveform, lengths = torch.randn(2, 9000), torch.tensor([9000, 5000])
    skipped = set()
    for _ in range(30):
        encoder.zero_grad()
        out = encoder(waveform, lengths, layers=True)
        out.h_BFD.square().sum().backward()
        for index, group in enumerate(groups):
            if _is_skipped(group, index, out.layers, last=index + 1 == len(groups)):
                skipped.add(index)
    always_run = {0} if name.startswith("wavlm") else set()
    assert skipped == set(range(len(groups))) - always_run
    encoder.eval()
    assert torch.equal(encoder(waveform, lengths).h_BFD, encoder(waveform, lengths).h_BFD)


def _is_skipped(group, index, layers, *, last):
    """Whether all gradients of a layer are zero. Checks that the states agree with it."""
    parameters = [p for p in group.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in parameters)
    without = all(float(p.grad.abs().max()) == 0.0 for p in parameters)
    same = torch.equal(layers[index + 1], layers[index])
    assert without or not same
    # A final norm may change the states of the last layer.
    assert last or same == without
    return without


def test_layerdrop_of_the_checkpoint_does_not_apply(toy_checkpoints):
    encoder = toy_encoder("wav2vec2_group", toy_checkpoints, **_without_dropout("wav2vec2_group")).train()
    states = [encoder(torch.ones(1, 4000), torch.tensor([4000])).h_BFD for _ in range(20)]
    assert all(torch.equal(states[0], other) for other in states)
