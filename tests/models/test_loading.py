"""Checkpoints in half precision: what they are stored in is said, and what trains is float32."""

import json

import pytest
import torch
from transformers import AutoModel, WhisperForConditionalGeneration

from ssl_asr.errors import CheckpointError
from ssl_asr.models.loading import backbone_folder, read_weights
from tests.toys import toy_backbone

FAMILIES = ("whisper", "wav2vec2_layer", "parakeet")


def half_checkpoint(source, folder, dtype, *, as_pickle=False):
    """The checkpoint with weights of a type."""
    kind = WhisperForConditionalGeneration if source.name == "whisper" else AutoModel
    model = kind.from_pretrained(source).to(dtype)
    model.save_pretrained(folder)
    for file in source.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    if as_pickle:
        weights = folder / "model.safetensors"
        torch.save(model.state_dict(), weights.with_name("pytorch_model.bin"))
        weights.unlink()
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
def test_half_precision_is_said_and_trains_in_float32(toy_checkpoints, tmp_path, family, dtype, name):
    folder = half_checkpoint(toy_checkpoints[family], tmp_path / family, dtype)
    said = []
    backbone = toy_backbone(family, folder)
    encoder = backbone.load_encoder(backbone_folder(backbone, said.append))
    assert said == [f"{folder}: the weights are stored as {name}, and are loaded as float32"]
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert {buffer.dtype for buffer in encoder.buffers() if buffer.is_floating_point()} <= {torch.float32}


def test_other_checkpoints_are_loaded_without_a_word(toy_checkpoints, tmp_path):
    said = []
    for family in FAMILIES:
        backbone_folder(toy_backbone(family, toy_checkpoints[family]), said.append)
    assert said == []
    # Without a safetensors file, config.json says it, also by the name that it had in earlier versions.
    folder = half_checkpoint(toy_checkpoints["wav2vec2_layer"], tmp_path / "pickle", torch.float16, as_pickle=True)
    backbone = toy_backbone("wav2vec2_layer", folder)
    for key in ("dtype", "torch_dtype"):
        config = json.loads((folder / "config.json").read_text())
        config.pop("dtype", None)
        (folder / "config.json").write_text(json.dumps({**config, key: "float16"}))
        backbone_folder(backbone, said.append)
    assert len(said) == 2
    assert said[0] == said[1]
    assert {parameter.dtype for parameter in backbone.load_encoder(folder).parameters()} == {torch.float32}


@pytest.mark.parametrize("as_pickle", [False, True])
@pytest.mark.parametrize("length", [0, 5, 100, -10])
def test_a_damaged_file_of_weights_is_one_line_when_it_is_loaded(toy_checkpoints, tmp_path, as_pickle, length):
    folder = half_checkpoint(toy_checkpoints["wav2vec2_layer"], tmp_path / "cut", torch.float16, as_pickle=as_pickle)
    weights = folder / ("pytorch_model.bin" if as_pickle else "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:length])
    backbone = toy_backbone("wav2vec2_layer", folder)
    with pytest.raises(CheckpointError, match="cannot be loaded: .*Get the checkpoint again") as caught:
        backbone.load_encoder(backbone_folder(backbone, lambda _: None))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_adapters_is_one_line(tmp_path):
    path = tmp_path / "adapter.deu.safetensors"
    path.write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="adapter.deu.safetensors: cannot be loaded"):
        read_weights(path)
