"""The loss of Whisper."""

import pytest
import torch

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
