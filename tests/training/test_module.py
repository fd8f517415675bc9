"""What modules of every task do beyond training: options of `transcribe`, decoders and limits on tokens."""

import pytest

from ssl_asr.config.nodes import option_node
from ssl_asr.config.options import build_option
from ssl_asr.errors import ConfigError
from ssl_asr.training.module import TranscribeOptions
from tests.training.toy_runs import build, toy_overrides

TASKS = {
    "ctc": ("wav2vec2_layer", []),
    "joint": ("wav2vec2_layer", ["tokenizer=char", "head=attention_gru", "head.width=8", "head.decoder_width=8"]),
    "seq2seq": ("whisper", []),
}


@pytest.fixture(scope="module")
def runs(toy_checkpoints, toy_corpus, tmp_path_factory):
    """An untrained run of each task."""
    made = {}
    for task, (name, more) in TASKS.items():
        overrides = [*toy_overrides(toy_checkpoints[name], toy_corpus, task), *more]
        made[task] = build(tmp_path_factory.mktemp(task), *overrides)
        made[task].module.eval()
    return made


def decoder(name, **settings):
    return build_option(option_node("decoder", name, settings), "decoder")


def dev_batch(run):
    return next(iter(run.data.val_dataloader()[0]))


def test_alignment_without_a_measure_of_confidence_is_an_assertion_error(runs):
    with pytest.raises(AssertionError, match="an alignment needs a measure of confidence"):
        runs["ctc"].module.transcribe(dev_batch(runs["ctc"]), options=TranscribeOptions(align=True))


@pytest.mark.parametrize("task", ["ctc", "joint"])
def test_alignment_returns_the_words_of_the_manifest(runs, task):
    batch = dev_batch(runs[task])
    options = TranscribeOptions(align=True, confidence="max_prob")
    for utterance, hypothesis in zip(
        batch.utterances, runs[task].module.transcribe(batch, options=options), strict=True
    ):
        assert hypothesis.text == utterance.text
        assert [word.text for word in hypothesis.words] == utterance.text.split()


def test_token_cap_on_ctc_raises_config_error(runs):
    with pytest.raises(ConfigError, match="^max_tokens_per_s: this model does not decode token by token"):
        runs["ctc"].module.cap_tokens(2.0)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("ctc", "whisper_greedy"),
        ("ctc", "attention_greedy"),
        ("joint", "whisper_beam"),
        ("seq2seq", "ctc_greedy"),
        ("seq2seq", "attention_beam"),
    ],
)
def test_decoder_of_another_task_raises_config_error_and_keeps_the_decoder(runs, task, name):
    module = runs[task].module
    before = module.decoder
    with pytest.raises(ConfigError, match=f"^decoder: .* does not decode models of task {task}"):
        module.set_decoder(decoder(name))
    assert module.decoder is before
