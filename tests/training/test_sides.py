"""The two sides of a model: one optimizer for each side that trains, and frozen parameters that never change."""

from types import SimpleNamespace

import pytest
import torch

from ssl_asr.models.encoder import LayerGroup
from ssl_asr.training.sides import GroupRow, OptimConfig, Sides
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


class _Half:
    """A policy that freezes the groups named in it."""

    thaws = False

    def __init__(self, *frozen):
        self.frozen = frozen

    def trainable(self, encoder, rest):
        return frozenset([*encoder, *rest]) - set(self.frozen)

    def trainable_at(self, encoder, rest, progress):
        return self.trainable(encoder, rest)

    def selects(self, group, name):
        return True


def _sides(*frozen):
    parts = {name: torch.nn.Linear(size, 1) for name, size in (("low", 4), ("high", 9), ("head", 2))}
    encoder = torch.nn.ModuleList([parts["low"], parts["high"]])
    groups = {name: LayerGroup(name, (module,)) for name, module in parts.items()}
    return Sides(
        encoder=encoder,
        encoder_groups=[groups["low"], groups["high"]],
        rest=parts["head"],
        rest_groups=[groups["head"]],
        policy=_Half(*frozen),
    )


def test_the_table_has_sizes_and_peak_rates_of_each_group():
    """Linear layers of 4 + 1, 9 + 1 and 2 + 1 parameters; the lower group has half of the rate, by layer decay."""
    optimizers = {
        "encoder": SimpleNamespace(lr=0.008, layer_decay=0.5),
        "rest": SimpleNamespace(lr=0.1, layer_decay=1.0),
    }
    optim = OptimConfig(optimizers=optimizers, schedulers={}, accumulate=1, clip_norm=None, max_nonfinite=1)
    assert _sides().table(optim) == [
        GroupRow("encoder", "low", 5, 5, 0.004),
        GroupRow("encoder", "high", 10, 10, 0.008),
        GroupRow("rest", "head", 3, 3, 0.1),
    ]
    assert _sides("low").table(optim)[0] == GroupRow("encoder", "low", 0, 5, None)
    assert [row.lr for row in _sides().table(None)] == [None] * 3
    assert _sides("low", "high").encoder_is_frozen
    assert not _sides("low").encoder_is_frozen


def test_a_parameter_in_no_group_is_refused():
    encoder = torch.nn.ModuleList([torch.nn.Linear(4, 1), torch.nn.Linear(9, 1)])
    with pytest.raises(Exception, match="group"):
        Sides(
            encoder=encoder,
            encoder_groups=[LayerGroup("low", (encoder[0],))],
            rest=torch.nn.Linear(2, 1),
            rest_groups=[],
            policy=_Half(),
        )
