"""Compiled layers give the same states, gradients and checkpoints."""

import pytest
import torch

from ssl_asr.build.restore import restore_module
from ssl_asr.errors import ConfigError
from ssl_asr.models.compiling import compile_layers
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.toys import FAMILIES, toy_encoder
from tests.training.toy_runs import build, toy_overrides

# One of each kind of normalization and of input.
QUICK = ("wav2vec2_group", "wavlm_layer", "w2v_bert", "whisper")


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_compiled_encoder_gives_the_same_states_and_gradients(toy_checkpoints, name):
    """With the eager backend, and inputs of two lengths."""
    plain, compiled = (toy_encoder(name, toy_checkpoints).eval() for _ in range(2))
    assert compile_layers(compiled, "eager") == 1
    for samples in (9000, 7000):
        waveform, lengths = torch.randn(2, samples), torch.tensor([samples, samples - 1500])
        one, other = plain(waveform, lengths), compiled(waveform, lengths)
        for row, frames in enumerate(one.frame_lengths_B.tolist()):
            torch.testing.assert_close(other.h_BFD[row, :frames], one.h_BFD[row, :frames], atol=1e-5, rtol=1e-4)
        one.h_BFD[0].square().sum().backward()
        other.h_BFD[0].square().sum().backward()
    gradients = [{n: p.grad for n, p in e.named_parameters() if p.grad is not None} for e in (plain, compiled)]
    assert set(gradients[0]) == set(gradients[1])
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "task"), [pytest.param("hubert_layer", "ctc", marks=pytest.mark.slow), ("whisper", "seq2seq")]
)
def test_compiled_run_gives_the_weights_of_a_plain_run(toy_checkpoints, toy_corpus, tmp_path, monkeypatch, name, task):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    overrides = [*toy_overrides(toy_checkpoints[name], toy_corpus, task), "freeze=false", "trainer.max_epochs=1"]
    weights = []
    for more in ([], ["trainer.compile=eager"]):
        run = build(tmp_path / f"r{len(weights)}", *overrides, *more)
        run.trainer.fit(run.module, datamodule=run.data)
        weights.append(run.module.state_dict())
    assert list(weights[0]) == list(weights[1]), "weight names do not change"
    for key, value in weights[0].items():
        if torch.is_floating_point(value):
            torch.testing.assert_close(weights[1][key], value, atol=1e-4, rtol=1e-3)
    restore_module(read_checkpoint(tmp_path / "r1" / "checkpoints" / "last.ckpt"))


def test_unknown_backend_is_refused(toy_checkpoints):
    with pytest.raises(ConfigError, match="trainer.compile: no backend 'indutcor'"):
        compile_layers(toy_encoder("hubert_group", toy_checkpoints), "indutcor")
