"""Checkpoints of fairseq and SpeechBrain become what transformers loads."""

import argparse
import os
import pickle

import pytest
import torch
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2Model

from ssl_asr.errors import CheckpointError
from ssl_asr.models.checkpoints import read_json
from ssl_asr.models.foreign import convert_foreign, read_plain
from tests import toys

# fairseq writes heads of 64.
SMALL = {**toys.SMALL, "hidden_size": 128}
NORMS = {"group": toys.GROUP, "layer": toys.LAYER}
# fairseq's name of each part, by transformers' name, key by key.
LAYER = {
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.q_proj": "self_attn.q_proj",
    "attention.out_proj": "self_attn.out_proj",
    "layer_norm": "self_attn_layer_norm",
    "feed_forward.intermediate_dense": "fc1",
    "feed_forward.output_dense": "fc2",
    "final_layer_norm": "final_layer_norm",
}


def fairseq_weights(net, norm):
    """The weights of a model with the names of fairseq."""
    parts = {
        "feature_projection.layer_norm": "layer_norm",
        "feature_projection.projection": "post_extract_proj",
        "encoder.layer_norm": "encoder.layer_norm",
    }
    for i in range(3):
        parts[f"feature_extractor.conv_layers.{i}.conv"] = f"feature_extractor.conv_layers.{i}.0"
        place = "2.1" if norm == "layer" else "2"
        parts[f"feature_extractor.conv_layers.{i}.layer_norm"] = f"feature_extractor.conv_layers.{i}.{place}"
    for i in range(2):
        parts |= {f"encoder.layers.{i}.{ours}": f"encoder.layers.{i}.{theirs}" for ours, theirs in LAYER.items()}
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}
    names |= {
        "masked_spec_embed": "mask_emb",
        "encoder.pos_conv_embed.conv.bias": "encoder.pos_conv.0.bias",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
    }
    return {names[name]: value for name, value in net.state_dict().items()}


def check_same(net, folder):
    loaded = AutoModel.from_pretrained(folder).eval()
    assert type(loaded) is Wav2Vec2Model
    for name, value in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    audio = torch.randn(1, 4000)
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio).last_hidden_state, net.eval()(audio).last_hidden_state)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("fine_tuned", [False, True])
def test_a_fairseq_checkpoint_is_the_same_model(norm, fine_tuned, tmp_path):
    net = Wav2Vec2Model(Wav2Vec2Config(**SMALL, **NORMS[norm]))
    weights = fairseq_weights(net, norm)
    if fine_tuned:
        weights = {f"w2v_encoder.w2v_model.{name}": value for name, value in weights.items()}
        weights["w2v_encoder.proj.weight"] = torch.zeros(5, 128)
    else:
        weights |= {"quantizer.vars": torch.zeros(1), "final_proj.weight": torch.zeros(2, 2)}
    path = tmp_path / "model.pt"
    torch.save({"args": argparse.Namespace(arch="wav2vec2"), "cfg": None, "model": weights}, path)
    folder = tmp_path / "made"
    assert convert_foreign(path, folder, normalize=None) == []
    check_same(net, folder)
    assert read_json(folder / "preprocessor_config.json")["do_normalize"] is (norm == "layer")


@pytest.mark.parametrize("prefix", ["model.", "model.wav2vec2."])
def test_a_speechbrain_lobe_is_the_same_model(prefix, tmp_path):
    net = Wav2Vec2Model(Wav2Vec2Config(**SMALL, **NORMS["group"]))
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, value in net.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        weights[f"{prefix}{name}"] = value
    path = tmp_path / "wav2vec2.ckpt"
    torch.save(weights, path)
    convert_foreign(path, tmp_path / "made", normalize=True)
    check_same(net, tmp_path / "made")
    assert read_json(tmp_path / "made" / "preprocessor_config.json")["do_normalize"] is True


class Harmful:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_of_a_file_is_run(tmp_path):
    path = tmp_path / "harmful.pt"
    torch.save({"model": {}, "args": Harmful(tmp_path / "made_by_file")}, path)
    with pytest.raises(CheckpointError):
        convert_foreign(path, tmp_path / "made", normalize=None)
    assert not (tmp_path / "made_by_file").exists()
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError):
        read_plain(path)


def test_other_models_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"model": {"encoder.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError, match="has no weights of a wav2vec 2.0 or HuBERT encoder"):
        convert_foreign(path, tmp_path / "made", normalize=None)
