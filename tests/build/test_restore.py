"""One assembly: a run, its restored checkpoint and a pretrained model are built alike."""

import json

import pytest
import torch
import transformers

from ssl_asr.build.restore import Speech, pretrained_module, restore_module
from ssl_asr.training.checkpoint_files import read_checkpoint
from tests.toys import FAMILIES
from tests.training.toy_runs import build, toy_overrides

JOINT = ["tokenizer=char", "head=attention_gru", "head.width=8", "head.decoder_width=8", "head.attention_width=8"]
VOCABULARY = ["<pad>", "<unk>", "|", "A", "B", "C", "K"]


@pytest.fixture(scope="module")
def fine_tuned(toy_checkpoints, tmp_path_factory):
    """A toy checkpoint that has a CTC head and an alphabet."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    toy = FAMILIES["wav2vec2_layer"]
    config = toy.config.from_pretrained(toy_checkpoints["wav2vec2_layer"])
    config.vocab_size, config.pad_token_id = len(VOCABULARY), 0
    transformers.AutoModelForCTC.from_config(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": toy.normalize}))
    return folder


def trained(folder, checkpoint, corpus, task, *more):
    """A run after one epoch, and its last checkpoint."""
    overrides = [*toy_overrides(checkpoint, corpus, task), *more, "freeze=false", "trainer.max_epochs=1"]
    run = build(folder, *overrides)
    run.trainer.fit(run.module, datamodule=run.data)
    run.module.eval()
    return run, read_checkpoint(folder / "checkpoints" / "last.ckpt")


def dev_batch(run):
    return next(iter(run.data.val_dataloader()[0]))


@torch.inference_mode()
def attention_log_probs(module, batch):
    """Log-probabilities of the targets' next tokens."""
    if module.task_name == "joint":
        h_BFD, frame_lengths_B = module._trunk(batch, None)
        decoder = module.head.decoder
        return decoder.logits(decoder(batch.tokens_BU, h_BFD, frame_lengths_B)).log_softmax(-1)
    out = module.encode(batch)
    states_BUD = module.model(module._prompted(batch), out.h_BFD, out.context_lengths_B)
    return module.model.logits(states_BUD).log_softmax(-1)


@torch.inference_mode()
def ctc_log_probs(module, batch):
    return module.log_probs(batch)[0]


def assert_same_model(found, expected, batch, *log_probs):
    """The two modules have the same class, parameters, log-probabilities and hypotheses."""
    assert type(found) is type(expected)
    assert [name for name, _ in found.named_parameters()] == [name for name, _ in expected.named_parameters()]
    assert not found.training
    for function in log_probs:
        torch.testing.assert_close(function(found, batch), function(expected, batch), rtol=0, atol=0)
    with torch.inference_mode():
        assert [h.tokens for h in found.transcribe(batch)] == [h.tokens for h in expected.transcribe(batch)]


def test_restored_and_pretrained_ctc_models_equal_the_run(fine_tuned, toy_corpus, tmp_path):
    more = ["head=pretrained", "tokenizer=pretrained"]
    run, checkpoint = trained(tmp_path, fine_tuned, toy_corpus, "ctc", *more)
    batch = dev_batch(run)
    assert_same_model(restore_module(checkpoint).eval(), run.module, batch, ctc_log_probs)
    pretrained = pretrained_module(str(fine_tuned), Speech(), print).eval()
    with pytest.raises(AssertionError, match="not equal|mismatch"):
        assert_same_model(pretrained, run.module, batch, ctc_log_probs)
    pretrained.load_for_inference(checkpoint)
    assert_same_model(pretrained, run.module, batch, ctc_log_probs)


def test_restored_joint_model_equals_the_run(toy_checkpoints, toy_corpus, tmp_path):
    run, checkpoint = trained(tmp_path, toy_checkpoints["wav2vec2_layer"], toy_corpus, "joint", *JOINT)
    restored = restore_module(checkpoint).eval()
    assert_same_model(restored, run.module, dev_batch(run), ctc_log_probs, attention_log_probs)


def test_restored_and_pretrained_seq2seq_models_equal_the_run(toy_checkpoints, toy_corpus, tmp_path):
    run, checkpoint = trained(tmp_path, toy_checkpoints["whisper"], toy_corpus, "seq2seq")
    batch = dev_batch(run)
    assert_same_model(restore_module(checkpoint).eval(), run.module, batch, attention_log_probs)
    pretrained = pretrained_module(str(toy_checkpoints["whisper"]), Speech(), print).eval()
    pretrained.set_decoder(run.config.decoder)
    # A pretrained Whisper starts with its 30-second window.
    pretrained.speech_encoder.set_window(run.config.backbone.window, run.config.backbone.tail_s)
    with pytest.raises(AssertionError, match="not equal|mismatch"):
        assert_same_model(pretrained, run.module, batch, attention_log_probs)
    pretrained.load_for_inference(checkpoint)
    assert_same_model(pretrained, run.module, batch, attention_log_probs)
