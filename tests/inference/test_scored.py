"""What is checked of the manifests and predictions of an evaluation before a model is loaded."""

import json

import pytest

from ssl_asr.commands.evaluate import evaluate
from ssl_asr.config.schemas import EvaluateConfig
from ssl_asr.errors import ConfigError
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import to_json

UNKNOWN = r"by: no utterance has the tag 'speaker'\. Use one of lang, length, room\."


@pytest.fixture
def no_model(monkeypatch):
    def load(*args):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("ssl_asr.inference.model.load_model", load)


def _config(tmp_path, **values):
    return EvaluateConfig(output_dir=str(tmp_path / "out"), verbose=False, by=["length", "speaker"], **values)


@pytest.mark.usefixtures("no_model")
def test_an_unknown_tag_is_refused_before_the_model_is_loaded(tmp_path):
    rows = [{"id": "u1", "audio_filepath": "a.wav", "duration": 1.0, "text": "one", "room": "hall"}]
    manifest = tmp_path / "test.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"model": "none", "manifest": {"test": str(manifest)}}
    with pytest.raises(ConfigError, match=UNKNOWN):
        evaluate(_config(tmp_path, **config), tmp_path)
    # A translation has no breakdown.
    with pytest.raises(AssertionError, match="a model is loaded"):
        evaluate(_config(tmp_path, whisper_task="translate", **config), tmp_path)


def test_an_unknown_tag_of_predictions_leaves_earlier_results(tmp_path):
    rows = [Prediction("u1", "one", "one", 0.0, 1.0, "a.wav", tags={"room": "hall"})]
    predictions, earlier = tmp_path / "test.jsonl", tmp_path / "out" / "results.json"
    predictions.write_text("".join(to_json(row.record()) + "\n" for row in rows))
    earlier.parent.mkdir()
    earlier.write_text("{}")
    with pytest.raises(ConfigError, match=UNKNOWN):
        evaluate(_config(tmp_path, predictions=str(predictions), overwrite=True), tmp_path)
    assert earlier.read_text() == "{}"
