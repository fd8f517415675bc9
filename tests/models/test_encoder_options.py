"""Options of a backbone that reach its layers: dropouts, and memory for time."""

import pytest
import torch

from ssl_asr.models.loading import load_encoder
from ssl_asr.models.ssl import SSLBackbone
from ssl_asr.models.whisper import WhisperBackbone


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
        none = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
        if name == "whisper":
            options = {"window": "real", "tail_s": 1.0, "train_tail_s": None}
            backbone = WhisperBackbone(source="", revision=None, recommended_freeze="none", **options, **more)
        else:
            options = {"source": "", "revision": None, "normalize_waveform": None, "recommended_freeze": "none"}
            backbone = SSLBackbone(**options, **none, **more)
        encoder = load_encoder(backbone, toy_checkpoints[name]).train()
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
        if name == "whisper":
            options = {"window": "real", "tail_s": 1.0, "train_tail_s": None, "recommended_freeze": "none"}
            rates = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), rate)
            encoder = load_encoder(WhisperBackbone(source="", revision=None, **options, **rates), toy_checkpoints[name])
        else:
            names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
            options = {"source": "", "revision": None, "normalize_waveform": None, "recommended_freeze": "none"}
            encoder = load_encoder(SSLBackbone(**options, **dict.fromkeys(names, rate)), toy_checkpoints[name])
        one, other = (encoder.train()(waveform, torch.tensor([9000])).h_BFD for _ in range(2))
        assert torch.equal(one, other) is equal
