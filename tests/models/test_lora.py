"""LoRA adapters: no effect at the start, a gradient in every layer, and no trace after merging. Also BitFit."""

import pytest
import torch

from ssl_asr.errors import ConfigError
from ssl_asr.models.adapters import BitFit, LoRA, merge_adapters
from ssl_asr.models.freezing import apply_policy, check_partition
from tests.toys import FAMILIES, SSL_FAMILIES, toy_encoder

OPTIONS = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": None, "encoder": True, "decoder": True}


def lora(**changed):
    return LoRA(**{**OPTIONS, "checkpoint": "whole", **changed})


def states(encoder):
    generator = torch.Generator().manual_seed(3)
    return encoder(torch.randn(2, 9000, generator=generator), torch.tensor([9000, 7000])).h_BFD


def train_only(encoder, policy):
    groups = encoder.layer_groups()
    names = [group.name for group in groups]
    apply_policy(groups, policy.trainable(names, []), policy.selects)
    check_partition(groups, encoder.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_have_no_effect_at_the_start_and_all_get_gradients(toy_checkpoints, name):
    encoder = toy_encoder(name, toy_checkpoints).eval()
    before = states(encoder)
    lora().prepare(encoder, None)
    torch.testing.assert_close(states(encoder), before)
    train_only(encoder, lora())
    adapters = {key: p for key, p in encoder.named_parameters() if "lora_" in key}
    assert len(adapters) == 2 * 2 * 2, "two matrices for two targets in two layers"
    assert {key for key, p in encoder.named_parameters() if p.requires_grad} == set(adapters)
    for key, p in adapters.items():
        if "lora_B" in key:
            torch.nn.init.normal_(p)
    states(encoder).square().sum().backward()
    for key, p in adapters.items():
        assert p.grad is not None, f"{key} has no gradient"
        assert p.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_adapters_keep_the_output_and_the_original_keys(toy_checkpoints, name):
    encoder = toy_encoder(name, toy_checkpoints).eval()
    plain, keys = states(encoder), set(encoder.state_dict())
    lora().prepare(encoder, None)
    for key, p in encoder.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(p)
    trained = states(encoder)
    assert (trained - plain).abs().max() > 1e-3
    merge_adapters(encoder)
    torch.testing.assert_close(states(encoder), trained, atol=1e-4, rtol=1e-4)
    assert set(encoder.state_dict()) == keys


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_adapters_in_wavlm_attention_change_the_states(toy_checkpoints, target):
    """transformers reads the weights of these layers without calling them, so its adapters would have no effect."""
    encoder = toy_encoder("wavlm_layer", toy_checkpoints).eval()
    before = states(encoder)
    lora(targets=[target]).prepare(encoder, None)
    for key, p in encoder.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(p)
    assert (states(encoder) - before).abs().max() > 1e-3


def test_unknown_targets_raise_config_error(toy_checkpoints):
    with pytest.raises(ConfigError, match=r"no linear layers named qproj\W+Known names are .*q_proj"):
        lora(targets=["qproj", "v_proj"]).prepare(toy_encoder("hubert_group", toy_checkpoints), None)
    with pytest.raises(ConfigError, match="no layer gets adapters"):
        lora(encoder=False).trainable(["feature_encoder", "layers.0"], ["head"])


def test_encoder_and_decoder_are_selected_and_new_groups_train_completely():
    names, rest = ["feature_encoder", "layers.0", "final_norm"], ["decoder.embed", "decoder.layers.0"]
    assert lora().trainable(names, rest) == {"layers.0", "decoder.layers.0"}
    assert lora(encoder=False).trainable(names, rest) == {"decoder.layers.0"}
    assert lora(decoder=False).trainable(names, ["states", "head"]) == {"layers.0", "states", "head"}
    assert lora().selects("head", "layers.0.weight")
    assert not lora().selects("layers.0", "fc1.weight")


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_bitfit_trains_only_biases(toy_checkpoints, name):
    encoder = toy_encoder(name, toy_checkpoints)
    train_only(encoder, BitFit())
    trains = {key for key, p in encoder.named_parameters() if p.requires_grad}
    assert trains
    assert all(key.endswith("bias") and "feature_extractor" not in key for key in trains)
    assert BitFit().selects("head", "layers.0.weight")
