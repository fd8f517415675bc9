"""Learning rate and weight decay of each parameter, and the optimizer options."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from ssl_asr.errors import ConfigError
from ssl_asr.models.encoder import LayerGroup
from ssl_asr.training.optimizers import (
    SGD,
    Adadelta,
    Adam,
    AdamW,
    AdamW8bit,
    layer_scales,
    parameter_groups,
    state_bytes,
)

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install -e '.[8bit]'"
)


def _groups():
    parts = [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), nn.Linear(3, 2)]
    return [LayerGroup(f"layers.{i}", (part,)) for i, part in enumerate(parts)]


def test_norms_and_biases_have_no_weight_decay():
    groups = parameter_groups(_groups(), lr=1.0, weight_decay=0.01, layer_decay=1.0)
    assert [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups] == [(3, 1.0, 0.01), (5, 1.0, 0.0)]


def test_frozen_parameters_are_in_no_group():
    groups = _groups()
    groups[1].modules[0].requires_grad_(False)
    made = parameter_groups(groups, lr=1.0, weight_decay=0.01, layer_decay=1.0)
    wanted = {id(p) for group in (groups[0], groups[2]) for p in group.parameters()}
    assert {id(p) for g in made for p in g["params"]} == wanted


def test_layer_decay_lowers_rates_towards_the_bottom_and_the_top_group_is_first():
    groups = _groups()
    made = parameter_groups(groups, lr=0.1, weight_decay=0.0, layer_decay=0.5)
    rates = {id(p): g["lr"] for g in made for p in g["params"]}
    for group, rate in zip(groups, (0.025, 0.05, 0.1), strict=True):
        assert [rates[id(p)] for p in group.parameters()] == pytest.approx([rate] * len(list(group.parameters())))
    assert made[0]["lr"] == pytest.approx(0.1), "the logged learning rate is that of the top group"


def test_layer_scale_of_the_top_group_is_one():
    assert layer_scales(["a", "b", "c"], 0.5) == {"a": 0.25, "b": 0.5, "c": 1.0}


MADE = {
    torch.optim.AdamW: AdamW(lr=0.1, betas=[0.9, 0.98], eps=1e-6, weight_decay=0.5, layer_decay=0.9),
    torch.optim.Adam: Adam(lr=0.1, betas=[0.9, 0.98], eps=1e-6, weight_decay=0.5, layer_decay=0.9),
    torch.optim.Adadelta: Adadelta(lr=0.1, rho=0.9, eps=1e-6, weight_decay=0.5, layer_decay=0.9),
    torch.optim.SGD: SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5, layer_decay=0.9),
}
SETTINGS = {"betas": (0.9, 0.98), "eps": 1e-6, "rho": 0.9, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_every_setting_reaches_the_optimizer(kind):
    optimizer = MADE[kind].build(_groups())
    assert type(optimizer) is kind
    for key, value in SETTINGS.items():
        assert optimizer.defaults.get(key, value) == value
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.5, 0.0}
    assert max(g["lr"] for g in optimizer.param_groups) == pytest.approx(0.1)
    assert min(g["lr"] for g in optimizer.param_groups) == pytest.approx(0.1 * 0.81)


@pytest.mark.parametrize(
    "option",
    [
        AdamW(lr=0.1, betas=[0.9, 0.98], eps=1e-8, weight_decay=0.01, layer_decay=1.0),
        Adadelta(lr=1.0, rho=0.9, eps=1e-8, weight_decay=0.0, layer_decay=1.0),
        SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0, layer_decay=0.5),
        SGD(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, layer_decay=1.0),
    ],
)
def test_size_of_states_is_known_before_an_update(option):
    groups = _groups()
    optimizer = option.build(groups)
    before, expected = [p.clone() for group in groups for p in group.parameters()], state_bytes(optimizer)
    assert all(torch.equal(p, old) for p, old in zip((p for g in groups for p in g.parameters()), before, strict=True))
    assert not optimizer.state
    for parameter in (p for group in groups for p in group.parameters()):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert expected == sum(value.numel() * value.element_size() for value in states)


def test_nesterov_without_momentum_raises_config_error():
    with pytest.raises(ConfigError, match="no momentum"):
        SGD(lr=0.1, momentum=0.0, nesterov=True, weight_decay=0.0, layer_decay=1.0).build(_groups())


def _wide():
    return [LayerGroup("layers.0", (nn.Linear(128, 64),))]


def _train(optimizer, groups, seed, steps):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in groups[0].parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    return [parameter.detach().clone() for parameter in groups[0].parameters()]


@needs_bitsandbytes
def test_adamw_8bit_updates_are_close_to_adamw():
    settings = {"lr": 0.01, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.1, "layer_decay": 1.0}
    full, quantized = _wide(), _wide()
    quantized[0].modules[0].load_state_dict(full[0].modules[0].state_dict())
    start = full[0].modules[0].weight.detach().clone()
    optimizer = AdamW8bit(**settings).build(quantized)
    one, other = _train(AdamW(**settings).build(full), full, 1, 20), _train(optimizer, quantized, 1, 20)
    moved = (one[0] - start).abs().mean()
    assert (one[0] - other[0]).abs().mean() < 0.05 * moved
    assert torch.allclose(one[1], other[1], atol=1e-5), "a vector of 64 elements is too small to be quantized"
    moments = optimizer.state[quantized[0].modules[0].weight]
    assert moments["state1"].dtype == moments["state2"].dtype == torch.uint8


@needs_bitsandbytes
def test_adamw_8bit_resumes_exactly_from_its_state_dict(tmp_path):
    settings = {"lr": 0.01, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.0, "layer_decay": 1.0}
    groups = _wide()
    optimizer = AdamW8bit(**settings).build(groups)
    _train(optimizer, groups, 1, 5)
    weights = {key: value.clone() for key, value in groups[0].modules[0].state_dict().items()}
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    uninterrupted = _train(optimizer, groups, 2, 5)
    again = _wide()
    again[0].modules[0].load_state_dict(weights)
    resumed = AdamW8bit(**settings).build(again)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one, other in zip(uninterrupted, _train(resumed, again, 2, 5), strict=True):
        assert torch.equal(one, other)


def test_missing_bitsandbytes_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"ssl_asr\[8bit\]"):
        AdamW8bit(lr=0.1, betas=[0.9, 0.98], eps=1e-8, weight_decay=0.0, layer_decay=1.0).build(_wide())
