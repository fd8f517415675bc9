"""Validation: the logged loss and error rates are corpus-level figures of the dev split."""

import json
import math

import jiwer
import pytest
import torch

from ssl_asr.errors import ManifestError, TrainingError
from ssl_asr.training.validation import _check_rate
from ssl_asr.types import Hypothesis
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


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (math.nan, "validation: no utterance of the dev set could be read"),
        (math.inf, "validation: all references that were decoded are empty after the normalizer lower"),
    ],
)
def test_an_error_rate_that_is_no_number_ends_the_run(rate, message):
    """It would be written to the metrics, and no checkpoint would be better than another."""
    with pytest.raises(TrainingError, match=message):
        _check_rate(rate, "lower")
    _check_rate(0.0, "lower")
    _check_rate(7.5, "lower")


@pytest.fixture
def without_texts(toy_corpus):
    """A manifest like dev, beside it, with empty references."""
    path = toy_corpus["dev"].with_name("empty.jsonl")
    rows = [json.loads(line) for line in toy_corpus["dev"].read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"text": "", "id": f"e{row['id']}"}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("key", ["data.dev", "data.test"])
def test_a_set_without_any_reference_is_refused_before_the_model_is_loaded(
    toy_checkpoints, toy_corpus, tmp_path, without_texts, key
):
    overrides = toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus)
    with pytest.raises(ManifestError, match="empty.jsonl: all references are empty, so there is no error rate"):
        build(tmp_path, *overrides, f"{key}={without_texts}", "backbone.source=nobody/nothing")


def test_a_validation_without_any_reference_ends_the_run(toy_checkpoints, toy_corpus, tmp_path, without_texts):
    """The manifest has a reference, but limit_val_batches leaves it out."""
    mixed = without_texts.with_name("mixed.jsonl")
    mixed.write_text(without_texts.read_text() + toy_corpus["dev"].read_text().splitlines()[0] + "\n")
    overrides = toy_overrides(toy_checkpoints["hubert_layer"], toy_corpus)
    run = build(tmp_path, *overrides, f"data.dev={mixed}", "trainer.max_epochs=1", "data.eval_batch_s=0.1")
    batches = list(run.data.val_dataloader()[0])
    assert [bool(batch.utterances[0].text) for batch in batches].count(True) == 1
    # Hypotheses of an untrained model are not empty.
    run.module.transcribe = lambda batch, out=None: [Hypothesis(id=i, text="a", score=0.0) for i in batch.ids]
    first = next(i for i, batch in enumerate(batches) if batch.utterances[0].text)
    assert first > 0
    run.trainer.limit_val_batches = first
    with pytest.raises(TrainingError, match="all references that were decoded are empty"):
        run.trainer.fit(run.module, datamodule=run.data)
    assert not list(tmp_path.rglob("*.ckpt"))
