"""The loss of Whisper."""

import pytest
import torch

from ssl_asr.data.filters import fault_of
from ssl_asr.types import Utterance
from tests.training.toy_runs import build, toy_overrides


def test_loss_counts_every_target_token_and_the_end_token(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"))
    module = run.module.eval()
    [batch] = list(run.data.val_dataloader()[0])[:1]
    out = module.loss(batch)
    total, count = 0.0, 0
    for row, utterance in enumerate(batch.utterances):
        n = int(batch.lengths_B[row])
        encoded = module.model.encoder(batch.waveform_BT[row : row + 1, :n], batch.lengths_B[row : row + 1])
        targets = module.tokenizer.encode(utterance)
        whole = torch.tensor([module.tokenizer.prompt(utterance) + targets])
        states = module.model(whole[:, :-1], encoded.h_BFD, encoded.context_lengths_B)
        log_probs = module.model.logits(states)[0].log_softmax(-1)
        for place, token in enumerate(targets):
            total -= float(log_probs[1 + place, token])
            count += 1
    assert int(out.count) == count
    assert float(out.total) == pytest.approx(total, rel=1e-4)


def test_what_does_not_fit_whisper_is_left_out_with_seconds_and_tokens(toy_checkpoints, toy_corpus, tmp_path):
    """30 s, and 448 tokens with the prompt and the end token. Nothing is cut off."""
    run = build(tmp_path, *toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"))
    module, limits = run.module, run.data.limits
    positions = module.model.net.embed_positions.num_embeddings
    assert limits.max_tokens == positions

    def fault(seconds, text):
        found = fault_of(Utterance("a", "a.wav", seconds, text=text), limits, module.tokenizer)
        return None if found is None else (found.reason, found.detail)

    assert fault(30.0, "ab") is None
    reason, detail = fault(31.0, "ab")
    assert (reason, detail.startswith("31.00 s > 30 s (")) == ("too_long", True)
    # Two tokens of prompt, a space, and the end token.
    assert fault(1.0, "a" * (positions - 4)) is None
    assert fault(1.0, "a" * (positions - 3)) == (
        "too_many_tokens",
        f"{positions + 1} tokens, prompt included > {positions}",
    )
