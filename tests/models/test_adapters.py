"""MMS adapters: logits equal transformers, and only adapters and head train."""

import json

import pytest
import safetensors.torch
import torch
import transformers

from ssl_asr.build.restore import restore_module
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.models.adapters import Adapters
from ssl_asr.models.freezing import apply_policy
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.toys import FAMILIES, toy_encoder
from tests.training.toy_runs import build, toy_overrides

VOCABULARIES = {
    "eng": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6},
    "deu": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "ä": 6, "k": 7},
}


@pytest.fixture(scope="module")
def mms(toy_checkpoints, tmp_path_factory):
    """Returns a tiny checkpoint like MMS-1b-all: one encoder, with adapters and a head for each of two languages."""
    folder = tmp_path_factory.mktemp("mms")
    config = FAMILIES["wav2vec2_layer"].config.from_pretrained(toy_checkpoints["wav2vec2_layer"])
    config.adapter_attn_dim, config.vocab_size, config.pad_token_id = 4, 7, 0
    torch.manual_seed(0)
    model = transformers.AutoModelForCTC.from_config(config)
    model.save_pretrained(folder)
    for language, vocabulary in VOCABULARIES.items():
        weights = {key: torch.randn_like(value) for key, value in model._get_adapters().items()}
        weights["lm_head.weight"], weights["lm_head.bias"] = (
            torch.randn(len(vocabulary), 16),
            torch.randn(len(vocabulary)),
        )
        safetensors.torch.save_file(weights, folder / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    (folder / "vocab.json").write_text(json.dumps(VOCABULARIES))
    (folder / "tokenizer_config.json").write_text(json.dumps({"target_lang": "eng"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    return folder


@pytest.mark.parametrize("language", VOCABULARIES)
def test_logits_of_a_language_equal_transformers(mms, language):
    module = load_model(str(mms), InferenceOptions(language=language), lambda _: None)
    theirs = transformers.AutoModelForCTC.from_pretrained(mms, target_lang=language, ignore_mismatched_sizes=True)
    waveform = torch.randn(8000)
    values = transformers.Wav2Vec2FeatureExtractor()(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        logits_BFV = theirs.eval()(values.input_values).logits
        out = module.encoder(waveform[None], torch.tensor([8000]))
        ours_BFV = module.head(out.h_BFD, out.frame_lengths_B)
    rows = {" " if token == "|" else token: row for token, row in VOCABULARIES[language].items()}
    assert module.tokenizer.characters == [c for c in rows if len(c) == 1]
    columns = [rows[c] for c in ("<pad>", "<unk>", *module.tokenizer.characters)]
    torch.testing.assert_close(ours_BFV, logits_BFV[..., columns], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["de", "de-DE", "German", "DEU"])
def test_language_of_any_form_loads_its_adapters(mms, form):
    module, expected = (load_model(str(mms), InferenceOptions(language=name), lambda _: None) for name in (form, "deu"))
    assert module.tokenizer.characters == expected.tokenizer.characters
    ours, theirs = module.state_dict(), expected.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("auto", "got language None, expected one of the 2 languages"),
        ("gsw", "got language gsw, expected one of the 2 languages .*did you mean 'deu'"),
        (None, "got language None, expected one of the 2 languages .*known names: deu, eng"),
        ("dea", "got language dea, expected one of the 2 languages .*did you mean 'deu'"),
    ],
)
def test_missing_language_raises_checkpoint_error(mms, language, message):
    with pytest.raises(CheckpointError, match=message):
        load_model(str(mms), InferenceOptions(language=language), lambda _: None)


def test_only_adapters_and_head_train_and_checkpoint_restores(mms, toy_corpus, tmp_path):
    run = build(
        tmp_path,
        *toy_overrides(mms, toy_corpus),
        "backbone.adapter_language=eng",
        "freeze_policy=adapters",
        "trainer.max_epochs=1",
    )
    before = {key: value.clone() for key, value in run.module.state_dict().items()}
    run.trainer.fit(run.module, datamodule=run.data)
    moved = {key for key, value in run.module.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in moved if not key.startswith("_metrics")} == {
        key for key, _ in run.module.named_parameters() if "adapter_layer" in key or key.startswith("head.")
    }
    twin = restore_module(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")).eval()
    batch = next(iter(run.data.val_dataloader()[0]))
    torch.testing.assert_close(twin.log_probs(batch)[0], run.module.eval().log_probs(batch)[0])


def test_new_adapters_are_in_every_layer_and_get_gradients(toy_checkpoints):
    encoder = toy_encoder("wav2vec2_layer", toy_checkpoints, adapter_dim=4)
    groups = encoder.layer_groups()
    apply_policy(groups, Adapters().trainable([group.name for group in groups], []), Adapters().selects)
    encoder(torch.randn(1, 6000), torch.tensor([6000])).h_BFD.square().sum().backward()
    trained = {key: p for key, p in encoder.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 6, "a norm and two linear layers in each of two layers"
    for key, p in trained.items():
        assert "adapter_layer" in key
        assert p.grad is not None, f"{key} has no gradient"
        assert p.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wav2vec2_group", {"adapter_dim": 4}, "layer norm first"),
        ("wavlm_layer", {"adapter_dim": 4}, "layer norm first"),
        ("wav2vec2_layer", {"adapter_language": "eng"}, "no adapters for languages"),
    ],
)
def test_unsupported_adapter_options_raise_config_error(toy_checkpoints, name, options, message):
    with pytest.raises(ConfigError, match=message):
        toy_encoder(name, toy_checkpoints, **options)


def test_adapter_policy_without_adapters_raises_config_error(toy_checkpoints):
    with pytest.raises(ConfigError, match="no adapters to train"):
        Adapters().prepare(toy_encoder("wav2vec2_layer", toy_checkpoints), None)
