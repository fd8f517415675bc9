import json
import shutil

import pytest
import safetensors.torch
import torch
import transformers
from hydra.utils import get_class

from ssl_asr.errors import CheckpointError
from ssl_asr.models.freezing import FreezeEncoder, FreezeFeatureEncoder, apply_policy, check_partition
from ssl_asr.models.loading import rebuild
from ssl_asr.models.ssl import SSLBackbone, SSLEncoder, normalize_waveform
from ssl_asr.models.w2v_bert import FilterBanks, W2vBertBackbone
from tests.toys import SSL_FAMILIES

LENGTHS = [4000, 9001, 2222, 9500]


def encoder_of(folder, normalize=None):
    option = W2vBertBackbone if folder.name == "w2v_bert" else SSLBackbone
    backbone = option(
        source=str(folder), revision=None, normalize_waveform=normalize, recommended_freeze="feature_encoder"
    )
    return backbone.load_encoder(folder).eval()


def extractor_of(name):
    if name == "w2v_bert":
        return transformers.SeamlessM4TFeatureExtractor()
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=name.endswith("layer"))


@pytest.fixture
def waveforms():
    """Loud and quiet, long and short."""
    return [torch.randn(n) * scale + 0.1 for n, scale in zip(LENGTHS, (1.0, 0.01, 3.0, 0.3), strict=True)]


def padded(waveforms):
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_one_utterance_equals_transformers(toy_checkpoints, waveforms, name):
    encoder = encoder_of(toy_checkpoints[name])
    reference = transformers.AutoModel.from_pretrained(toy_checkpoints[name]).eval()
    for waveform in waveforms:
        values = extractor_of(name)(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
        if name == "w2v_bert":
            # Their filter banks, to which ours are compared below, without the odd frame that is masked there.
            frames = int(values["attention_mask"].sum())
            ours = FilterBanks()(waveform[None], torch.tensor([len(waveform)]))
            torch.testing.assert_close(ours, values["input_features"][:, :frames], atol=2e-3, rtol=1e-3)
            expected = reference(ours).last_hidden_state
        else:
            expected = reference(values.input_values).last_hidden_state
        out = encoder(waveform[None], torch.tensor([len(waveform)]))
        torch.testing.assert_close(out.h_BFD, expected, atol=1e-5, rtol=1e-4)
        assert out.frame_lengths_B.tolist() == [expected.shape[1]]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_a_neighbour_never_changes_an_answer(toy_checkpoints, waveforms, name, normalize):
    encoder = encoder_of(toy_checkpoints[name], normalize)
    out = encoder(*padded(waveforms))
    for row, waveform in enumerate(waveforms):
        alone = encoder(waveform[None], torch.tensor([len(waveform)]))
        frames = int(alone.frame_lengths_B[0])
        assert int(out.frame_lengths_B[row]) == frames == alone.h_BFD.shape[1]
        torch.testing.assert_close(out.h_BFD[row, :frames], alone.h_BFD[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["wav2vec2_group", "hubert_group", "wavlm_group"])
def test_transformers_itself_lets_neighbours_change_a_base_models_answer(toy_checkpoints, waveforms, name):
    """Why the group norm is our own: with the same weights, padding moves transformers' states."""
    reference = transformers.AutoModel.from_pretrained(toy_checkpoints[name]).eval()
    batch, _ = padded(waveforms)
    alone = reference(waveforms[2][None]).last_hidden_state[0]
    assert (reference(batch).last_hidden_state[2, : len(alone)] - alone).abs().max() > 0.01


@pytest.mark.parametrize("name", ["wav2vec2_group", "wavlm_layer", "w2v_bert"])
def test_frame_lengths_at_every_boundary(toy_checkpoints, name):
    encoder = encoder_of(toy_checkpoints[name])
    shortest = encoder.min_samples
    assert encoder.frame_lengths(torch.tensor([shortest - 1, shortest, 0])).tolist() == [0, 1, 0]
    step = 1 if name != "w2v_bert" else 40
    for samples in range(shortest, shortest + 45 * step, step):
        out = encoder(torch.randn(1, samples), torch.tensor([samples]))
        assert out.h_BFD.shape[1] == int(out.frame_lengths_B[0])


def test_the_tutorials_figures():
    """wav2vec 2.0's geometry: 2.87 s are 143 frames, 25 ms the least."""
    config = transformers.Wav2Vec2Config(num_hidden_layers=1).to_dict()
    encoder = SSLEncoder.from_description({"config": config, "normalize": True, "cut_to": None})
    assert encoder.min_samples == 400
    assert encoder.dim == 768
    assert encoder.frame_lengths(torch.tensor([45920])).tolist() == [143]


def test_normalisation_is_of_the_utterance_not_of_the_row():
    waveform, lengths = padded([torch.randn(500) * 5 + 2, torch.randn(900)])
    normal = normalize_waveform(waveform, lengths)
    assert float(normal[0, 500:].abs().max()) == 0.0
    torch.testing.assert_close(normal[0, :500].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal[0, :500].std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_layer_groups_are_a_partition_from_the_samples_up(toy_checkpoints, name):
    encoder = encoder_of(toy_checkpoints[name])
    groups = encoder.layer_groups()
    check_partition(groups, encoder.parameters())
    names = [group.name for group in groups]
    convolutions = [] if name == "w2v_bert" else ["feature_encoder"]
    assert names[: len(convolutions) + 3] == [*convolutions, "projection", "layers.0", "layers.1"]
    grouped = {id(p) for group in groups for p in group.parameters()}
    assert [n for n, p in encoder.named_parameters() if id(p) not in grouped] == ["net.masked_spec_embed"]


@pytest.mark.parametrize("name", SSL_FAMILIES)
def test_a_description_rebuilds_the_model(toy_checkpoints, waveforms, name):
    encoder = encoder_of(toy_checkpoints[name])
    twin = rebuild(encoder.description(), get_class).eval()
    twin.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(twin(*padded(waveforms)).h_BFD, encoder(*padded(waveforms)).h_BFD)


def test_no_gradient_reaches_below_what_trains(toy_checkpoints, waveforms):
    encoder = encoder_of(toy_checkpoints["wav2vec2_group"])
    groups = encoder.layer_groups()
    names = [group.name for group in groups]
    apply_policy(groups, FreezeFeatureEncoder().trainable(names, []), FreezeFeatureEncoder().selects)
    encoder.train()
    encoder(*padded(waveforms)).h_BFD.sum().backward()
    assert all(p.grad is None for p in groups[0].parameters())
    assert all(p.grad is not None for p in groups[2].parameters())
    convolved = encoder._convolve(*padded(waveforms))
    assert not convolved.requires_grad, "transformers switches gradients on here even where nothing trains"
    apply_policy(groups, FreezeEncoder().trainable(names, []), FreezeEncoder().selects)
    assert not any(p.requires_grad for p in encoder.parameters())
    apply_policy(groups, frozenset(names), FreezeEncoder().selects)
    trainable = [p for group in groups for p in group.parameters()]
    assert all(p.requires_grad for p in trainable), "policies set both ways"


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_filter_banks_equal_transformers(scale):
    """Speech-like and nearly silent, an odd frame and none too many, side by side and alone."""
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


def test_convolutions_after_the_encoder_are_refused(toy_checkpoints, tmp_path):
    shutil.copytree(toy_checkpoints["wav2vec2_layer"], tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, "add_adapter": True}))
    with pytest.raises(CheckpointError, match="add_adapter"):
        encoder_of(tmp_path / "x")


def _weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def _copy(source, target, weights):
    target.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(source / name, target)
    safetensors.torch.save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("change", ["lacks", "has more", "is of a deeper model"])
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(toy_checkpoints, tmp_path, change):
    weights = _weights(toy_checkpoints["wav2vec2_layer"])
    if change == "lacks":
        del weights["encoder.layers.1.attention.k_proj.weight"]
    elif change == "has more":
        weights["feature_projection.extra.weight"] = torch.zeros(2)
    else:
        weights["encoder.layers.2.attention.k_proj.weight"] = torch.zeros(16, 16)
    with pytest.raises(CheckpointError, match=r"missing or mismatched weights|does not describe"):
        encoder_of(_copy(toy_checkpoints["wav2vec2_layer"], tmp_path / "x", weights))


def test_what_pretraining_and_fine_tuning_left_is_set_aside(toy_checkpoints, waveforms, tmp_path):
    """A head, a quantizer, the prefix of a whole model, and the old names of weight norm."""
    weights = {}
    for key, value in _weights(toy_checkpoints["wav2vec2_layer"]).items():
        key = key.replace("parametrizations.weight.original0", "weight_g")
        weights[f"wav2vec2.{key.replace('parametrizations.weight.original1', 'weight_v')}"] = value
    weights |= {
        "lm_head.weight": torch.zeros(3, 16),
        "quantizer.codevectors": torch.zeros(2),
        "project_q.bias": torch.zeros(2),
    }
    encoder = encoder_of(_copy(toy_checkpoints["wav2vec2_layer"], tmp_path / "x", weights))
    expected = encoder_of(toy_checkpoints["wav2vec2_layer"])(*padded(waveforms))
    torch.testing.assert_close(encoder(*padded(waveforms)).h_BFD, expected.h_BFD)
