"""The two sides of a model: one optimizer for each side that trains, and frozen parameters that never change."""

import pytest
import torch

from tests.training.toy_runs import build, parameters_of, toy_overrides


def test_each_side_with_trainable_parameters_has_an_optimizer_and_a_scheduler(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus)
    run = build(tmp_path, *overrides, "freeze=false")
    optimizers, schedulers = run.module.configure_optimizers()
    assert [len(optimizers), len(schedulers)] == [2, 2]
    encoder = {id(p) for p in run.module.encoder.parameters() if p.requires_grad}
    first, second = ({id(p) for g in o.param_groups for p in g["params"]} for o in optimizers)
    assert first == encoder
    assert second == {id(p) for p in run.module.head.parameters()}
    frozen = build(tmp_path, *overrides, "freeze=true")
    optimizers, schedulers = frozen.module.configure_optimizers()
    assert [len(optimizers), len(schedulers)] == [1, 1]


@pytest.mark.parametrize("policy", ["freeze=true", "freeze_policy=feature_encoder"])
@pytest.mark.parametrize("name", ["wav2vec2_group", "wavlm_layer", "whisper"])
def test_frozen_parameters_do_not_change_and_frozen_encoder_is_deterministic(
    toy_checkpoints, toy_corpus, tmp_path, policy, name
):
    run = build(tmp_path, *toy_overrides(toy_checkpoints[name], toy_corpus), policy)
    module = run.module
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    before = parameters_of(module)
    run.trainer.fit(module, datamodule=run.data)
    after = parameters_of(module)
    assert frozen
    for parameter in before:
        same = torch.equal(before[parameter], after[parameter])
        assert same or parameter not in frozen, parameter
    assert not torch.equal(before["head.layers.1.weight"], after["head.layers.1.weight"])
    module.train()
    if policy == "freeze=true":
        assert not any(m.training for m in module.encoder.modules())
        batch = next(iter(run.data.val_dataloader()[0]))
        a, b = (module.encoder(batch.waveform_BT, batch.lengths_B).h_BFD for _ in range(2))
        assert torch.equal(a, b), "two forwards in train mode are equal"
        log_probs, _ = module.log_probs(batch)
        assert log_probs.requires_grad
        assert not module.encode(batch).h_BFD.requires_grad
