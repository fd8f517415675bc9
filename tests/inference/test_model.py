"""Models by their names: which checkpoint is loaded, and with which options."""

import pytest

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.inference.model import InferenceOptions, find_checkpoint, load_encoder, load_label_tokenizer, load_model
from tests.training.toy_runs import build, toy_overrides

SHORT = ["trainer.max_epochs=1", "trainer.max_steps=1", "data.downmix=first"]


@pytest.fixture(scope="module")
def ctc_run(toy_checkpoints, toy_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc")
    made = build(folder, *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), *SHORT)
    made.trainer.fit(made.module, datamodule=made.data)
    return folder


@pytest.fixture(scope="module")
def whisper_run(toy_checkpoints, toy_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    made = build(folder, *toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"), *SHORT)
    made.trainer.fit(made.module, datamodule=made.data)
    return folder


def test_the_best_checkpoint_of_a_run_comes_before_the_last(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").touch()
    assert find_checkpoint(str(tmp_path / "run")) == checkpoints / "last.ckpt"
    (checkpoints / "best.ckpt").touch()
    assert find_checkpoint(str(tmp_path / "run")) == checkpoints / "best.ckpt"
    assert find_checkpoint(str(checkpoints / "last.ckpt")) == checkpoints / "last.ckpt"


def test_other_names_are_those_of_pretrained_models(tmp_path):
    assert find_checkpoint("openai/whisper-tiny") is None
    with pytest.raises(CheckpointError, match=r"neither checkpoints/best\.ckpt nor config\.json"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "config.json").touch()
    assert find_checkpoint(str(tmp_path)) is None


def test_a_run_is_loaded_in_eval_mode_with_its_labels(ctc_run):
    module = load_model(str(ctc_run), InferenceOptions())
    assert not module.training
    assert module.downmix == "first", "as in training"
    encoder = load_encoder(str(ctc_run), InferenceOptions())
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    tokenizer = load_label_tokenizer(str(ctc_run))
    assert tokenizer.labels() == module.tokenizer.labels()
    with pytest.raises(ConfigError, match="this model does not know languages"):
        load_model(str(ctc_run), InferenceOptions(detect_language=True))


def test_labels_are_those_of_ctc_runs_only(whisper_run, tmp_path):
    with pytest.raises(CheckpointError, match="has Whisper's tokens, not labels"):
        load_label_tokenizer(str(whisper_run))
    with pytest.raises(CheckpointError, match="is neither a run directory nor a checkpoint"):
        load_label_tokenizer(str(tmp_path / "nothing"))


def test_the_window_and_the_number_of_tokens_can_be_changed(whisper_run):
    plain = load_model(str(whisper_run), InferenceOptions())
    changed = load_model(str(whisper_run), InferenceOptions(window="30s", max_tokens_per_s=1.5))
    assert changed.decoder.max_tokens_per_s == 1.5
    assert plain.decoder.max_tokens_per_s == 4
    assert load_encoder(str(whisper_run), InferenceOptions(window="30s")).window == "30s"


@pytest.mark.parametrize(("language", "detect", "expected"), [("Dutch", False, "missing"), ("auto", True, "all")])
def test_language_and_task_of_a_pretrained_model(language, detect, expected):
    options = InferenceOptions(language=language, whisper_task="translate", detect_language=detect)
    speech = options.speech()
    assert (speech.language, speech.task, speech.detect) == (
        {"Dutch": "Dutch", "auto": None}[language],
        "translate",
        expected,
    )
