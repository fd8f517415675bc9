"""Freeze policies: the groups that train, and frozen weights that do not change."""

import pytest
import torch

from ssl_asr.errors import ConfigError
from ssl_asr.models.freezing import (
    FreezeDecoder,
    FreezeEncoder,
    FreezeFeatureEncoder,
    GradualThaw,
    HeadFirst,
    Progress,
    TrainAll,
    TrainTopK,
)
from tests.training.toy_runs import build, toy_overrides

ENCODER = ["feature_encoder", "projection", "layers.0", "layers.1", "layers.2", "final_norm"]
DECODER = ["decoder.embed", "decoder.layers.0", "decoder.final_norm"]


def test_policies_select_groups_by_name():
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


def test_freezes_encoder_is_true_if_no_encoder_group_ever_trains():
    gradual = GradualThaw(wait=2, every=3, unit="epoch")
    for policy in (TrainAll(), FreezeFeatureEncoder(), FreezeEncoder(), TrainTopK(k=1), HeadFirst(updates=10), gradual):
        assert policy.freezes_encoder == policy.trainable(ENCODER, ["states", "head"]).isdisjoint(ENCODER)
    assert not FreezeDecoder().freezes_encoder


def test_thaws_is_true_if_the_trainable_groups_change():
    gradual = GradualThaw(wait=2, every=3, unit="epoch")
    for policy in (TrainAll(), FreezeFeatureEncoder(), FreezeEncoder(), TrainTopK(k=1), HeadFirst(updates=10), gradual):
        first, last = (policy.trainable_at(ENCODER, ["states", "head"], Progress(n, n)) for n in (0, 1000))
        assert policy.thaws == (first != last)


def test_missing_layers_or_decoder_raise_config_error():
    for k in (0, 4):
        with pytest.raises(ConfigError, match="3 transformer layers"):
            TrainTopK(k=k).trainable(ENCODER, DECODER)
    with pytest.raises(ConfigError, match="no pretrained decoder"):
        FreezeDecoder().trainable(ENCODER, ["states", "head"])


def test_layers_thaw_from_the_top():
    rest = ["states", "head"]
    head_first = HeadFirst(updates=10)
    assert head_first.trainable_at(ENCODER, rest, Progress(9, 5)) == {*rest}
    assert head_first.trainable_at(ENCODER, rest, Progress(10, 0)) == {*ENCODER, *rest} - {"feature_encoder"}
    gradual = GradualThaw(wait=2, every=3, unit="epoch")
    top = {"layers.2", "final_norm"}
    for epoch, opened in ((0, set()), (1, set()), (2, top), (4, top), (5, top | {"layers.1"})):
        assert gradual.trainable_at(ENCODER, rest, Progress(1000, epoch)) == {*rest, *opened}
    for epoch in (8, 100):
        assert gradual.trainable_at(ENCODER, rest, Progress(0, epoch)) == gradual.trainable(ENCODER, rest)
    assert GradualThaw(wait=0, every=1, unit="update").trainable_at(ENCODER, rest, Progress(0, 9)) == {*rest, *top}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_layer_changes_from_the_update_at_which_it_thaws(toy_checkpoints, toy_corpus, tmp_path, accumulate):
    overrides = [*toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), "optimizers.encoder.lr=0.01"]
    overrides += ["freeze_policy=gradual_thaw", "freeze_policy.unit=update", "freeze_policy.wait=2"]
    overrides += ["scheduler@schedulers.encoder=constant", f"trainer.accumulate_grad_batches={accumulate}"]
    run = build(tmp_path, *overrides, "data.max_batch_s=1.6")
    module, moved_at = run.module, {}
    start = {name: p.detach().clone() for name, p in module.encoder.named_parameters()}
    step = module._step

    def watched(optimizers, scaler):
        step(optimizers, scaler)
        for name, p in module.encoder.named_parameters():
            if not torch.equal(p, start[name]):
                moved_at.setdefault(name, run.trainer.global_step)

    module._step = watched
    run.trainer.fit(module, datamodule=run.data)
    assert run.trainer.global_step >= 5
    first = {}
    for group in module.encoder.layer_groups():
        own = {id(p) for p in group.parameters()}
        names = [name for name, p in module.encoder.named_parameters() if id(p) in own]
        first[group.name] = min(moved_at.get(name, 99) for name in names)
    assert first == {"feature_encoder": 99, "projection": 4, "layers.0": 4, "layers.1": 3, "final_norm": 3}


@pytest.mark.parametrize(
    ("checkpoint", "task", "policy", "frozen"),
    [
        ("whisper", "seq2seq", ["freeze_policy=decoder"], ["model.net."]),
        ("whisper", "seq2seq", ["freeze_policy=top_k", "freeze_policy.k=1"], ["net.conv", "encoder.net.layers.0."]),
        ("wav2vec2_layer", "ctc", ["freeze_policy=top_k", "freeze_policy.k=1"], ["feature_", "layers.0.", "pos_conv"]),
    ],
)
def test_frozen_weights_do_not_change_and_stay_in_eval_mode(
    toy_checkpoints, toy_corpus, tmp_path, checkpoint, task, policy, frozen
):
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


def test_layers_below_the_lowest_trainable_one_store_nothing_for_backward(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)
    run = build(tmp_path, *overrides, "freeze_policy=top_k", "freeze_policy.k=1")
    run.module.train()
    _, first, last = run.module.encoder(torch.randn(1, 9000), torch.tensor([9000]), layers=True).layers
    assert not first.requires_grad
    assert last.requires_grad
