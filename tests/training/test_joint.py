"""Joint CTC-attention and Whisper with auxiliary CTC: losses, restored runs, and options that conflict."""

import re
from unittest import mock

import pytest
import torch
from torch.nn import functional

from ssl_asr.build.restore import restore_module
from ssl_asr.errors import ConfigError
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.training.checkpoint_files import read_checkpoint
from ssl_asr.training.module import TranscribeOptions
from ssl_asr.training.tasks import Joint
from tests.training.toy_runs import build, config_of, toy_overrides

SMALL = {
    "attention_gru": ["head.width=8", "head.decoder_width=8", "head.kernel=2", "head.attention_width=8"],
    "attention_transformer": ["head.width=8", "head.heads=2", "head.decoder_layers=1", "head.feed_forward=8"],
}


def joint(checkpoints, corpus, head="attention_gru", backbone="wav2vec2_layer"):
    overrides = [o for o in toy_overrides(checkpoints[backbone], corpus) if not o.startswith("task=")]
    return [*overrides, "task=joint", "tokenizer=char", f"head={head}", "decoder=attention_greedy", *SMALL[head]]


def test_weight_of_ctc_changes_linearly_and_then_stays_constant():
    task = Joint(ctc_weight=0.5, ctc_weight_end=0.1, ctc_weight_updates=10, label_smoothing=0.0)
    assert [task.ctc_share(u) for u in (0, 5, 10, 99)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    task = Joint(ctc_weight=0.2, ctc_weight_end=None, ctc_weight_updates=None, label_smoothing=0.0)
    assert task.ctc_share(7) == 0.2


@pytest.mark.parametrize("backbone", ["wav2vec2_layer", "whisper"])
@pytest.mark.parametrize("head", SMALL)
def test_run_trains_ctc_and_attention_and_is_restored_from_its_checkpoint(
    toy_checkpoints, toy_corpus, tmp_path, head, backbone
):
    run = build(tmp_path, *joint(toy_checkpoints, toy_corpus, head, backbone), "freeze=false", "trainer.max_epochs=1")
    before = {key: value.clone() for key, value in run.module.head.state_dict().items()}
    run.trainer.fit(run.module, datamodule=run.data)
    after = run.module.head.state_dict()
    assert [key for key in before if torch.equal(before[key], after[key]) and "k_proj.bias" not in key] == []
    assert {"train/loss_ctc", "train/loss_attention", "train/ctc_weight"} <= set(run.trainer.callback_metrics)
    twin = restore_module(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")).eval()
    batch = next(iter(run.data.val_dataloader()[0]))
    found = run.module.eval().transcribe(batch)
    assert [h.tokens for h in twin.transcribe(batch)] == [h.tokens for h in found]
    torch.testing.assert_close([h.score for h in twin.transcribe(batch)], [h.score for h in found])


def test_loss_is_the_weighted_sum_of_ctc_and_attention_losses(toy_checkpoints, toy_corpus, tmp_path):
    overrides = joint(toy_checkpoints, toy_corpus)
    run = build(tmp_path, *overrides, "task.ctc_weight=0.3", "trainer.max_epochs=1", "freeze=false")
    run.trainer.fit(run.module, datamodule=run.data)
    module, batch = run.module.eval(), next(iter(run.data.val_dataloader()[0]))
    total = 0.0
    with torch.no_grad():
        for row, length in enumerate(batch.token_lengths_B.tolist()):
            samples, tokens = int(batch.lengths_B[row]), batch.tokens_BU[row, :length]
            out = module.encoder(batch.waveform_BT[row : row + 1, :samples], batch.lengths_B[row : row + 1])
            frames = out.frame_lengths_B
            trunk = module.head.trunk(out.h_BFD[:, : int(frames)], frames)
            ctc = functional.ctc_loss(
                module.head.ctc(trunk).log_softmax(-1).transpose(0, 1), tokens[None], frames, torch.tensor([length])
            )
            zero = torch.zeros(1, dtype=torch.int64)
            states = module.head.decoder(torch.cat([zero, tokens])[None], trunk, frames)
            attention = functional.cross_entropy(module.head.decoder.logits(states)[0], torch.cat([tokens, zero]))
            total += float(0.3 * ctc + 0.7 * attention)
        found = module.loss(batch)
    assert float(found.total) == pytest.approx(total, rel=1e-4)
    assert int(found.count) == len(batch)


@pytest.mark.parametrize(
    ("decoder", "confidence", "calls"),
    [
        ("attention_beam", "max_prob", 1),
        ("attention_beam", None, 1),
        ("attention_greedy", "max_prob", 1),
        ("attention_greedy", None, 0),
    ],
)
def test_decoder_and_word_times_share_one_pass_through_the_ctc_layer(
    toy_checkpoints, toy_corpus, tmp_path, decoder, confidence, calls
):
    overrides = [o for o in joint(toy_checkpoints, toy_corpus) if not o.startswith("decoder=")]
    run = build(tmp_path, *overrides, f"decoder={decoder}")
    run.data.setup("fit")
    module, batch = run.module.eval(), next(iter(run.data.val_dataloader()[0]))
    options, seen = TranscribeOptions(confidence=confidence), []
    # The untrained decoder would write empty texts.
    torch.nn.init.constant_(module.head.decoder.out.bias[:1], -1e3)
    with torch.no_grad(), mock.patch.object(module.head.ctc, "forward", wraps=module.head.ctc.forward) as forward:
        found = module.transcribe(batch, None, options)
        assert forward.call_count == calls
        expected = [row.tokens for row in module.transcribe(batch)]
        log_probs_BFV, frame_lengths_B = module.log_probs(batch)
    assert [row.tokens for row in found] == expected
    if confidence is None:
        return
    timer = module._timer(options)
    for row, log_probs_FV, frames in zip(found, log_probs_BFV, frame_lengths_B.tolist(), strict=True):
        words = timer.words(row.tokens, log_probs_FV[:frames])
        assert [(word.text, word.confidence) for word in row.words] == [(word.text, word.confidence) for word in words]
        seen += words
    assert seen


def test_ctc_decoder_transcribes_and_takes_no_token_cap(toy_checkpoints, toy_corpus, tmp_path):
    overrides = joint(toy_checkpoints, toy_corpus)
    run = build(tmp_path, *overrides, "decoder=ctc_greedy", "trainer.max_epochs=1")
    run.trainer.fit(run.module, datamodule=run.data)
    batch = next(iter(run.data.val_dataloader()[0]))
    module = run.module.eval()
    logits = module.log_probs(batch)[0]
    assert logits.shape[-1] == run.data.tokenizer.vocab_size
    module.transcribe(batch)
    with pytest.raises(ConfigError, match="max_tokens_per_s: this model does not decode token by token"):
        load_model(str(tmp_path), InferenceOptions(max_tokens_per_s=2.0), print)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["task=joint", "head=dnn"], "head: DnnHead does not go with task=joint"),
        (["task=ctc", "head=attention_gru"], "head: GruAttentionHead does not go with task=ctc"),
        (["task=joint", "task.ctc_weight=1.0"], "task.ctc_weight: is 1.0"),
        (["task=joint", "task.ctc_weight=0"], "task.ctc_weight: is 0"),
        (
            ["task=joint", "task.ctc_weight_end=0.1"],
            "task.ctc_weight_end: is 0.1, and task.ctc_weight_updates is None",
        ),
        (["task=joint", "decoder=whisper_greedy"], "decoder: WhisperGreedy does not go with task=joint"),
    ],
)
def test_conflicting_options_raise_config_error(overrides, error):
    with pytest.raises(ConfigError, match=re.escape(error)):
        config_of("data.train=t.jsonl", *overrides)


def whisper(checkpoints, corpus, *more):
    return [*toy_overrides(checkpoints["whisper"], corpus, "seq2seq"), "freeze=false", "trainer.max_epochs=1", *more]


def test_auxiliary_ctc_of_whisper_has_its_weight_and_learning_rate_and_is_not_restored(
    toy_checkpoints, toy_corpus, tmp_path
):
    overrides = whisper(toy_checkpoints, toy_corpus, "task.ctc_weight=0.3", "task.ctc_lr_scale=10")
    run = build(tmp_path, *overrides)
    before = run.module.ctc.weight.clone()
    run.trainer.fit(run.module, datamodule=run.data)
    assert not torch.equal(run.module.ctc.weight, before)
    decoder = run.trainer.optimizers[1]
    group_of = {id(p): g for g in decoder.param_groups for p in g["params"]}
    auxiliary, first = group_of[id(run.module.ctc.weight)], decoder.param_groups[0]
    assert auxiliary is not first, "the logged learning rate is that of the decoder"
    assert auxiliary["initial_lr"] == pytest.approx(10 * first["initial_lr"])

    module, batch = run.module.eval(), next(iter(run.data.val_dataloader()[0]))
    with torch.no_grad():
        out = module.encode(batch)
        total = 0.0
        for row, utterance in enumerate(batch.utterances):
            frames, tokens = out.frame_lengths_B[row : row + 1], int(batch.token_lengths_B[row])
            labels = torch.tensor(module.auxiliary.tokenizer.encode(utterance))
            log_probs = module.ctc(out.h_BFD[row : row + 1, : int(frames)]).log_softmax(-1).transpose(0, 1)
            ctc = functional.ctc_loss(log_probs, labels[None], frames, torch.tensor([len(labels)]))
            prompt = torch.tensor(module.tokenizer.prompt(utterance))
            whole = torch.cat([prompt, batch.tokens_BU[row, :tokens]])
            context = out.context_lengths_B[row : row + 1]
            states = module.model(whole[None, :-1], out.h_BFD[row : row + 1, : int(context)], context)
            logits = module.model.logits(states[0, len(prompt) - 1 :])
            nll = functional.cross_entropy(logits, batch.tokens_BU[row, :tokens], reduction="sum")
            total += float(0.7 * nll + 0.3 * tokens * ctc)
        found = module.loss(batch)
    assert float(found.total) == pytest.approx(total, rel=1e-4)
    assert int(found.count) == int(batch.token_lengths_B.sum())

    twin = restore_module(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")).eval()
    assert [h.tokens for h in twin.transcribe(batch)] == [h.tokens for h in module.transcribe(batch)]


@pytest.mark.parametrize("policy", ["lora", "bitfit", "decoder", "top_k"])
def test_auxiliary_ctc_trains_with_every_policy_that_trains_part_of_the_encoder(
    toy_checkpoints, toy_corpus, tmp_path, policy
):
    more = ["freeze_policy.k=1"] if policy == "top_k" else []
    overrides = [o for o in whisper(toy_checkpoints, toy_corpus, "task.ctc_weight=0.3") if o != "freeze=false"]
    run = build(tmp_path, *overrides, f"freeze_policy={policy}", *more)
    assert all(p.requires_grad for p in run.module.ctc.parameters())
    run.trainer.fit(run.module, datamodule=run.data)


def test_auxiliary_ctc_on_a_frozen_encoder_raises_config_error(toy_checkpoints, toy_corpus):
    with pytest.raises(ConfigError, match="task.ctc_weight: is 0.3, and has no effect on a frozen encoder"):
        config_of("backbone=whisper_tiny_en", "data.train=t.jsonl", "freeze=true", "task.ctc_weight=0.3")
