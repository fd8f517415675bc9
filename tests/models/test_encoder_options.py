"""Options of a backbone that reach its layers: dropouts, and memory for time."""

import pytest
import torch

from tests.toys import toy_encoder

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
