"""The loss of CTC models."""

import torch

from tests.training.toy_runs import build, toy_overrides


def test_loss_equals_mean_reduction_of_torch(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["wavlm_layer"], toy_corpus))
    module = run.module.eval()
    batch = next(iter(run.data.val_dataloader()[0]))
    out = module.loss(batch)
    log_probs, frames = module.log_probs(batch)
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), batch.tokens_BU, frames, batch.token_lengths_B, blank=0, reduction="mean"
    )
    torch.testing.assert_close(out.total / out.count, expected)
