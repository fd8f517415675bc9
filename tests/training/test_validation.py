"""Validation: the logged loss and error rates are corpus-level figures of the dev split."""

import jiwer
import pytest
import torch

from tests.training.toy_runs import build, toy_overrides


def test_logged_loss_and_error_rates_are_those_of_the_whole_dev_split(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus)
    run = build(tmp_path, *overrides, "trainer.max_epochs=1", "data.eval_batch_s=1.6", "normalizers=[lower,none]")
    run.trainer.fit(run.module, datamodule=run.data)
    logged, module = run.trainer.callback_metrics, run.module.eval()
    batches = list(run.data.val_dataloader()[0])
    assert len(batches) > 1
    with torch.no_grad():
        losses = [module.loss(batch) for batch in batches]
        hypotheses = {h.id: h.text for batch in batches for h in module.transcribe(batch)}
    mean = sum(float(loss.total) for loss in losses) / sum(float(loss.count) for loss in losses)
    assert float(logged["val/loss"]) == pytest.approx(mean, rel=1e-5)
    references = {utterance.id: utterance.text for utterance in run.data.manifests["dev"]}
    assert hypotheses.keys() == references.keys()
    pairs = [list(references.values()), [hypotheses[key] for key in references]]
    for name in ("val/wer", "val/wer/lower", "val/wer/none"):
        assert float(logged[name]) == pytest.approx(jiwer.wer(*pairs)), name
    for name in ("val/cer", "val/cer/lower", "val/cer/none"):
        assert float(logged[name]) == pytest.approx(jiwer.cer(*pairs)), name


def test_dev_predictions_are_those_of_the_last_validation_ordered_by_id(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path, *toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus), "data.eval_batch_s=1.6")
    run.trainer.fit(run.module, datamodule=run.data)
    predictions = run.module.gather_dev_predictions()
    assert [prediction.id for prediction in predictions] == ["dev0", "dev1", "dev2", "dev3"]
