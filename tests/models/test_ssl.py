"""Encoders of waveforms and filter banks: equality with transformers, padding, lengths, layer groups, loading."""

import json
import shutil

import pytest
import safetensors.torch
import torch
import transformers
from hydra.utils import get_class

from ssl_asr.errors import CheckpointError
from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.models.freezing import FreezeEncoder, FreezeFeatureEncoder, apply_policy, check_partition
from ssl_asr.models.loading import backbone_class_for, rebuild
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.ssl_stem import conv_stem, normalize_waveform
from ssl_asr.models.w2v_bert import FilterBanks
from tests.toys import FAMILIES, SSL_FAMILIES, toy_backbone, toy_encoder

LENGTHS = [4000, 9001, 2222, 9500]


@pytest.fixture
def waveforms():
    """Four utterances that differ in length and loudness."""
    return [torch.randn(n) * scale + 0.1 for n, scale in zip(LENGTHS, (1.0, 0.01, 3.0, 0.3), strict=True)]


def padded(waveforms):
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_one_utterance_equals_transformers(toy_checkpoints, waveforms, name):
    toy = FAMILIES[name]
    encoder = toy_encoder(name, toy_checkpoints).eval()
    reference = toy.reference(toy_checkpoints[name])
    for waveform in waveforms:
        values, own_values = toy.values(waveform), toy.own_values(waveform)
        if own_values is not None:
            torch.testing.assert_close(own_values, values, **toy.tolerance)
            values = own_values
        expected = reference(values).last_hidden_state
        out = encoder(waveform[None], torch.tensor([len(waveform)]))
        torch.testing.assert_close(out.h_BFD, expected, atol=3e-5, rtol=1e-4)
        assert out.frame_lengths_B.tolist() == [expected.shape[1]]


def _check_padding(encoder, waveforms):
    out = encoder(*padded(waveforms))
    for row, waveform in enumerate(waveforms):
        alone = encoder(waveform[None], torch.tensor([len(waveform)]))
        frames = int(alone.frame_lengths_B[0])
        assert int(out.frame_lengths_B[row]) == frames == alone.h_BFD.shape[1]
        torch.testing.assert_close(out.h_BFD[row, :frames], alone.h_BFD[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_padding_does_not_change_states(toy_checkpoints, waveforms, name):
    _check_padding(toy_encoder(name, toy_checkpoints).eval(), waveforms)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", [name for name in SSL_FAMILIES if "normalize_waveform" in FAMILIES[name].options])
def test_padding_does_not_change_states_with_and_without_normalization(toy_checkpoints, waveforms, name, normalize):
    _check_padding(toy_encoder(name, toy_checkpoints, normalize_waveform=normalize).eval(), waveforms)


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_padding_does_not_change_states_in_train_mode(toy_checkpoints, waveforms, name):
    """Without dropout. No layer, such as batch norm, takes statistics over the batch."""
    encoder = toy_encoder(name, toy_checkpoints, **dict.fromkeys(FAMILIES[name].dropouts, 0.0)).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    buffers = {key: value.clone() for key, value in encoder.named_buffers()}
    _check_padding(encoder, waveforms)
    assert torch.equal(encoder(*padded(waveforms)).h_BFD, encoder(*padded(waveforms)).h_BFD)
    for key, value in encoder.named_buffers():
        assert torch.equal(value, buffers[key]), key


@pytest.mark.parametrize("name", ["wav2vec2_group", "hubert_group", "wavlm_group"])
def test_padding_changes_states_of_base_models_in_transformers(toy_checkpoints, waveforms, name):
    """The reason for our own group norm. If this fails, transformers has fixed it."""
    reference = transformers.AutoModel.from_pretrained(toy_checkpoints[name]).eval()
    batch, _ = padded(waveforms)
    alone = reference(waveforms[2][None]).last_hidden_state[0]
    assert (reference(batch).last_hidden_state[2, : len(alone)] - alone).abs().max() > 0.01


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_frame_lengths_are_exact_at_every_boundary(toy_checkpoints, name):
    encoder = toy_encoder(name, toy_checkpoints).eval()
    shortest = encoder.min_samples
    assert encoder.frame_lengths(torch.tensor([shortest - 1, shortest, 0])).tolist() == [0, 1, 0]
    few, many = encoder.frame_lengths(torch.tensor([100_000, 200_000])).tolist()
    samples_per_frame = 100_000 // (many - few)
    step = max(1, samples_per_frame // 20)
    for samples in range(shortest, shortest + 45 * step, step):
        out = encoder(torch.randn(1, samples), torch.tensor([samples]))
        assert out.h_BFD.shape[1] == int(out.frame_lengths_B[0])


def test_wav2vec2_base_gives_143_frames_for_2870_ms_and_needs_25_ms():
    config = transformers.Wav2Vec2Config(num_hidden_layers=1).to_dict()
    encoder = SSLEncoder.from_description({"config": config, "normalize": True, "cut_to": None})
    assert encoder.min_samples == 400
    assert encoder.dim == 768
    assert encoder.frame_lengths(torch.tensor([45920])).tolist() == [143]


def test_waveform_normalization_ignores_padding():
    waveform, lengths = padded([torch.randn(500) * 5 + 2, torch.randn(900)])
    normal = normalize_waveform(waveform, lengths)
    assert float(normal[0, 500:].abs().max()) == 0.0
    torch.testing.assert_close(normal[0, :500].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal[0, :500].std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_groups_partition_the_parameters_from_the_lowest_group(toy_checkpoints, name):
    toy = FAMILIES[name]
    encoder = toy_encoder(name, toy_checkpoints)
    groups = encoder.layer_groups()
    check_partition(groups, encoder.parameters())
    names = [group.name for group in groups]
    assert names[: len(toy.groups) + 2] == [*toy.groups, "layers.0", "layers.1"]
    grouped = {id(p) for group in groups for p in group.parameters()}
    ungrouped = [n for n, p in encoder.named_parameters() if id(p) not in grouped and "embed_positions" not in n]
    assert ungrouped == list(toy.ungrouped)


@pytest.mark.parametrize("name", FAMILIES)
def test_description_rebuilds_the_encoder(toy_checkpoints, waveforms, name):
    encoder = toy_encoder(name, toy_checkpoints).eval()
    assert isinstance(encoder, SpeechEncoder)
    twin = rebuild(encoder.description(), get_class).eval()
    assert type(twin) is type(encoder)
    twin.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(twin(*padded(waveforms)).h_BFD, encoder(*padded(waveforms)).h_BFD)


def test_description_of_another_class_is_refused():
    with pytest.raises(CheckpointError, match="is not a SpeechEncoder"):
        rebuild({"encoder": "torch.nn.Linear"}, get_class)


@pytest.mark.parametrize("name", FAMILIES)
def test_backbone_class_is_found_by_model_type(toy_checkpoints, name):
    candidates = {toy.backbone for toy in FAMILIES.values()}
    found = backbone_class_for(toy_checkpoints[name], candidates)
    assert found is FAMILIES[name].backbone
    assert found.pretrained("x", None).load_encoder(toy_checkpoints[name]).n_layers == 2
    others = sorted({kind for other in candidates - {found} for kind in other.model_types})
    with pytest.raises(CheckpointError, match=f"supported are {', '.join(others)}"):
        backbone_class_for(toy_checkpoints[name], candidates - {found})


def test_frozen_groups_get_no_gradient(toy_checkpoints, waveforms):
    encoder = toy_encoder("wav2vec2_group", toy_checkpoints).eval()
    groups = encoder.layer_groups()
    names = [group.name for group in groups]
    apply_policy(groups, FreezeFeatureEncoder().trainable(names, []), FreezeFeatureEncoder().selects)
    encoder.train()
    encoder(*padded(waveforms)).h_BFD.sum().backward()
    assert all(p.grad is None for p in groups[0].parameters())
    assert all(p.grad is not None for p in groups[2].parameters())
    convolved, _ = conv_stem(encoder.net.feature_extractor.conv_layers, *padded(waveforms))
    assert not convolved.requires_grad, "transformers enables gradients here in train mode, also if nothing trains"
    apply_policy(groups, FreezeEncoder().trainable(names, []), FreezeEncoder().selects)
    assert not any(p.requires_grad for p in encoder.parameters())
    apply_policy(groups, frozenset(names), FreezeEncoder().selects)
    trainable = [p for group in groups for p in group.parameters()]
    assert all(p.requires_grad for p in trainable), "a policy can also unfreeze"


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_filter_banks_equal_transformers(scale):
    """Loud and almost silent, with and without an odd frame, in a batch and alone."""
    waveforms = [torch.randn(n).cumsum(0) * 0.01 * scale for n in (16000, 4000, 4160, 720, 900)]
    ours = FilterBanks()(*padded(waveforms))
    lengths = FilterBanks.frame_lengths(torch.tensor([len(w) for w in waveforms]))
    for row, waveform in enumerate(waveforms):
        values = transformers.SeamlessM4TFeatureExtractor()(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
        frames = int(values["attention_mask"].sum())
        assert int(lengths[row]) == frames
        expected = values["input_features"][0, :frames]
        torch.testing.assert_close(ours[row, :frames], expected, atol=2e-3, rtol=1e-3)
        alone = FilterBanks()(waveform[None], torch.tensor([len(waveform)]))
        torch.testing.assert_close(ours[row, :frames], alone[0, :frames], atol=1e-4, rtol=1e-4)


def test_checkpoint_with_convolutions_after_the_encoder_is_refused(toy_checkpoints, tmp_path):
    shutil.copytree(toy_checkpoints["wav2vec2_layer"], tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "add_adapter": True}))
    with pytest.raises(CheckpointError, match="add_adapter"):
        _load(tmp_path / "x")


def _load(folder):
    return toy_backbone("wav2vec2_layer", folder).load_encoder(folder)


def _weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def _copy(source, target, weights):
    target.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(source / name, target)
    safetensors.torch.save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("change", ["missing", "unexpected", "of a deeper model"])
def test_checkpoint_with_weights_that_do_not_match_its_config_is_refused(toy_checkpoints, tmp_path, change):
    weights = _weights(toy_checkpoints["wav2vec2_layer"])
    if change == "missing":
        del weights["encoder.layers.1.attention.k_proj.weight"]
    elif change == "unexpected":
        weights["feature_projection.extra.weight"] = torch.zeros(2)
    else:
        weights["encoder.layers.2.attention.k_proj.weight"] = torch.zeros(16, 16)
    with pytest.raises(CheckpointError, match=r"missing or mismatched weights|does not describe"):
        _load(_copy(toy_checkpoints["wav2vec2_layer"], tmp_path / "x", weights))


def test_weights_of_pretraining_and_fine_tuning_heads_are_ignored(toy_checkpoints, waveforms, tmp_path):
    """Also the prefix of a model with a head, and the old names of weight norm."""
    weights = {}
    for key, value in _weights(toy_checkpoints["wav2vec2_layer"]).items():
        key = key.replace("parametrizations.weight.original0", "weight_g")
        weights[f"wav2vec2.{key.replace('parametrizations.weight.original1', 'weight_v')}"] = value
    weights |= {
        "lm_head.weight": torch.zeros(3, 16),
        "quantizer.codevectors": torch.zeros(2),
        "project_q.bias": torch.zeros(2),
    }
    encoder = _load(_copy(toy_checkpoints["wav2vec2_layer"], tmp_path / "x", weights)).eval()
    expected = _load(toy_checkpoints["wav2vec2_layer"]).eval()(*padded(waveforms))
    torch.testing.assert_close(encoder(*padded(waveforms)).h_BFD, expected.h_BFD)
