"""Policies: which groups train, and that the others do not move."""

import pytest
import torch

from ssl_asr.errors import ConfigError
from ssl_asr.models.freezing import (
    FreezeDecoder,
    FreezeEncoder,
    FreezeFeatureEncoder,
    TrainAll,
    TrainTopK,
)
from tests.training.toy_runs import build, toy_overrides

ENCODER = ["feature_encoder", "projection", "layers.0", "layers.1", "layers.2", "final_norm"]
DECODER = ["decoder.embed", "decoder.layers.0", "decoder.final_norm"]


def test_policies_are_functions_of_names():
    everything = {*ENCODER, "states", "head"}
    for policy, trains in (
        (TrainAll(), everything),
        (FreezeFeatureEncoder(), everything - {"feature_encoder"}),
        (FreezeEncoder(), {"states", "head"}),
        (TrainTopK(k=1), {"layers.2", "final_norm", "states", "head"}),
        (TrainTopK(k=3), everything - {"feature_encoder", "projection"}),
    ):
        assert policy.trainable(ENCODER, ["states", "head"]) == trains
    assert FreezeDecoder().trainable(ENCODER, DECODER) == set(ENCODER)


def test_policies_refuse_what_a_model_has_not():
    for k in (0, 4):
        with pytest.raises(ConfigError, match="3 transformer layers"):
            TrainTopK(k=k).trainable(ENCODER, DECODER)
    with pytest.raises(ConfigError, match="no pretrained decoder"):
        FreezeDecoder().trainable(ENCODER, ["states", "head"])


@pytest.mark.parametrize(
    ("checkpoint", "task", "policy", "frozen"),
    [
        ("whisper", "seq2seq", ["freeze_policy=decoder"], ["model.net."]),
        ("whisper", "seq2seq", ["freeze_policy=top_k", "freeze_policy.k=1"], ["net.conv", "encoder.net.layers.0."]),
        ("wav2vec2_layer", "ctc", ["freeze_policy=top_k", "freeze_policy.k=1"], ["feature_", "layers.0.", "pos_conv"]),
    ],
)
def test_what_is_frozen_does_not_move_nor_drop(toy_checkpoints, toy_corpus, tmp_path, checkpoint, task, policy, frozen):
    run = build(tmp_path, *toy_overrides(toy_checkpoints[checkpoint], toy_corpus, task), *policy)
    module = run.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run.trainer.fit(module, datamodule=run.data)
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    still = {name for name in before if any(part in name for part in frozen)}
    assert still
    assert not moved & still
    trains = {name for name, p in module.named_parameters() if p.requires_grad}
    assert moved <= trains
    assert not trains & still
    in_optimizers = {id(p) for o in run.trainer.optimizers for g in o.param_groups for p in g["params"]}
    assert in_optimizers == {id(p) for name, p in module.named_parameters() if name in trains}
    module.train()
    modules = dict(module.named_modules())
    assert all(not modules[name.rpartition(".")[0]].training for name in still)
    assert any(modules[name.rpartition(".")[0]].training for name in trains)


def test_nothing_is_kept_for_backward_below_what_trains(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)
    run = build(tmp_path, *overrides, "freeze_policy=top_k", "freeze_policy.k=1")
    run.module.train()
    seen = {}
    for name in ("layers.0", "layers.1"):
        layer = run.module.encoder.net.encoder.get_submodule(name)
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    run.module.encoder(torch.randn(1, 9000), torch.tensor([9000]))
    tensors = {name: out[0] if isinstance(out, tuple) else out for name, out in seen.items()}
    assert not tensors["layers.0"].requires_grad
    assert tensors["layers.1"].requires_grad
